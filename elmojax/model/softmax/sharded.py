"""The fast form on a mesh: `data` splits positions, `model` the words of clusters."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elmojax.model.precision import Dtype
from elmojax.model.softmax.blocks import Axes, loss_and_gradients
from elmojax.model.softmax.parameters import edges_of
from elmojax.model.softmax.tiles import filled
from elmojax.shapes import Params

AXES = Axes("data", "model")


def sharded_loss_and_gradients(
    mesh: Mesh | None,
    params: Params,
    hidden: Array,
    targets: Array,
    weights: Array,
    *,
    gradient: bool,
    dtype: Dtype = None,
) -> tuple[Array, Array, Params, Array]:
    """Weighted sum, -log p of each target, gradients by params and by hidden.

    Tables of words are filled up to what `model` divides, and positions to what
    `data` divides; the filling is taken off again. mesh None = on one device.
    """
    edges, positions = edges_of(params), hidden.shape[0]
    run = partial(loss_and_gradients, edges=edges, gradient=gradient, dtype=dtype)
    if mesh is None:
        each, d_params, d_hidden = run(params, hidden, targets, weights)
        return (each * weights).sum(), each, d_params, d_hidden
    split, model = mesh.shape["data"], mesh.shape["model"]
    specs = {n: P() if n.startswith("down_") else P("model") for n in params}
    padded = {
        n: leaf if specs[n] == P() else filled(leaf, model)
        for n, leaf in params.items()
    }
    rows = P("data")

    def share(*arguments: Any) -> tuple[Array, Array, Params, Array]:
        each, d_params, d_hidden = run(*arguments, axes=AXES)
        total = lax.psum((each * arguments[-1]).sum(), "data")
        return total, each, d_params, d_hidden

    outputs = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(specs, rows, rows, rows),
        out_specs=(P(), rows, specs if gradient else P(), rows),
        check_vma=False,
    )(padded, *(filled(array, split) for array in (hidden, targets, weights)))
    total, each, d_params, d_hidden = outputs
    d_params = {n: leaf[: len(params[n])] for n, leaf in d_params.items()}
    return total, each[:positions], d_params, d_hidden[:positions]
