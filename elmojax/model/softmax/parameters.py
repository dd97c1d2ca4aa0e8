"""Parameters of the softmax over the vocabulary, and what fits them.

Words are numbered by falling count. The head holds the words below the first cutoff
and one entry a tail cluster; a word of tail cluster k costs its entry in the head and
a softmax inside the cluster, over hidden vectors narrowed by div_value ** k (Grave et
al. 2017, "Efficient softmax approximation for GPUs"). Without cutoffs the head holds
every word: the full softmax.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.errors import InputError
from elmojax.model.precision import Dtype
from elmojax.shapes import Params


class Softmax(nn.Module):
    """Parameters of the head and the tails; `init` with hidden [..., projection].

    kernel [first cutoff + tails, projection], bias [the same] (if there is one); of
    tail k: down_k [projection, narrow] and up_k [words of the cluster, narrow], one row
    a word.
    """

    vocabulary: int
    cutoffs: tuple[int, ...] = ()
    div_value: float = 4.0
    bias: bool = True

    def setup(self) -> None:
        check_cutoffs(self.cutoffs, self.vocabulary)

    @nn.compact
    def __call__(self, hidden: Array) -> dict[str, Array]:
        dim = hidden.shape[-1]
        edges = (*self.cutoffs, self.vocabulary)
        entries = edges[0] + len(self.cutoffs)
        start = nn.initializers.normal(dim**-0.5)
        params = {"kernel": self.param("kernel", start, (entries, dim), jnp.float32)}
        if self.bias:
            zeros = nn.initializers.zeros
            params["bias"] = self.param("bias", zeros, (entries,), jnp.float32)
        for k, (low, high) in enumerate(itertools.pairwise(edges)):
            narrow = max(1, int(dim // self.div_value ** (k + 1)))
            down, up = (dim, narrow), (high - low, narrow)
            params[f"down_{k}"] = self.param(f"down_{k}", start, down, jnp.float32)
            start_up = nn.initializers.normal(narrow**-0.5)
            params[f"up_{k}"] = self.param(f"up_{k}", start_up, up, jnp.float32)
        return params


def check_cutoffs(cutoffs: tuple[int, ...], vocabulary: int) -> None:
    """Raises `InputError` unless cutoffs increase inside the vocabulary."""
    edges = (0, *cutoffs, vocabulary)
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise InputError(
            f"Softmax cutoffs {tuple(cutoffs)} must increase strictly and lie between "
            f"0 and the vocabulary of {vocabulary} words; choose others, or none."
        )


def edges_of(params: Params) -> tuple[int, ...]:
    """Where clusters end: first cutoff, ..., vocabulary size."""
    tails = sum(name.startswith("up_") for name in params)
    sizes = [params[f"up_{k}"].shape[0] for k in range(tails)]
    return tuple(itertools.accumulate([params["kernel"].shape[0] - tails, *sizes]))


def rounded(params: Params, dtype: Dtype) -> Params:
    """Parameters as products take them: matrices in `dtype` (None = as they are)."""
    return {
        name: leaf if name == "bias" else leaf.astype(dtype or leaf.dtype)
        for name, leaf in params.items()
    }


def checked(params: Params, hidden: Any, targets: Any) -> tuple[Params, Array, Array]:
    """Arguments of a softmax as arrays of JAX, those of positions in shards.

    Raises `InputError` for shapes that do not go together and for a target outside the
    vocabulary. Inside a compiled program numbers cannot be looked at; there the
    log-probability of such a target, and every gradient that it takes part in, is NaN.
    """
    width, shape = params["kernel"].shape[1], np.shape(hidden)
    fits = len(shape) in (2, 3) and shape[-1] == width
    if not fits or np.shape(targets) != shape[:-1]:
        raise InputError(
            f"The softmax takes hidden [positions, {width}] and targets [positions], "
            f"not {list(shape)} and {list(np.shape(targets))}; put positions on one "
            "axis, or on one for each shard of them."
        )
    _check_targets(targets, edges_of(params)[-1])
    params, hidden, targets = jax.tree.map(jnp.asarray, (params, hidden, targets))
    if targets.dtype == jnp.int64:  # of NumPy, under x64
        targets = targets.astype(jnp.int32)
    return (
        (params, hidden, targets)
        if len(shape) == 3
        else (params, hidden[None], targets[None])
    )


def _check_targets(targets: Any, vocabulary: int) -> None:
    if isinstance(targets, jax.core.Tracer) or not np.size(targets):
        return
    numbers = np.asarray(targets)
    if numbers.dtype.kind not in "iu":
        raise InputError(f"Targets are word ids, integers, and not {numbers.dtype}.")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= vocabulary:
        raise InputError(
            f"Target {least if least < 0 else most} lies outside the vocabulary of "
            f"{vocabulary} words (0 to {vocabulary - 1}); were the targets numbered by "
            "another vocabulary?"
        )
