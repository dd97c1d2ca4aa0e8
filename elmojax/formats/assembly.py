"""A model, put together from arrays under their published names or taken apart.

HDF5, safetensors and TF-Hub's modules hold the same arrays (`published` has names and
shapes); how an array is read is all that their readers bring along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig
from elmojax.embedding.functions import encode_words
from elmojax.errors import InputError
from elmojax.formats.published import (
    Entry,
    Options,
    Shapes,
    check_shapes,
    config_of,
    layout,
)
from elmojax.model.bilm import ElmoParams, Placement, placements, tree_shapes
from elmojax.model.state import LstmState
from elmojax.shapes import Params

Read: TypeAlias = Callable[[str, np.ndarray], None]
"""Reads the array of a name into one of its shape."""

HEAD_NAMES = {"kernel": "softmax/W", "bias": "softmax/b"}

Stored = Literal["float32", "float16"]
"""Data type of the numbers in a file."""


# --- reading --------------------------------------------------------------------------


def assemble(
    options: Options, found: Shapes, read: Read, weights: object, sharding: Placement
) -> ElmoParams:
    """A model of arrays under their published names, wherever they are.

    Args:
      options: what options.json says.
      found: the arrays that are there.
      read: reads one of them into a float32 array of its shape.
      weights: names their file in an `InputError`.
      sharding: as for `load_hdf5`.
    """
    config = config_of(options, found)
    entries = layout(config, found)
    check_shapes(entries, found, weights, options.where)
    places = placements(config, sharding)
    arrays = _allocate(config)
    for entry in entries:
        if entry.leaf is not None:
            part, name = entry.leaf
            target = arrays[part][name]
            if entry.direction is not None:
                target = target[entry.direction]
            read(entry.name, target.reshape(entry.shape))
    tree = {part: to_jax(leaves, places.get(part)) for part, leaves in arrays.items()}
    return ElmoParams(tree["encoder"], tree["lstm"], LstmState(**tree["state"]), config)


def _allocate(config: ElmoConfig) -> dict[str, dict[str, np.ndarray]]:
    """Arrays to read into; a projection that no file holds is the identity."""
    shapes = dict(tree_shapes(config))
    shapes["state"] = vars(LstmState.zeros(config.lstm))
    arrays = {
        part: {name: np.zeros(leaf.shape, np.float32) for name, leaf in leaves.items()}
        for part, leaves in shapes.items()
    }
    if config.lstm.dim == config.lstm.projection:
        for layer in range(config.lstm.layers):
            arrays["lstm"][f"projection_{layer}"][:] = np.eye(config.lstm.dim)
    return arrays


def to_jax(
    leaves: dict[str, np.ndarray], places: dict[str, Any] | None = None
) -> dict[str, jax.Array]:
    """Leaf by leaf, so that both copies are never there as a whole."""
    places = places or {}
    return {n: jax.device_put(leaves.pop(n), places.get(n)) for n in list(leaves)}


def head_of(found: Shapes, read: Read, where: object, projection: int) -> Params:
    """`load_head` of arrays under their published names, wherever they are."""
    prefix = "adaptive_softmax/"
    names = {n.removeprefix(prefix): n for n in found if n.startswith(prefix)}
    names = names or HEAD_NAMES
    needed: dict[str, tuple[int | None, ...]] = {"kernel": (None, projection)}
    if "bias" in names:  # an adaptive softmax may have none
        needed["bias"] = (None,)
    for name, wanted in needed.items():
        shape = found.get(names.get(name, ""))
        if shape is None or len(shape) != len(wanted) or shape[1:] != wanted[1:]:
            raise InputError(
                f"{where} has no {names.get(name, prefix + name)} with "
                f"{len(wanted)} axes that fits a projection of {projection}."
            )
    arrays = {k: np.zeros(found[n] or (), np.float32) for k, n in names.items()}
    for name, into in arrays.items():
        read(names[name], into)
    if "bias" in arrays and len(arrays["kernel"]) != len(arrays["bias"]):
        raise InputError(
            f"{where}: {names['kernel']} has {len(arrays['kernel'])} rows and "
            f"{names['bias']} {len(arrays['bias'])}; they must be the same words."
        )
    return to_jax(arrays)


def require_finite(array: np.ndarray, name: str, where: object) -> None:
    if not np.isfinite(array).all():
        raise InputError(
            f"{where}: {name} has values that are not finite (NaN or infinite); the "
            "model that was saved had diverged, or the file is damaged."
        )


# --- writing --------------------------------------------------------------------------


def published_arrays(params: ElmoParams) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a model under their published names."""
    state = vars(params.initial_state)
    if any(np.any(leaf) for leaf in state.values()):
        if params.initial_state.cell.ndim != 3:
            raise InputError(
                "params.initial_state is that of a batch; only one for all sentences, "
                "without the batch axis, can be saved."
            )
        names = {f"initial_state/{name}" for name in state}
    else:
        names = set()
    parts = {"encoder": params.encoder, "lstm": params.lstm, "state": state}
    written = layout(params.config)
    entries = written + [e for e in layout(params.config, names) if e.name in names]
    for entry in entries:
        if entry.leaf is None:
            yield entry.name, _for_others(params, entry)
            continue
        part, name = entry.leaf
        leaf = parts[part][name]
        half = leaf if entry.direction is None else leaf[entry.direction]
        yield entry.name, np.asarray(half, np.float32).reshape(entry.shape)


def _for_others(params: ElmoParams, entry: Entry) -> np.ndarray:
    """Arrays that bilm-tf or AllenNLP need and our parameters do not have."""
    if isinstance(params.config.encoder, CharCnnConfig):  # CNN_proj: the identity
        return np.eye(*entry.shape) if len(entry.shape) == 2 else np.zeros(entry.shape)
    return np.asarray(encode_words(params, jnp.arange(1, entry.shape[0] + 1)))


def head_arrays(head: Params) -> dict[str, np.ndarray]:
    """The data sets of softmax.hdf5."""
    if set(head) <= set(HEAD_NAMES):  # bilm-tf's has a bias, if need be of zeros
        head = {"bias": np.zeros(len(head["kernel"]), np.float32), **head}
        return {HEAD_NAMES[name]: np.asarray(leaf) for name, leaf in head.items()}
    return {f"adaptive_softmax/{name}": np.asarray(leaf) for name, leaf in head.items()}


def storable(name: str, array: np.ndarray, dtype: Stored = "float32") -> np.ndarray:
    """An array as it is stored; `InputError` if it is not finite then."""
    with np.errstate(over="ignore"):
        stored = np.asarray(array, dtype)
    if not np.isfinite(stored).all():
        what = (
            "numbers beyond float16, whose largest is 65,504; store this model in "
            "float32"
            if np.isfinite(array).all()
            else "values that are not finite (NaN or infinite): this model has diverged"
        )
        raise InputError(f"{name} has {what}. Nothing was saved.")
    return stored
