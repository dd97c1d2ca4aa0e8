"""Names in a sentence (WNUT 2017 and the like): F1 of entities, by a BiLSTM and a CRF.

    python experiments/tasks/ner.py --train train.txt --dev dev.txt --test test.txt

Files have a word a line and columns; the last is the tag, as B-person, I-person, O.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tagging import TaggingOptions, run
from task_options import command


def main(argv: Sequence[str] | None = None) -> None:
    command("ner", TaggingOptions, partial(run, "ner", "F1"), argv)


if __name__ == "__main__":
    main()
