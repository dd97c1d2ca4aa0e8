"""Sentiment of a sentence (Stanford Sentiment Treebank): accuracy of a classifier.

    python experiments/tasks/sentiment.py --train train.tsv --dev dev.tsv \\
        --test test.tsv

Files have a line for each sentence: its class, a tab, its words with blanks between
them. Any text whose class is wanted may stand there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
from classification import ClassificationOptions, Decision, Example, pooled, run
from jax import Array
from task_files import read_lines, split_fields
from task_options import command
from texts import Text, read_text

from elmojax.text.formats import split


def read_sentiment(path: Path) -> list[Example]:
    """Sentences with their classes; `InputError` for a file of another format."""
    rows = split_fields(path, read_lines(path), ("class", "sentence"))
    return [
        Example(label, (tuple(split(sentence)),), line)
        for line, (label, sentence) in rows
    ]


class SentimentNetwork(nn.Module):
    """A BiLSTM, three ways to pool its outputs, a layer, the classes.

    A small relative of the biattentive network of McCann et al. 2017, that Peters et
    al. 2018 read ELMo with.
    """

    words: int
    classes: int
    options: ClassificationOptions

    @nn.compact
    def __call__(self, text: Text, deterministic: bool) -> Array:
        """Scores [batch, classes]."""
        options, mask = self.options, text.mask
        h = read_text(self.words, text, options, options.hidden, deterministic)
        attention = jnp.where(mask, nn.Dense(1)(h)[..., 0], -1e9)
        attended = (nn.softmax(attention, axis=-1)[..., None] * h).sum(axis=1)
        x = jnp.concatenate([pooled(h, mask), attended], axis=-1)
        return Decision(self.classes, options)(x, deterministic)


def main(argv: Sequence[str] | None = None) -> None:
    make = partial(run, "sentiment", read_sentiment, SentimentNetwork)
    command("sentiment", ClassificationOptions, make, argv)


if __name__ == "__main__":
    main()
