"""Exact evaluation of a biLM on held-out text: every token once, both directions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
from jax import Array

from elmojax.errors import InputError
from elmojax.model.lstm import LstmState
from elmojax.model.ops import replicated
from elmojax.shapes import Params
from elmojax.text.batches import heldout_batches, heldout_sizes
from elmojax.text.corpus import Corpus
from elmojax.text.tables import Sizes, WordTables
from elmojax.text.vocabulary import UNKNOWN_ID, Vocabulary
from elmojax.training.sharding import put_on_mesh, shardings
from elmojax.training.step import LanguageModel, evaluation_step

ROWS = 64
"""Streams the text is dealt to; rounded up to a multiple of the mesh's `data`."""
WINDOW = 20


class Evaluator:
    """A held-out corpus ready to be measured; compiles once."""

    def __init__(
        self,
        lm: LanguageModel,
        corpus: Corpus,
        vocabulary: Vocabulary,
        any_text: bool = False,
    ) -> None:
        """`any_text`: whether other texts are measured by the same program, too."""
        self.lm, self.corpus = lm, corpus
        data = 1 if lm.mesh is None else lm.mesh.shape["data"]
        self.rows = -(-ROWS // data) * data
        split = 1 if lm.mesh is None else lm.mesh.shape["model"]
        self.words = WordTables(
            corpus,
            vocabulary,
            lm.config,
            data,
            head=lm.head,
            split=split,
            any_text=any_text,
        )
        known = self.words.targets != UNKNOWN_ID
        self._unknown = int(np.asarray(corpus.counts)[~known].sum())

    @cached_property
    def program(self) -> tuple[Any, Sizes]:
        """What measures a batch, and the sizes of a batch; a reading of the text."""
        sizes = heldout_sizes(self.corpus, self.words, self.rows, WINDOW)
        return compile_evaluation_step(self.lm, self.rows), sizes

    def __call__(
        self,
        params: Params,
        progress: Callable[[int], Any] = lambda tokens: None,
        program: tuple[Any, Sizes] | None = None,
    ) -> dict[str, float]:
        """Perplexities and their company; see `summarize` for the keys.

        Rows start from a zero state and carry it from sentence to sentence, as in
        training. `progress` is told the tokens of each batch. `program` is that of
        another text whose batches are as large.
        """
        started = time.perf_counter()
        carry = LstmState.zeros(self.lm.config.lstm, self.rows)
        carry = put_on_mesh(self.lm.mesh, carry, "carry.")
        total, tokens, sums = np.zeros(2), 0, np.zeros(2)
        step, sizes = program or self.program
        text = (self.corpus, self.words, self.rows, WINDOW, sizes)
        for batch, _ in heldout_batches(*text):
            late = sums  # read one step late: the device never waits for the host
            sums, carry = step(
                params, carry, put_on_mesh(self.lm.mesh, batch, "batch.")
            )
            total += np.asarray(late, np.float64)
            tokens += (counted := int(batch.weights.sum()))
            progress(counted)
        total += np.asarray(sums, np.float64)
        seconds = time.perf_counter() - started
        return summarize(total, tokens, self.corpus, self._unknown, seconds)


def compile_evaluation_step(
    lm: LanguageModel, rows: int, step: Callable[..., Any] = evaluation_step
) -> Any:
    """`step` of the model as one program; the new carry lies as the old one did."""
    of_carry = None
    if lm.mesh is not None:
        carry = partial(LstmState.zeros, lm.config.lstm, rows)
        of_carry = shardings(lm.mesh, jax.eval_shape(carry), "carry.")
    run = partial(step, lm)
    return jax.jit(run, donate_argnums=1, out_shardings=(replicated(lm.mesh), of_carry))


def summarize(
    nll: np.ndarray | Array, tokens: int, corpus: Corpus, unknown: int, seconds: float
) -> dict[str, float]:
    """Sums of -log p (nats), [forward, backward], to the numbers that are reported.

    forward_perplexity, backward_perplexity: exp of the mean -log p of one direction.
    mean_perplexity: their arithmetic mean. geometric_perplexity: their geometric mean,
    exp of the mean loss of both directions (what bilm-tf calls perplexity).
    bits_per_byte: mean of the directions, over the UTF-8 bytes of the text.
    oov_rate: share of words outside the vocabulary. tokens: predictions a direction,
    one for each word and one for the end of each sentence.

    Raises `InputError` if a sum is not finite.
    """
    if not np.isfinite(nll).all():
        raise not_a_number(corpus.directory)
    forward, backward = (float(direction) / tokens for direction in nll)
    words, mean = len(corpus.words), (forward + backward) / 2
    return {
        "forward_perplexity": _exp(forward),
        "backward_perplexity": _exp(backward),
        "mean_perplexity": (_exp(forward) + _exp(backward)) / 2,
        "geometric_perplexity": _exp(mean),
        "loss": mean,
        "bits_per_byte": mean * tokens / math.log(2) / corpus.bytes,
        "oov_rate": unknown / words,
        "tokens": tokens,
        "words": words,
        "sentences": len(corpus.offsets) - 1,
        "seconds": seconds,
    }


def not_a_number(text: object) -> InputError:
    """What to say of a model that has diverged."""
    return InputError(
        f"The model gives {text} a probability that is not a number; its weights are "
        "damaged or training diverged: take an earlier checkpoint."
    )


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # exp overflows a float beyond
