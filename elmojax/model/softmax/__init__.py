"""The softmax over the vocabulary: adaptive (Grave et al. 2017) or full, and exact.

Parameters are those of `Softmax`; hidden is [positions, projection], targets are word
ids [positions]; logarithms are natural and float32. Two forms give the same numbers:
`Form.REFERENCE`, short and dense, [positions, vocabulary] in memory, and `Form.BLOCKS`,
which trains: see `blocks`. `sampled` has the sampled softmax of bilm-tf, a training
loss and no probability.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from elmojax.errors import InputError
from elmojax.model.precision import Dtype
from elmojax.model.softmax import reference
from elmojax.model.softmax.parameters import Softmax as Softmax
from elmojax.model.softmax.parameters import Static, checked, gradients_as, scaled
from elmojax.model.softmax.parameters import check_cutoffs as check_cutoffs
from elmojax.model.softmax.parameters import edges_of as edges_of
from elmojax.model.softmax.reference import log_prob_all as log_prob_all
from elmojax.model.softmax.sharded import sharded_loss_and_gradients
from elmojax.model.softmax.tiles import TILE
from elmojax.shapes import Params, PerPosition, Positions, Targets


class Form(enum.Enum):
    """How the log-probability of targets is computed."""

    REFERENCE = "reference"
    """All words of all positions; differentiated by JAX."""
    BLOCKS = "blocks"
    """Each cluster for its own positions, in blocks."""


def log_prob(
    params: Params,
    hidden: Positions,
    targets: Targets,
    *,
    form: Form = Form.BLOCKS,
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> PerPosition:
    """Log-probability of each target, [positions]; differentiable.

    Args:
      params: of `Softmax`, one dict of arrays.
      targets: word ids; one that is outside the vocabulary raises `InputError`, and
        inside a compiled program gives NaN.
      mesh: with axes `data`, which positions are split over, and `model`, which the
        words of clusters are split over; None = one device.
      dtype: of matrix products; None = that of the weights. Sums, results and
        gradients are float32, or as what they belong to.
    """
    params, hidden, targets = checked(params, hidden, targets)
    if form is Form.REFERENCE:
        return reference.log_prob(params, hidden, targets, dtype)
    return _log_prob((mesh, dtype), params, hidden, targets)


def _run(static: Static, *arguments: Any, gradient: bool) -> Any:
    mesh, dtype = static
    return sharded_loss_and_gradients(mesh, *arguments, gradient=gradient, dtype=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_prob(
    static: Static, params: Params, hidden: Array, targets: Array
) -> PerPosition:
    ones = jnp.ones(hidden.shape[0], jnp.float32)
    run = partial(_run, static, gradient=False)
    return -run(params, hidden, targets, ones)[1]


def _log_prob_forward(
    static: Static, params: Params, hidden: Array, targets: Array
) -> tuple[Array, Any]:
    return _log_prob(static, params, hidden, targets), (params, hidden, targets)


def _log_prob_backward(
    static: Static, saved: Any, cotangent: Array
) -> tuple[Params, Array, None]:
    params, hidden, targets = saved
    *_, d_params, d_hidden = _run(
        static, params, hidden, targets, -cotangent, gradient=True
    )
    return *gradients_as(params, hidden, d_params, d_hidden), None


_log_prob.defvjp(_log_prob_forward, _log_prob_backward)


def negative_log_likelihood(
    params: Params,
    hidden: Positions,
    targets: Targets,
    weights: PerPosition,
    *,
    form: Form = Form.BLOCKS,
    mesh: Mesh | None = None,
    dtype: Dtype = None,
) -> tuple[Array, PerPosition]:
    """Sum of -weight * log p(target), and -log p of each position.

    What trains: its gradients by params, hidden and weights are made in the same pass
    as the sum. No gradient flows through the second result; `log_prob` has one.
    Arguments as for `log_prob`; every target is counted exactly, whatever the mix of
    clusters.
    """
    params, hidden, targets = checked(params, hidden, targets)
    weights = jnp.asarray(weights, jnp.float32)
    if form is Form.REFERENCE:
        each = -reference.log_prob(params, hidden, targets, dtype)
        total = (each * weights).sum()
    else:
        total, each = _nll((mesh, dtype), params, hidden, targets, weights)
    return total, lax.stop_gradient(each)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nll(
    static: Static, params: Params, hidden: Array, targets: Array, weights: Array
) -> tuple[Array, Array]:
    run = partial(_run, static, gradient=False)
    return run(params, hidden, targets, weights)[:2]


def _nll_forward(
    static: Static, params: Params, hidden: Array, targets: Array, weights: Array
) -> tuple[tuple[Array, Array], Any]:
    total, each, d_params, d_hidden = _run(
        static, params, hidden, targets, weights, gradient=True
    )
    return (total, each), (*gradients_as(params, hidden, d_params, d_hidden), each)


def _nll_backward(
    static: Static, saved: Any, cotangents: tuple[Array, Array]
) -> tuple[Params, Array, None, Array]:
    d_params, d_hidden, d_weights = scaled(saved, cotangents[0])
    return d_params, d_hidden, None, d_weights


_nll.defvjp(_nll_forward, _nll_backward)


def predict(params: Params, hidden: Positions, k: int = 1) -> tuple[Array, Array]:
    """The k most probable words of each position: ids and log-probabilities.

    Both [positions, k], falling; equal probabilities by id. Exact, a block of positions
    at a time. Raises `InputError` unless k is between 1 and the vocabulary size.
    """
    vocabulary, positions = edges_of(params)[-1], hidden.shape[0]
    if not 1 <= k <= vocabulary:
        raise InputError(
            f"predict gives the k best of {vocabulary} words; k is {k}: choose one "
            f"between 1 and {vocabulary}."
        )
    size = max(1, min(positions, TILE // vocabulary))

    def best(block: Array) -> tuple[Array, Array]:
        log_probs, ids = lax.top_k(log_prob_all(params, block), k)
        return ids, log_probs

    blocks = jnp.pad(jnp.asarray(hidden), ((0, -positions % size), (0, 0)))
    ids, log_probs = lax.map(best, blocks.reshape(-1, size, hidden.shape[-1]))
    return ids.reshape(-1, k)[:positions], log_probs.reshape(-1, k)[:positions]
