"""Phrases of a sentence (CoNLL-2000): F1 of chunks, by a BiLSTM and a CRF.

    python experiments/tasks/chunking.py --train train.txt --test test.txt

Files have a word a line and columns; the last is the chunk, as B-NP, I-NP, O. Without
--dev, the last 1,000 sentences of the training file choose the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tagging import TaggingOptions, run
from task_options import command


def main(argv: Sequence[str] | None = None) -> None:
    command("chunking", TaggingOptions, partial(run, "chunking", "F1"), argv)


if __name__ == "__main__":
    main()
