"""Vectors of words and of their uses: what is near, and as points of a plane.

Layer 0 sees the letters of a word and never its sentence, so there all uses of a word
are the same; the layers above it are what context adds. `mean_vectors` makes one
vector a word of those, as Bommasani et al. (2020) pool them, with the mean over uses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np

from elmojax.embedding.embedder import Embedder
from elmojax.errors import InputError
from elmojax.text.uses import Use


class UseVectors(NamedTuple):
    """Vectors of uses of words; float32."""

    context: np.ndarray
    """[uses, vector]: of one layer, or the mean of layers 1 and up."""
    static: np.ndarray
    """[uses, vector]: of layer 0, which knows no context."""


def use_vectors(
    embedder: Embedder, uses: Sequence[Use], layer: int | None = None
) -> UseVectors:
    """The vectors of words in their sentences, each sentence read once.

    Args:
      embedder: one that keeps all layers, as it does by default.
      uses: those of one sentence stand together.
      layer: of the vectors in context; None = the mean of layers 1 and up.

    Raises:
      InputError: if the model has no such layer.
    """
    top = embedder.params.config.lstm.layers
    if layer is not None and not 0 <= layer <= top:
        raise InputError(f"--layer is {layer}, and the model has layers 0 to {top}.")
    groups = [list(group) for _, group in groupby(uses, lambda use: use.words)]
    sentences = (group[0].words for group in groups)
    context, static = [], []
    for group, vectors in zip(groups, embedder.embed_sentences(sentences), strict=True):
        here = vectors[:, [use.position for use in group]]
        context.append(here[1:].mean(axis=0) if layer is None else here[layer])
        static.append(here[0])
    return UseVectors(np.concatenate(context), np.concatenate(static))


def word_vectors(embedder: Embedder, words: Sequence[str]) -> np.ndarray:
    """Layer 0 of words, which no sentence changes: float32 [words, vector].

    `embedder` keeps all layers, as it does by default.
    """
    lists = (words[start : start + 100] for start in range(0, len(words), 100))
    return np.concatenate([each[0] for each in embedder.embed_sentences(lists)])


def mean_vectors(
    embedder: Embedder, sentences: Iterable[Sequence[str]], words: Sequence[str]
) -> np.ndarray:
    """The mean vector of each word over its places in sentences: float64 [words,
    vector]; NaN for one that is nowhere.

    Memory is that of the result and a few batches, whatever the number of sentences.

    Args:
      embedder: with layers "top" or "mix".
      sentences: lists of words, read once.
      words: each once.
    """
    row_of = {word: number for number, word in enumerate(words)}
    width = 2 * embedder.params.config.lstm.projection
    sums, counts = np.zeros((len(words), width)), np.zeros(len(words), np.int64)
    ahead: list[int] = []  # of words that were read and have no vectors yet

    def read() -> Iterator[Sequence[str]]:
        for sentence in sentences:
            ahead.extend(row_of.get(word, -1) for word in sentence)
            yield sentence

    for block in embedder.blocks(read()):
        total = sum(block.sizes)
        ids = np.array(ahead[:total], np.int64)
        del ahead[:total]
        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0) :]
        if len(order):
            here, first, times = np.unique(
                ids[order], return_index=True, return_counts=True
            )
            vectors = block.vectors[order]
            sums[here] += np.add.reduceat(vectors, first, axis=0, dtype=np.float64)
            counts[here] += times
    with np.errstate(invalid="ignore"):
        sums /= counts[:, None]
    return sums


def cosines(vector: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Of a vector [vector] with each of [n, vector]: float64 [n]; 0 for zeros."""
    one, others = vector.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(others, axis=-1) * np.linalg.norm(one)
    return (others @ one) / np.where(lengths == 0, 1, lengths)


class Neighbour(NamedTuple):
    """Something that is near."""

    number: int
    """Its number among what was compared."""
    cosine: float


def nearest(vector: np.ndarray, vectors: np.ndarray, k: int) -> list[Neighbour]:
    """The up to `k` of [n, vector] with the greatest cosines, the greatest first."""
    each = cosines(vector, vectors)
    order = np.argsort(-each, kind="stable")[:k]
    return [Neighbour(int(index), float(each[index])) for index in order]


Method = Literal["pca", "tsne", "umap"]
PACKAGES = {"tsne": ("sklearn", "scikit-learn"), "umap": ("umap", "umap-learn")}
LEAST = 5
"""Vectors that neighbour embeddings need."""


class Points(NamedTuple):
    """Vectors in a plane."""

    points: np.ndarray
    """float64 [n, 2]."""
    axes: tuple[str, str]
    """What the two axes are."""


def require_method(method: Method) -> None:
    """`InputError` where the library of a method is not installed."""
    module, package = PACKAGES.get(method, ("numpy", "numpy"))
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"--method {method} needs {package}: pip install 'elmojax[{method}]'; "
            "--method pca needs nothing more."
        )


def project(vectors: np.ndarray, method: Method = "pca") -> Points:
    """[n, vector] in a plane, the same every time.

    Raises:
      InputError: if the library of a method is not installed, or the vectors are too
        few for it.
    """
    require_method(method)
    vectors = vectors.astype(np.float64)
    if method == "pca":
        return principal_components(vectors)
    if len(vectors) < LEAST:
        raise InputError(
            f"--method {method} needs at least {LEAST} uses, and there are "
            f"{len(vectors)}; take --method pca."
        )
    reducer: Any
    if method == "tsne":
        from sklearn.manifold import TSNE

        near = min(30.0, (len(vectors) - 1) / 3)
        reducer = TSNE(perplexity=near, init="pca", metric="cosine", random_state=0)
    else:
        from umap import UMAP

        near = min(15, len(vectors) - 1)
        reducer = UMAP(n_neighbors=near, init="pca", metric="cosine", random_state=0)
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    points = np.asarray(reducer.fit_transform(vectors), np.float64)
    return Points(points, (f"{name} 1", f"{name} 2"))


def principal_components(vectors: np.ndarray) -> Points:
    """The two directions in which vectors differ most; the axes name their shares."""
    centred = vectors - vectors.mean(axis=0)
    rotated, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    points, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    for axis in range(min(2, len(sizes))):
        # The sign is free: what weighs most in a direction is positive.
        weights = directions[axis]
        sign = np.sign(weights[np.abs(weights).argmax()]) or 1.0
        points[:, axis] = sign * rotated[:, axis] * sizes[axis]
        shares[axis] = sizes[axis] ** 2 / max((sizes**2).sum(), 1e-300)
    one, other = (
        f"principal component {axis + 1} ({share:.0%} of the variance)"
        for axis, share in enumerate(shares)
    )
    return Points(points, (one, other))
