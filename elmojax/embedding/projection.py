"""Vectors as points of a plane, for pictures."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, NamedTuple

import numpy as np

from elmojax.errors import InputError

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
