"""A model, put together from arrays under their published names or taken apart.

HDF5, safetensors and TF-Hub's modules hold the same arrays (`published` has names and
shapes); how an array is read is all that their readers bring along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import CharCnnConfig
from elmojax.embedding.functions import encode_words
from elmojax.errors import InputError
from elmojax.formats.published import (
    MODEL_PART,
    Entry,
    Options,
    Shape,
    Shapes,
    config_of,
    layout,
)
from elmojax.model.bilm import ElmoParams, Placement, placements, tree_shapes
from elmojax.model.lstm import LstmState
from elmojax.shapes import Params

HEAD_NAMES = {"kernel": "softmax/W", "bias": "softmax/b"}

Stored = Literal["float32", "float16"]
"""Data type of the numbers in a file."""
SAME = "Do all files belong to the same model?"


# --- reading --------------------------------------------------------------------------


class Arrays:
    """Arrays of a file by name, taken one by one; an `InputError` names both."""

    def __init__(
        self,
        shapes: Shapes,
        read: Callable[[str], np.ndarray],
        where: object,
        options: object,
    ) -> None:
        """
        Args:
          shapes: of all that are there; None for what is no array of floats.
          read: gives one of them.
          where: names the file.
          options: names what says which shapes they should have.
        """
        self.shapes = shapes
        self.where, self._read, self._options = where, read, options
        self._left = set(shapes)

    @classmethod
    def of(
        cls, arrays: dict[str, np.ndarray], where: object, options: object
    ) -> Arrays:
        """Those that were read already."""
        shapes = {
            name: array.shape if jnp.issubdtype(array.dtype, jnp.floating) else None
            for name, array in arrays.items()
        }
        return cls(shapes, arrays.__getitem__, where, options)

    def take(self, name: str, shape: Shape) -> np.ndarray:
        """float32 of this shape, finite; it may be a view of the file."""
        if name not in self.shapes:
            raise InputError(
                f"{self.where} has no array {name}, which {self._options} calls for. "
                f"{SAME}"
            )
        there = self.shapes[name]
        if there is None:
            raise InputError(
                f"{self.where}: {name} does not hold floating-point numbers."
            )
        if there != shape:
            raise InputError(
                f"{self.where}: {name} is {list(there)}, but {self._options} calls for "
                f"{list(shape)}. {SAME}"
            )
        self._left.discard(name)
        with np.errstate(over="ignore"):
            array = np.asarray(self._read(name), np.float32)
        if not np.isfinite(array).all():
            raise InputError(
                f"{self.where}: {name} has values that are not finite (NaN or "
                "infinite); the model that was saved had diverged, or the file is "
                "damaged."
            )
        return array

    def end(self, part: Callable[[str], object] = lambda name: True) -> None:
        """`InputError` if an array was not taken whose name is that of a part."""
        if more := sorted(filter(part, self._left)):
            raise InputError(
                f"{self.where} holds {more[0]}, but the model of {self._options} has "
                f"no such part. {SAME}"
            )


def assemble(options: Options, arrays: Arrays, sharding: Placement) -> ElmoParams:
    """A model of arrays under their published names, wherever they are.

    Args:
      options: what options.json says.
      arrays: of the model, and others.
      sharding: as for `load_hdf5`.
    """
    config = config_of(options, arrays.shapes)
    shardings = placements(config, sharding)
    shapes = dict(tree_shapes(config))
    shapes["state"] = vars(LstmState.zeros(config.lstm))
    tree = {
        part: {name: np.zeros(leaf.shape, np.float32) for name, leaf in leaves.items()}
        for part, leaves in shapes.items()
    }
    if config.lstm.dim == config.lstm.projection:  # none, unless a file has one
        for layer in range(config.lstm.layers):
            tree["lstm"][f"projection_{layer}"][:] = np.eye(config.lstm.dim)
    for entry in layout(config, arrays.shapes):
        array = arrays.take(entry.name, entry.shape)
        if entry.leaf is not None:
            part, name = entry.leaf
            target = tree[part][name]
            if entry.direction is not None:
                target = target[entry.direction]
            target[...] = array.reshape(target.shape)
    arrays.end(MODEL_PART.match)
    placed = {
        part: to_jax(leaves, shardings.get(part)) for part, leaves in tree.items()
    }
    return ElmoParams(
        placed["encoder"], placed["lstm"], LstmState(**placed["state"]), config
    )


def to_jax(
    leaves: dict[str, np.ndarray], shardings: dict[str, Any] | None = None
) -> dict[str, jax.Array]:
    """Leaf by leaf, so that both copies are never there as a whole."""
    where = shardings or {}
    return {n: jax.device_put(leaves.pop(n), where.get(n)) for n in list(leaves)}


def head_of(arrays: Arrays, projection: int) -> Params:
    """`load_head` of arrays under their published names, wherever they are."""
    prefix = "adaptive_softmax/"
    found = [name for name in arrays.shapes if name.startswith(prefix)]
    names = dict(HEAD_NAMES)
    if found:
        names = {"kernel": f"{prefix}kernel"}
        names |= {name.removeprefix(prefix): name for name in found}
    shapes = {key: arrays.shapes.get(name) or (0,) for key, name in names.items()}
    shapes["kernel"] = (shapes["kernel"][0], projection)
    if "bias" in names:  # an adaptive softmax may have none
        shapes["bias"] = shapes["bias"][:1]
    head = {key: arrays.take(name, shapes[key]) for key, name in names.items()}
    if "bias" in head and len(head["kernel"]) != len(head["bias"]):
        raise InputError(
            f"{arrays.where}: {names['kernel']} has {len(head['kernel'])} rows and "
            f"{names['bias']} {len(head['bias'])}; they must be the same words."
        )
    return to_jax(head)


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
