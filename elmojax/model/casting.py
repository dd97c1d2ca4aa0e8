"""The precision of a loaded model: that of its weights, which products take over."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from elmojax.errors import InputError

Precision = Literal["float32", "bf16"]
DTYPES = {"float32": jnp.float32, "bf16": jnp.bfloat16}
Tree = TypeVar("Tree")


def cast(params: Tree, precision: Precision) -> Tree:
    """Parameters whose matrix products run in another precision.

    Args:
      params: `ElmoParams`, or any tree of parameters with their names.
      precision: "bf16" makes every array bfloat16 but the biases: products then round
        their factors to bfloat16. "float32" makes all of them float32; digits that were
        rounded away do not come back. Sums, gates, cells, clips and the LSTM state are
        float32 in both, and so are the vectors.

    Returns:
      The same tree; arrays that have the dtype already are the same arrays. Pure: the
      gradient of `embed(cast(params, "bf16"), ...)` in float32 `params` is float32.

    Raises:
      InputError: for another precision.
    """
    if precision not in DTYPES:
        raise InputError(f"precision is {precision!r}; it must be float32 or bf16.")

    def of(path: Any, leaf: Any) -> Any:
        bias = "bias" in jax.tree_util.keystr(path[-1:])
        dtype = jnp.float32 if bias else DTYPES[precision]
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(of, params)


def precision_of(weights: Any) -> str:
    """The precision of a tree of parameters: "bf16", or the name of the dtype of those
    that are no biases (the first of several)."""
    names = {jnp.dtype(dtype).name: name for name, dtype in DTYPES.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if "bias" not in jax.tree_util.keystr(path[-1:]):
            return names.get(leaf.dtype.name, leaf.dtype.name)
    return "float32"
