"""Parts of speech (Universal Dependencies): accuracy of tags, by a BiLSTM + softmax.

    python experiments/tasks/pos.py --train train.conllu --dev dev.conllu \\
        --test test.conllu

Files are CoNLL-U, of which UPOS is read, or have a word a line and columns, of which
the second is the tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tagging import TaggingOptions, run
from task_options import command


@dataclass(frozen=True, kw_only=True)
class PosOptions(TaggingOptions):
    """Trains a tagger on vectors of words and scores it."""

    column: int = 1
    """Column of the tag, from 0 (the word is column 0): of CoNLL-U 1 is UPOS and 2
    XPOS."""
    crf: bool = False
    """A conditional random field over the tags; else a softmax for each word."""


def main(argv: Sequence[str] | None = None) -> None:
    command("pos", PosOptions, partial(run, "pos", "accuracy"), argv)


if __name__ == "__main__":
    main()
