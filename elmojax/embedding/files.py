"""From text files to files of vectors: a job, and the one machine that does it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from elmojax.config import CharCnnConfig
from elmojax.embedding.blocks import Block
from elmojax.embedding.embedder import BATCH_TOKENS, Embedder
from elmojax.embedding.engine import Dtype, Select
from elmojax.embedding.export import named_weights, weights_hash
from elmojax.embedding.outputs import (
    Form,
    Text,
    check_replaceable,
    open_output,
    read_text,
)
from elmojax.embedding.pooling import Pooling
from elmojax.embedding.words import WordIndex
from elmojax.model.bilm import ElmoParams
from elmojax.model.casting import precision_of
from elmojax.text.files import Errors
from elmojax.text.vocabulary import Vocabulary

Progress = Callable[[int, int], None]
"""Called with words done (those of an earlier run too) and words in all."""


@dataclass(frozen=True)
class Job:
    """Which vectors are made of a text, and by which model."""

    params: ElmoParams
    vocabulary: Vocabulary | WordIndex | None = None
    batch_tokens: int = BATCH_TOKENS
    layers: Select = "all"
    gammas: tuple[float, ...] | None = None
    dtype: Dtype = "float32"
    pool: Pooling | None = None
    compression: str | None = None
    mesh: Mesh | None = None
    """Whose devices are used; what comes is the same within float32 rounding."""

    def embedder(self) -> Embedder:
        """A new one for each text: its vectors depend on no other text, to the bit."""
        return Embedder(
            self.params,
            self.vocabulary,
            self.batch_tokens,
            layers=self.layers,
            gammas=self.gammas,
            # Pooling comes before rounding.
            dtype="float32" if self.pool else self.dtype,
            mesh=self.mesh,
        )

    def form(self) -> Form:
        """What an output needs to know of the vectors."""
        lstm = self.params.config.lstm
        axes = (lstm.layers + 1,) if self.layers == "all" else ()
        settings = {
            "model": self._model(),
            "precision": precision_of(self.params),
            "layers": self.layers,
            "gammas": None if self.gammas is None else list(self.gammas),
            "batch_tokens": self.batch_tokens,
        }
        shape = (*axes, 2 * lstm.projection)
        return Form(shape, self.dtype, self.pool, self.compression, settings)

    def _model(self) -> str:
        """SHA-256 of the model: weights, configuration, and words if it reads ids."""
        parts = [weights_hash(named_weights(self.params)), repr(self.params.config)]
        if not isinstance(self.params.config.encoder, CharCnnConfig):
            parts += self.vocabulary.words if self.vocabulary else ()
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def embed_files(
    job: Job,
    paths: Sequence[Path],
    out: Path,
    *,
    errors: Errors = "strict",
    overwrite: bool = False,
    report: Progress = lambda done, total: None,
) -> tuple[int, int]:
    """Writes the vectors of text files (see `elmojax.embedding.outputs`).

    A run that was cut short is taken up where it stopped, and the result is the same
    to the byte, or with other devices within float32 rounding.

    Args:
      job: model and kind of vectors.
      paths: texts, one tokenised sentence a line; several only as Parquet.
      out: .hdf5 or .h5 file, .parquet directory, or directory of .npy arrays.
      errors: what to do with bytes that are not UTF-8.
      overwrite: replace `out`, and forget an unfinished output of another request.
      report: called at first and after every batch.

    Returns:
      Lines and words in all.

    Raises:
      InputError: for a text that cannot be read or an output that cannot be written.
    """
    check_replaceable(out, overwrite)  # before hours of reading
    texts = [read_text(path, errors) for path in paths]
    words = [int(text.sizes.sum()) for text in texts]

    def blocks(text: Text, start: int) -> Iterator[Block]:
        done = sum(words[: texts.index(text)]) + int(text.sizes[:start].sum())
        report(done, sum(words))
        for block in job.embedder().blocks(text.sentences(), skip=start):
            yield block
            done += sum(block.sizes)
            report(done, sum(words))

    with open_output(out, texts, job.form(), overwrite=overwrite) as output:
        output.fill(blocks)
        output.finish()
    return sum(len(text.sizes) for text in texts), sum(words)
