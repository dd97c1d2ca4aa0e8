"""Whether a premise entails a hypothesis (SNLI): accuracy of a small ESIM.

    python experiments/tasks/entailment.py --train train.tsv --test test.tsv

Files are of columns parted by tabs; the first line names them: label, premise,
hypothesis. Without --dev, the last 1,000 pairs of the training file choose the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from classification import ClassificationOptions, Decision, Example, pooled, run
from heads import BiLstm
from jax import Array
from task_files import read_table
from task_options import command
from texts import Text, read_text

from elmojax.text.formats import split


def read_pairs(path: Path) -> list[Example]:
    """Pairs with their classes; `InputError` for a file of another format."""
    return [
        Example(label, (tuple(split(premise)), tuple(split(hypothesis))), line)
        for line, (label, premise, hypothesis) in read_table(
            path, ("label", "premise", "hypothesis")
        )
    ]


class EntailmentNetwork(nn.Module):
    """Both read by one BiLSTM, each word beside what it is likest to in the other.

    The enhanced sequential inference model of Chen et al. 2017, that Peters et al. 2018
    read ELMo with, in small: a second BiLSTM reads words, what they attend to, the
    differences and products; its outputs are pooled.
    """

    words: int
    classes: int
    options: ClassificationOptions

    @nn.compact
    def __call__(self, text: Text, deterministic: bool) -> Array:
        """Scores [batch, classes]; `text` has all premises, then all hypotheses."""
        options, mask = self.options, text.mask
        h = read_text(self.words, text, options, options.hidden, deterministic)
        attended = attend_each_other(h, mask)
        compared = [h, attended, h - attended, h * attended]
        x = nn.relu(nn.Dense(options.hidden)(jnp.concatenate(compared, axis=-1)))
        x = nn.Dropout(options.dropout)(x, deterministic=deterministic)
        x = pooled(BiLstm(options.hidden)(x, mask), mask)
        x = jnp.concatenate(jnp.split(x, 2), axis=-1)
        return Decision(self.classes, options)(x, deterministic)


def attend_each_other(h: Array, mask: Array) -> Array:
    """For each word the mean of the words of the other text, weighted by likeness.

    Args:
      h: [2 * batch, time, width], one text of each pair, then the other.
      mask: bool [2 * batch, time].

    Returns:
      [2 * batch, time, width]; 0 where the other text has no word.
    """
    other = jnp.roll(h, len(h) // 2, axis=0)
    here = jnp.roll(mask, len(h) // 2, axis=0)[:, None, :]
    likeness = jnp.einsum("bik,bjk->bij", h, other)
    weights = nn.softmax(jnp.where(here, likeness, -1e9), axis=-1)
    return jnp.einsum("bij,bjk->bik", jnp.where(here, weights, 0.0), other)


def main(argv: Sequence[str] | None = None) -> None:
    make = partial(run, "entailment", read_pairs, EntailmentNetwork)
    command("entailment", ClassificationOptions, make, argv)


if __name__ == "__main__":
    main()
