"""The text inside the package: public-domain books, for a first run and for tests.

train: Doyle, The Adventures of Sherlock Holmes and The Hound of the Baskervilles;
Carroll, Alice's Adventures in Wonderland and Through the Looking-Glass; Wells, The
Time Machine; Dickens, A Christmas Carol. heldout: Doyle, The Sign of the Four.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from elmojax.text.corpus import prepare
from elmojax.text.prepared import Corpus

MIN_COUNT = 2
"""Words seen once stay out of the sample's vocabulary."""


def sample_corpora(directory: Path) -> tuple[Corpus, Corpus]:
    """Prepares both texts below `directory`, unless they are there, and opens them."""
    train, heldout = directory / "sample-train", directory / "sample-heldout"
    source = resources.files("elmojax") / "sample"
    for out, vocabulary in ((train, None), (heldout, train / "vocabulary.txt")):
        if (out / "corpus.json").exists():
            continue
        with resources.as_file(source / f"{out.name[7:]}.txt.xz") as path:
            least = MIN_COUNT if vocabulary is None else 1
            prepare(out, patterns=[str(path)], vocabulary=vocabulary, min_count=least)
    return Corpus.open(train), Corpus.open(heldout)
