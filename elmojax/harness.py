"""A model of elmojax in EleutherAI's lm-evaluation-harness, as the model `elmojax`.

    python -m elmojax.harness --model elmojax --model_args model=mini --tasks TASK ...

is its command `lm_eval`, which knows this model then; in Python, importing this module
is enough. The forward direction is the causal one, and the one that is asked. A word is
a token: text is split into words (`split`). Where a line ends a sentence ends, and that
it does is a token, too. The LSTM's state is carried from line to line of a text, and no
context is cut off.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from elmojax.arguments import checked
from elmojax.errors import InputError
from elmojax.loading import open_model
from elmojax.model.ops import Precision, local_mesh
from elmojax.text.characters import END
from elmojax.training.minimal_pairs import Split, words
from elmojax.training.score import Measures, Score

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    missing = "lm-evaluation-harness is not installed: pip install 'elmojax[lm-eval]'."
    if __name__ == "__main__":
        sys.stderr.write(f"elmojax: {missing}\n")
        sys.exit(2)
    raise InputError(missing) from error

CARRY, ALONE = Measures(entropy=True, carry=True), Measures(entropy=True)


class _Text(NamedTuple):
    """A text as the model reads it."""

    sentences: list[list[str]]
    ends: bool
    """Whether its last sentence has ended."""

    @classmethod
    def of(cls, text: str, split: Split) -> _Text:
        lines = [words(line, split) for line in text.split("\n")]
        return cls([line for line in lines if line], not lines[-1])

    @property
    def tokens(self) -> list[str]:
        found = [token for line in self.sentences for token in (*line, END)]
        return found if self.ends else found[:-1]

    def judged(self, scores: Sequence[Score], given: int) -> tuple[float, bool]:
        """Log-probability of all tokens but the first `given`, and whether each of them
        is the most probable one; of the scores of its sentences."""
        here = slice(given, len(self.tokens))
        log_probs = [each for one in scores for each in one.forward][here]
        best = [
            rank == 1 and known
            for one in scores
            for rank, known in zip(
                np.asarray(one.forward_rank), [*one.known, True], strict=True
            )
        ]
        return float(np.sum(log_probs, dtype=np.float64)), all(best[here])


@register_model("elmojax")
class ElmojaxLM(LM):
    """A biLM, read forward; answers loglikelihood and loglikelihood_rolling."""

    @checked
    def __init__(
        self,
        model: str = "mini",
        step: int | None = None,
        precision: Precision = "float32",
        split: Split = "marks",
        **others: Any,
    ) -> None:
        """Opens a model.

        Args:
          model: as for `elmojax.load`, with a softmax and its vocabulary.
          step: which checkpoint of a run; None = the newest.
          precision: of matrix products, "float32" or "bf16".
          split: how text becomes words, "blanks", "marks" or "penn"; see
            `elmojax.training.minimal_pairs.words`.
          others: batch_size, max_batch_size and device, which the harness hands over
            and elmojax finds out by itself.

        Raises:
          InputError: if there is no such model, it cannot be read or has no softmax;
            for another argument.
        """
        super().__init__()
        if unknown := {*others} - {"batch_size", "max_batch_size", "device"}:
            raise InputError(
                f"elmojax has no model argument {min(unknown)}; the arguments are "
                "model, step, precision and split."
            )
        opened = open_model(model, step).cast(precision)
        self.split = split
        self._alone, self._carrying = opened.scorer(local_mesh()), opened.scorer()

    def loglikelihood(
        self, requests: Sequence[Any], **more: Any
    ) -> list[tuple[float, bool]]:
        """Of (context, continuation): log p of the continuation, and whether greedy
        decoding gives it; a word that both have a part of belongs to the second."""
        found = []
        for context, continuation in (request.args for request in requests):
            text = _Text.of(context + continuation, self.split)
            pairs = zip(_Text.of(context, self.split).tokens, text.tokens, strict=False)
            given = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            found.append((text, given))
        return self._judge(found)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], **more: Any
    ) -> list[float]:
        """Of (text,): log p of all of its words and ends of lines."""
        texts = [(_Text.of(request.args[0], self.split), 0) for request in requests]
        return [total for total, _ in self._judge(texts)]

    def generate_until(self, requests: Sequence[Any], **more: Any) -> list[str]:
        """Raises `InputError`."""
        raise InputError(
            "A biLM gives words probabilities and writes no text; choose tasks whose "
            "output_type is loglikelihood, loglikelihood_rolling or multiple_choice."
        )

    def _judge(self, asked: Sequence[tuple[_Text, int]]) -> list[tuple[float, bool]]:
        """Texts and how many tokens of each are given: those of one sentence together,
        others one after the other."""
        short = [text.sentences[0] for text, _ in asked if len(text.sentences) == 1]
        alone, found = self._alone(short, measures=ALONE), []
        for text, given in asked:
            if len(text.sentences) == 1:
                scores = [next(alone)]
            else:
                scores = [*self._carrying(text.sentences, measures=CARRY)]
            found.append(text.judged(scores, given))
        return found


def main() -> None:
    """The harness's command line, with this model."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        sys.stderr.write(f"elmojax: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
