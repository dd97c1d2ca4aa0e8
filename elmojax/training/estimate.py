"""What a run needs before it begins: memory a device, operations, least time.

Nothing is allocated. State and batch are worked out as shapes, laid out by the sharding
table, and the very training step of a run is compiled for them; its compiler says how
much memory it takes. A device's share does not depend on how many others hold shares
alike, so the step may be compiled for fewer devices along `data` than the run has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from elmojax.config import TrainConfig
from elmojax.model.dropout import row_keys
from elmojax.model.lstm import LstmState
from elmojax.text.batches import steps_of
from elmojax.text.capacity import Sizes
from elmojax.training import sparse
from elmojax.training.flops import Flops
from elmojax.training.guard import Guard
from elmojax.training.optim import make_optimizer
from elmojax.training.reading import (
    Reading,
    StepSizes,
    batch_shapes,
    step_sizes,
    token_flops,
)
from elmojax.training.sharding import batch_shardings, shardings
from elmojax.training.step import (
    LanguageModel,
    TrainState,
    compile_train_step,
    init_state,
    loss,
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: int
    optimizer: int
    carry: int
    """LSTM state of its rows."""
    batch: int
    temporary: int
    """What the compiled step takes besides its arguments and results."""
    activations: int
    """What the forward pass keeps for the backward pass, most of `temporary`."""
    gradients: int
    """The gradient of every parameter that a step moves, in `temporary` too."""
    total: int
    """Arguments, results and temporary memory; results that lie where arguments lay
    count once."""


@dataclass(frozen=True)
class Estimate:
    """A run before it begins."""

    config: TrainConfig
    """With every automatic choice made."""
    parameters: dict[str, int]
    """How many numbers the encoder, the LSTM and the softmax have."""
    memory: Memory
    flops: Flops
    """For one position of running text."""
    words: float
    """Distinct words that a step encodes."""
    tables: tuple[tuple[int, ...], ...]
    """Shapes of a device's tables of words: rows, and columns of characters."""
    moved: int
    """Bytes that the update of one device reads and writes in a step."""
    data: int
    """Devices along `data`."""
    devices: int
    steps: int


def estimate(
    config: TrainConfig, reading: Reading, mesh: Mesh, data: int, dtype: Any
) -> Estimate:
    """What a run needs.

    Args:
      config: complete, with rows that divide.
      mesh: what the step is compiled for; as long as the run's along `data`, or
        shorter.
      data: devices of the run along `data`.
      dtype: of matrix products.

    Raises:
      InputError: for what does not divide over the mesh.
    """
    share = replace(config, rows=config.rows // data * mesh.shape["data"])
    sizes = step_sizes(reading, share, mesh.shape["data"], config.rows)
    plan = _plan(share, reading, sizes, mesh, dtype)
    params = plan.state.params
    words = sizes.words * config.rows / share.rows
    moved, moments = _moved(plan)
    pairs = zip(sizes.sizes.words, sizes.tables, strict=True)
    tables = tuple((size, columns) if columns else (size,) for size, columns in pairs)
    epochs = steps_of(reading.positions, config.rows, config.window, config.epochs)
    return Estimate(
        config,
        {name: _count(params.get(name, {})) for name in ("encoder", "lstm", "head")},
        _memory(plan, moved),
        token_flops(share, reading, sizes),
        words,
        tables,
        2 * (2 * moved + moments),
        data,
        data * mesh.shape["model"],
        config.steps or epochs,
    )


@dataclass(frozen=True)
class _Plan:
    """A step of a run as shapes with places on a mesh; no array among them."""

    config: TrainConfig
    lm: LanguageModel
    optimizer: optax.GradientTransformation
    state: TrainState
    batch: Any
    sizes: StepSizes


def _plan(
    config: TrainConfig, reading: Reading, sizes: StepSizes, mesh: Mesh, dtype: Any
) -> _Plan:
    head, model = config.head, config.model
    lm = LanguageModel(model, reading.vocabulary, head, config.dropout, dtype, mesh)
    # How long the run is changes no shape.
    optimizer = make_optimizer(config.optimizer, 1, config.freeze_steps)
    state = jax.eval_shape(partial(init_state, lm, optimizer, config.rows, config.seed))
    batch, pieces = sizes.batch, config.accumulate > 1
    places = batch_shardings(mesh, batch, pieces)
    return _Plan(
        config,
        lm,
        optimizer,
        _placed(state, shardings(mesh, state)),
        _placed(batch, places),
        sizes,
    )


def _placed(tree: Any, places: Any) -> Any:
    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree, places)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    """Of one device's share of a tree of shapes with places."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves
    )


def _moved(plan: _Plan) -> tuple[int, int]:
    """Bytes of the parameters that a step moves, and of their moments."""
    learned = (plan.state.params, plan.state.optimizer)
    if plan.batch.negatives is not None:
        rows = jax.ShapeDtypeStruct(plan.batch.negatives.words.shape[-1:], jnp.int32)
        places = jax.tree.map(lambda leaf: leaf.sharding, learned)
        learned = _placed(jax.eval_shape(sparse.take, learned, rows), places)
    return _bytes(learned[0]), _bytes(learned[1])


def _memory(plan: _Plan, gradients: int) -> Memory:
    """Of the compiled step."""
    guard = Guard(plan.config.skip_nonfinite, plan.config.spike_guard)
    step: Any = compile_train_step(plan.lm, plan.optimizer, plan.state, guard)
    found = step.lower(plan.state, plan.batch).compile().memory_analysis()
    temporary = found.temp_size_in_bytes
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        _bytes(plan.state.params),
        _bytes(plan.state.optimizer),
        _bytes(plan.state.carry),
        _bytes(plan.batch),
        temporary,
        _activations(plan),
        gradients,
        found.argument_size_in_bytes + new + temporary,
    )


def _activations(plan: _Plan) -> int:
    """Bytes of what one device keeps between the forward and the backward pass.

    That is what its part of the batch makes larger: it is looked at twice, the second
    time with twice the rows and words.
    """
    assert plan.lm.mesh is not None
    one, two = (_kept(plan, times) for times in (1, 2))
    dim, shares = plan.config.model.lstm.dim, plan.lm.mesh.shape["model"]
    total = 0
    for leaf, larger in zip(one, two, strict=True):
        if leaf.shape != larger.shape:
            split = leaf.shape[-1] in (dim, 4 * dim)  # cells lie along `model`
            total += leaf.size * leaf.dtype.itemsize // (shares if split else 1)
    return total


def _kept(plan: _Plan, times: int) -> list[Any]:
    """Shapes that the backward pass of one device's piece of a batch takes over."""
    config, mesh = plan.config, plan.lm.mesh
    assert mesh is not None
    rows = config.rows // (mesh.shape["data"] * config.accumulate) * times
    names = plan.batch.negatives
    taken = plan.sizes.sizes.names
    words, members = (
        tuple(times * size for size in part)
        for part in (plan.sizes.sizes.words, plan.sizes.sizes.members)
    )
    sizes = Sizes(words, members, taken)
    piece = replace(config, rows=rows, accumulate=1)
    batch = batch_shapes(piece, sizes, plan.sizes.tables, 1)
    lm, params = replace(plan.lm, mesh=None), plan.state.params
    if names is not None:
        few = jax.ShapeDtypeStruct((taken,), jnp.int32)
        params = jax.eval_shape(sparse.take, params, few)

    def backward(params: Any, carry: LstmState, batch: Any) -> Any:
        keys = row_keys(jax.random.key(0), jnp.arange(rows))
        run = partial(loss, lm, carry=carry, batch=batch, keys=keys)
        return jax.vjp(run, params, has_aux=True)[1]

    carry = jax.eval_shape(partial(LstmState.zeros, config.model.lstm, rows))
    return jax.tree.leaves(jax.eval_shape(backward, params, carry, batch))
