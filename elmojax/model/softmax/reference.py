"""The softmax written out: short, dense, [positions, vocabulary]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from elmojax.model.precision import Dtype, contract
from elmojax.model.softmax.parameters import edges_of, rounded, tails_of
from elmojax.shapes import Params, PerPosition, Positions, Targets


def log_prob_all(params: Params, hidden: Positions, dtype: Dtype = None) -> Array:
    """Log-probability of every word, natural logarithm, float32.

    Takes hidden [positions, projection] and gives [positions, vocabulary]; memory is
    positions x vocabulary. `dtype` is that of the products, None that of the weights.
    """
    params = rounded(params, dtype)
    kernel = params["kernel"]
    logits = contract("pd,vd->pv", hidden, kernel, kernel.dtype)
    if "bias" in params:
        logits = logits + params["bias"].astype(jnp.float32)[None]
    head = jax.nn.log_softmax(logits)
    first = edges_of(params)[0]
    parts = [head[:, :first]]
    for k in range(tails_of(params)):
        down, up = params[f"down_{k}"], params[f"up_{k}"]
        narrow = contract("pd,dn->pn", hidden, down, down.dtype)
        inside = jax.nn.log_softmax(contract("pn,vn->pv", narrow, up, up.dtype))
        parts.append(head[:, first + k, None] + inside)
    return jnp.concatenate(parts, axis=-1)


def log_prob(
    params: Params, hidden: Positions, targets: Targets, dtype: Dtype = None
) -> PerPosition:
    """Log-probability of each target, out of that of all words; NaN for no word."""
    every = log_prob_all(params, hidden, dtype)
    valid = (targets >= 0) & (targets < every.shape[-1])
    at = jnp.where(valid, targets, 0)[:, None]
    # A factor, so that the gradient is NaN too.
    return jnp.take_along_axis(every, at, axis=-1)[:, 0] * jnp.where(valid, 1, jnp.nan)
