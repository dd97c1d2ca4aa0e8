"""`elmojax static`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from tqdm import tqdm
from tyro.conf import arg

from elmojax.cli import common
from elmojax.cli.embed import Gammas, mix_of
from elmojax.config import BatchTokens, Count
from elmojax.disk import check_out
from elmojax.errors import InputError
from elmojax.text.vocabulary import frequent_words


@dataclass(frozen=True, kw_only=True)
class StaticArguments(common.TextArguments, common.ModelArguments):
    """Writes one vector for each word of a text: the mean of its vectors in context.

    The file is in word2vec's text or binary format, by falling count, as gensim, spaCy
    and sentence-transformers load it. All devices of this machine take part.
    """

    out: Annotated[Path, arg(metavar="OUT.vec|OUT.bin")]
    """File to write: word2vec's text (.vec) or binary (.bin)."""
    layers: Literal["top", "mix", "sum"] = "top"
    """Layers of the vectors: the top one, the sum weighted by the gammas (by default
    those of the model, where it is a module of TF-Hub), or the plain sum."""
    gammas: Gammas = None
    min_count: Count = 1
    """Leave out words with fewer occurrences."""
    max_vocabulary: Count | None = None
    """Write at most this many words, the most frequent ones."""
    batch_tokens: BatchTokens = 32_768
    """Largest number of words and sentences of a batch, which bounds memory."""
    overwrite: common.Overwrite = False
    json: common.Json = False


def static(argv: list[str]) -> None:
    """one vector for each word of a text, as word2vec text or binary"""
    asked = common.parse(StaticArguments, "static", argv)
    if asked.out.suffix.lower() not in (".vec", ".bin"):
        raise InputError(
            f"--out is {asked.out}; end it in .vec, for word2vec's text format, or in "
            ".bin, for its binary one."
        )
    paths = asked.paths("Give the text of the words: --text FILE [FILE ...].")
    check_out(asked.out, asked.overwrite)

    from elmojax.embedding.embedder import Embedder
    from elmojax.embedding.neighbours import mean_vectors
    from elmojax.formats.word_vectors import write_word_vectors
    from elmojax.model.ops import local_mesh, replicated

    mesh = local_mesh()
    model = asked.open(head=False, sharding=replicated(mesh))
    top = model.params.config.lstm.layers
    layers, gammas = mix_of(asked.layers, asked.gammas, top, model.mix)
    embedder = Embedder(
        model.params,
        model.vocabulary,
        asked.batch_tokens,
        layers=layers,
        gammas=gammas,
        mesh=mesh,
    )
    columns = model.params.config.max_characters
    texts, odd = common.read_texts(paths, asked.errors, asked.format, columns)
    sentences = (sentence for text in texts for sentence in text.sentences())
    counts = Counter(word for sentence in sentences for word in sentence)
    words = frequent_words(
        list(counts), list(counts.values()), asked.min_count, asked.max_vocabulary
    )
    if not words:
        where = paths[0] if len(paths) == 1 else f"the {len(paths)} texts"
        raise InputError(
            f"No word of {where} occurs {asked.min_count:,} times; lower --min-count, "
            "or give more text."
        )
    remarks = common.remark(odd, columns, asked.format)
    with tqdm(total=counts.total(), unit="token", desc="static", disable=None) as bar:

        def read() -> Iterator[list[str]]:
            for text in texts:
                for sentence in text.sentences():
                    yield sentence
                    bar.update(len(sentence))

        vectors = mean_vectors(embedder, read(), words)
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{model.source} gives vectors that are not finite numbers; look at the "
            "gammas and, by `elmojax verify`, the model."
        )
    write_word_vectors(asked.out, words, vectors, asked.out.suffix.lower() == ".bin")
    report = {"out": asked.out, "words": len(words), "width": vectors.shape[1]}
    report |= {"types": len(counts), "tokens": counts.total(), "remarks": remarks}
    common.show(
        asked.json,
        report,
        f"{asked.out}: {len(words):,} words of {len(counts):,}, {vectors.shape[1]:,} "
        f"values each, from {counts.total():,} places in the text.",
    )
