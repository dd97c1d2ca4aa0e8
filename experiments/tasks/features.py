"""Vectors of words that a task reads: of a frozen biLM, or of what it is held against.

They are made once for all sentences and kept in float16. Every kind has the same form,
[batch, layers, time, vector], so that a head reads any of them: static vectors are one
layer. Each layer is divided by its root mean square over the words of the training
part, so that no kind is at an advantage through its scale.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from task_options import FeatureOptions

import elmojax
from elmojax import InputError
from elmojax.formats.word_vectors import read_word_vectors

Words = Sequence[str]
HUGE = 65504.0
"""The largest number of float16."""


@dataclass
class Features:
    """The vectors of all words of some sentences, one sentence after the other."""

    vectors: np.ndarray
    """float16 [words, layers, vector]."""
    starts: np.ndarray
    """int64 [sentences + 1]: where the words of each sentence begin."""
    seconds: float
    """What making them took."""
    scale: np.ndarray = field(default_factory=lambda: np.ones(1, np.float32))
    """float32 [layers]: what each layer was divided by."""

    @property
    def layers(self) -> int:
        return self.vectors.shape[1]

    @property
    def megabytes(self) -> float:
        return self.vectors.nbytes / 1e6

    def batch(self, sentences: Sequence[int], rows: int, time: int) -> np.ndarray:
        """float16 [rows, layers, time, vector] of the sentences of these numbers; 0
        past their ends."""
        _, layers, width = self.vectors.shape
        batch = np.zeros((rows, layers, time, width), np.float16)
        for row, number in zip(batch, sentences, strict=False):
            of_words = self.vectors[self.starts[number] : self.starts[number + 1]]
            row[:, : len(of_words)] = of_words.swapaxes(0, 1)
        return batch

    def at(self, places: Sequence[int]) -> np.ndarray:
        """float32 [sentences, layers, vector]: of one word of each sentence."""
        return self.vectors[self.starts[:-1] + np.asarray(places)].astype(np.float32)


def make_features(
    options: FeatureOptions, parts: Sequence[Sequence[Words]]
) -> list[Features] | None:
    """Features of each part; None where `options.features` is none.

    Args:
      options: kind, and where it comes from.
      parts: sentences of the training part, and of others.

    Raises:
      InputError: for a model or file that cannot be read, a flag that is missing, a
        layer that is not there.
    """
    reads = options.features in ("word2vec", "glove", "transformer")
    if options.vectors is not None and not reads:
        raise InputError(
            f"--vectors is {options.vectors}, and --features {options.features} does "
            "not read it; name the kind of vectors with --features, or leave it out."
        )
    if options.features == "none":
        return None
    made = []
    for part, blocks in zip(parts, _sources(options, parts), strict=True):
        started = time.perf_counter()
        lengths = [len(words) for words in part]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        vectors = _gathered(blocks, int(starts[-1]), options.layer)
        made.append(Features(vectors, starts, time.perf_counter() - started))
    scale = _root_mean_square(made[0].vectors)
    for features in made:
        np.divide(features.vectors, scale[:, None], out=features.vectors)
        features.scale = scale
    return made


def _gathered(
    blocks: Iterable[np.ndarray], words: int, layer: int | None
) -> np.ndarray:
    """Blocks [words, layers, vector] in one array."""
    gathered, end = np.zeros((0, 1, 1), np.float16), 0
    for block in blocks:
        if layer is not None:
            if not 0 <= layer < block.shape[1]:
                raise InputError(
                    f"--layer is {layer}, and there are {block.shape[1]} layers, from "
                    "0; give one of them."
                )
            block = block[:, layer : layer + 1]
        if not end:
            gathered = np.zeros((words, *block.shape[1:]), np.float16)
        gathered[end : end + len(block)] = block.clip(-HUGE, HUGE)
        end += len(block)
    return gathered


def _root_mean_square(vectors: np.ndarray) -> np.ndarray:
    """Of each layer, float32 [layers]; 1 for a layer of zeros."""
    some = vectors[:: max(1, len(vectors) // 20_000)].astype(np.float32)
    scale = np.sqrt((some**2).mean(axis=(0, 2)))
    return np.where(scale > 0, scale, 1.0).astype(np.float32)


def _sources(
    options: FeatureOptions, parts: Sequence[Sequence[Words]]
) -> Iterator[Iterable[np.ndarray]]:
    """For each part, its vectors [words, layers, vector], some words at a time."""
    kind = options.features
    if kind in ("elmo", "characters"):
        params = elmojax.load(options.model)
        embedder = elmojax.Embedder(params, dtype="float16")
        kept = slice(None) if kind == "elmo" else slice(0, 1)
        for part in parts:
            yield (block.vectors[:, kept] for block in embedder.blocks(part))
    elif kind == "transformer":
        from transformer import Transformer  # needs packages that others do without

        transformer = Transformer.read(_required(options))
        for part in parts:
            yield transformer.blocks(part)
    else:
        types = sorted({word for part in parts for words in part for word in words})
        table = (
            random_vectors(types, options.width)
            if kind == "random"
            else file_vectors(types, options)
        )
        place = {word: number for number, word in enumerate(types)}
        for part in parts:
            ids = np.array([place[word] for word in chain(*part)], np.int64)
            yield [table[ids][:, None]]


def _required(options: FeatureOptions) -> Path:
    if options.vectors is None:
        raise InputError(
            f"--features {options.features} reads vectors; give their place with "
            "--vectors."
        )
    return options.vectors


def random_vectors(types: Sequence[str], width: int) -> np.ndarray:
    """float32 [types, width]: drawn from a word's letters, the same in every text."""

    def draw(word: str) -> np.ndarray:
        seed = hashlib.sha256(word.encode()).digest()[:8]
        random = np.random.default_rng(int.from_bytes(seed, "little"))
        return random.standard_normal(width, np.float32)

    return np.stack([draw(word) for word in types])


def file_vectors(types: Sequence[str], options: FeatureOptions) -> np.ndarray:
    """float32 [types, width]: of a word as it is written, else of its lower case, else
    zeros."""
    forms = [*types, *(word.lower() for word in types)]
    vectors, found = read_word_vectors(_required(options), forms)
    exact, lower = np.split(vectors, 2)
    return np.where(found[: len(types), None], exact, lower)


def parameters(tree: object) -> int:
    """Numbers in a tree of arrays."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(tree))
