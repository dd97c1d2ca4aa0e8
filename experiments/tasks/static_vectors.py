"""Static vectors trained on the text of a biLM, with its vocabulary and width.

    python experiments/tasks/static_vectors.py --method word2vec --text 'train-*.txt' \\
        --vocabulary vocabulary.txt --out word2vec.bin

word2vec is skip-gram with negative samples (Mikolov et al. 2013), trained by gensim
(pip install gensim); glove is made by glove.py, for no library of it is kept. Text is
tokenised, one sentence a line, plain or packed; words out of the vocabulary are left
out before anything is counted. The file is in word2vec's binary format, which
`--features word2vec --vectors FILE` reads, and `--features glove` too.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from glove import GloveOptions, count_pairs, train_glove
from task_options import Seed, check_place, run_command

from elmojax import InputError
from elmojax.config import Count, Positive, Width
from elmojax.formats.word_vectors import write_word_vectors
from elmojax.text.files import expand, read_lines
from elmojax.text.vocabulary import SPECIALS, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Trains static vectors on a text."""

    method: Literal["word2vec", "glove"]
    text: tuple[str, ...]
    """Files or globs."""
    vocabulary: Path
    """A word a line, as `elmojax prepare` writes it."""
    out: Path
    width: Width = 128
    window: Count = 5
    """Words on each side that are the context of a word (GloVe's own default is 15)."""
    epochs: Count = 5
    """Passes over the text (word2vec) or over the counts (glove: 15 are usual)."""
    learning_rate: Positive | None = None
    """None = 0.025 (word2vec), 0.05 (glove)."""
    workers: Count = 2
    """Threads of gensim."""
    seed: Seed = 1
    overwrite: bool = False
    """Replace the vectors, if they are there already."""


class Sentences:
    """The sentences of texts, without words out of the vocabulary; many passes."""

    def __init__(self, paths: Sequence[Path], words: Sequence[str]) -> None:
        self._paths, self._known = paths, frozenset(words)

    def __iter__(self) -> Iterator[list[str]]:
        for path in self._paths:
            for _, words in read_lines(path):
                yield [word for word in words if word in self._known]


def train_word2vec(asked: Arguments, sentences: Sentences) -> dict[str, np.ndarray]:
    """Words and their vectors, by gensim."""
    from gensim.models import Word2Vec

    model = Word2Vec(
        sentences,
        vector_size=asked.width,
        window=asked.window,
        min_count=1,
        sg=1,
        negative=5,
        epochs=asked.epochs,
        alpha=asked.learning_rate or 0.025,
        workers=asked.workers,
        seed=asked.seed,
    )
    return {word: model.wv[word] for word in model.wv.index_to_key}


def run(asked: Arguments) -> None:
    """Trains, and writes the vectors.

    Raises:
      InputError: for texts and vocabularies that cannot be read, without gensim, and
        for a text that has no word of the vocabulary.
    """
    if asked.method == "word2vec" and importlib.util.find_spec("gensim") is None:
        raise InputError("--method word2vec needs gensim: pip install gensim.")
    check_place(asked.out, asked.overwrite)
    if not asked.out.parent.is_dir():
        raise InputError(f"{asked.out.parent} is no directory; make it first.")
    started = time.perf_counter()
    words = Vocabulary.read(asked.vocabulary).words[len(SPECIALS) :]
    sentences = Sentences(expand(asked.text), words)
    if not any(map(len, sentences)):
        raise InputError(f"{asked.text[0]} has no word of {asked.vocabulary}.")
    if asked.method == "word2vec":
        vectors = train_word2vec(asked, sentences)
    else:
        options = GloveOptions(
            *(asked.width, asked.window, asked.epochs),
            learning_rate=asked.learning_rate or 0.05,
            seed=asked.seed,
        )
        place = {word: number for number, word in enumerate(words)}
        ids = (np.array([place[w] for w in s], np.int32) for s in sentences)
        pairs = count_pairs(ids, len(words), options)
        table = train_glove(pairs, len(words), options)
        seen = np.zeros(len(words), bool)
        seen[pairs.words] = True
        vectors = {w: table[n] for n, w in enumerate(words) if seen[n]}
    write_word_vectors(
        asked.out, list(vectors), np.stack(list(vectors.values())), binary=True
    )
    seconds = time.perf_counter() - started
    print(f"{len(vectors):,} vectors in {asked.out}, {seconds:.0f} s", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    run_command("static_vectors", Arguments, run, argv)


if __name__ == "__main__":
    main()
