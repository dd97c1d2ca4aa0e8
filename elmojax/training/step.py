"""The loss and one pure training step: arrays in, arrays out.

With the sampled softmax a step takes those rows of the head that a batch names, in the
parameters and in whatever of the optimiser has the same shape, and puts them back: it
costs as much as the rows it touches, not as the vocabulary. Adagrad gives the very
numbers of a dense step, as rows with a gradient of zero do not move; AdamW's moments
and decay of a row stand still while no batch names it (as in torch.optim.SparseAdam).

An update is not made where numbers are not finite or the loss leaps (`Guard`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from elmojax.config import ElmoConfig, HeadConfig
from elmojax.model import softmax
from elmojax.model.bilm import BiLM, init_tree
from elmojax.model.lstm import LstmState
from elmojax.model.ops import Platform, apply_dropout, replicated, row_keys
from elmojax.model.recurrence import Reset
from elmojax.model.sampled_softmax import Candidates, sampled_losses
from elmojax.shapes import Params
from elmojax.text.batches import join_rows, split_rows
from elmojax.training.sharding import path_name

MEMORY = 0.99
"""Weight of the past in the mean of the losses: about the last hundred steps."""


@dataclass(frozen=True)
class Guard:
    """What counts as a bad update, and how many may be skipped before a run stops."""

    skip: int = 0
    spike: float = 0.0
    """A loss above this many times the mean of the last ones is bad; 0 = never."""


@flax.struct.dataclass
class Watch:
    """What a run remembers of its losses."""

    skipped: Any
    """int32: bad updates so far."""
    mean_loss: Any
    """float32: running mean of the good ones; 0 before the first."""

    @classmethod
    def start(cls) -> Watch:
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


def check_update(
    guard: Guard, watch: Watch, loss: Array, gradient_norm: Array
) -> tuple[Array, Watch]:
    """Whether an update is bad, and what to remember after it."""
    bad = ~jnp.isfinite(loss + gradient_norm)
    if guard.spike:
        known = watch.mean_loss > 0
        bad = bad | (known & (loss > guard.spike * watch.mean_loss))
    mean = MEMORY * watch.mean_loss + (1 - MEMORY) * loss
    mean = jnp.where(watch.mean_loss > 0, mean, loss)
    mean = jnp.where(bad, watch.mean_loss, mean)
    return bad, Watch(watch.skipped + bad.astype(jnp.int32), mean)


def skip_update(guard: Guard, bad: Array, new: Any, old: Any) -> Any:
    """`new`, or `old` after a bad update. Where none may be skipped it is `new`, and
    the training loop ends the run when it reads the metrics."""
    if not guard.skip:
        return new
    return jax.tree.map(lambda one, other: jnp.where(bad, other, one), new, old)


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a tree is."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


TABLES = re.compile(r"(^|\.)head\.(kernel|bias)$")
"""Paths of the arrays that have one row a word."""


def take(tree: Any, rows: Array) -> Any:
    """The tree with these rows of its tables of words; zeros for rows past the end."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        if not TABLES.search(path_name(path)):
            return leaf
        return leaf.at[rows].get(
            mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
        )

    return jax.tree_util.tree_map_with_path(one, tree)


def put(tree: Any, rows: Array, new: Any) -> Any:
    """`new` with the tables of `tree`, in which `rows` are replaced."""

    def one(path: tuple[Any, ...], leaf: Array, part: Array) -> Array:
        if not TABLES.search(path_name(path)):
            return part
        return leaf.at[rows].set(
            part, mode="drop", indices_are_sorted=True, unique_indices=True
        )

    return jax.tree_util.tree_map_with_path(one, tree, new)


OFF = Guard()
RANDOM = "threefry2x32"
"""JAX's generator of random numbers, whatever `jax_default_prng_impl` says."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes."""

    params: Params
    """{"encoder", "lstm", "head"}: float32 arrays."""
    optimizer: Any
    carry: LstmState
    """LSTM state of every row after the last window."""
    key: Any
    """Random key of the run as uint32 data; a step folds its own number in."""
    step: Any
    watch: Watch


@dataclass(frozen=True)
class LanguageModel:
    """What is fixed in a run: shapes, dropout, precision and where arrays lie."""

    config: ElmoConfig
    vocabulary: int
    head: HeadConfig
    dropout: float = 0.0
    dtype: Any = jnp.float32
    """Of matrix products; parameters, gradients and sums stay float32."""
    mesh: Mesh | None = None
    platform: Platform = None

    def init(self, key: Array) -> Params:
        """Parameters of a fresh biLM with its head (none for vocabulary 0)."""
        body, top = jax.random.split(key)
        if not self.vocabulary:
            return dict(init_tree(self.config, body))
        config = self.head
        head = softmax.Softmax(
            self.vocabulary, config.cutoffs, config.div_value, config.bias
        )
        hidden = jnp.zeros((1, self.config.lstm.projection), jnp.float32)
        tree = init_tree(self.config, body)
        return {**tree, "head": head.init(top, hidden)["params"]}

    def top_layer(
        self,
        params: Params,
        carry: LstmState,
        batch: Any,
        keys: Array | None,
        reset: Reset | None = None,
        lengths: Array | None = None,
    ) -> tuple[Array, LstmState]:
        """The LSTM's last layer [window, two, rows, projection], and the new carry.

        With a key of each row there is dropout. With `reset` sentences begin from a
        state of their own; with `lengths` (int32 [rows]) the new carry is the state
        after so many positions of each row.
        """
        dropout = 0.0 if keys is None else self.dropout
        model = BiLM(
            self.config,
            dropout,
            self.mesh,
            dtype=self.dtype,
            platform=self.platform,
        )
        apply: Any = partial(model.apply, {"params": params})
        words = apply(batch.words, method="encode_words")
        inputs = self._look_up(words, batch.inputs.transpose(2, 0, 1))
        read = inputs, carry, lengths, reset, keys
        layers, carry = apply(*read, method="contextualize")
        top = layers[-1]
        if dropout and keys is not None:
            top = apply_dropout(top, dropout, keys, self.config.lstm.layers)
        return top, carry

    @jax.named_scope("encoder")
    def _look_up(self, table: Array, ids: Array) -> Array:
        """Vectors [window, two, rows, width], each out of its shard's table."""
        if self.mesh is None:
            return table[ids]
        of_table, of_ids = P("data"), P(None, None, "data")
        return jax.shard_map(
            lambda table, ids: table[ids],
            mesh=self.mesh,
            in_specs=(of_table, of_ids),
            out_specs=of_ids,
        )(table, ids)

    @property
    def loss_name(self) -> str:
        """What the training objective is: a sampled loss gives no perplexity."""
        return "sampled_loss" if self.head.kind == "sampled" else "loss"

    @jax.named_scope("softmax")
    def nll(
        self, head: Params, top: Array, batch: Any, *, train: bool
    ) -> tuple[Array, Array]:
        """Weighted sum of -log p, and each one [window, two, rows] (natural log).

        Where the softmax is sampled, training takes the sampled loss instead.
        """
        targets = batch.targets.transpose(2, 0, 1)
        weights = jnp.broadcast_to(batch.weights.T[:, None], targets.shape)
        if train and self.head.kind == "sampled":
            return self._sampled(head, top, weights, batch.negatives)
        hidden, ids, weights = map(self._flat, (top, targets, weights))
        where = {"mesh": self.mesh, "dtype": self.dtype}
        total, each = softmax.negative_log_likelihood(
            head, hidden, ids, weights, batch.members or None, **where
        )
        return total, _unflat(each, targets.shape)

    def _sampled(
        self, head: Params, top: Array, weights: Array, negatives: Any
    ) -> tuple[Array, Array]:
        """The sampled loss of each direction, with its own words."""
        directions = []
        arrays = (top, negatives.targets.transpose(2, 0, 1), weights)
        for n in range(2):
            hidden, ids, weight = (self._flat(a[:, n : n + 1]) for a in arrays)
            drawn = Candidates(negatives.drawn[n], negatives.log_expected[n])
            directions.append((hidden, ids, weight, drawn))
        total, losses = sampled_losses(head, directions, self.mesh, self.dtype)
        shape = weights[:, :1].shape
        return total, jnp.concatenate([_unflat(e, shape) for e in losses], axis=1)

    def _flat(self, array: Array) -> Array:
        """[window, two, rows, ...] -> [shards, positions, ...]."""
        shards = 1 if self.mesh is None else self.mesh.shape["data"]
        window, two, rows, *rest = array.shape
        split = array.reshape(window, two, shards, rows // shards, *rest)
        return jnp.moveaxis(split, 2, 0).reshape(shards, -1, *rest)


def _unflat(each: Array, shape: tuple[int, ...]) -> Array:
    """[shards, positions] -> [window, two, rows], an array of this shape."""
    return jnp.moveaxis(each.reshape(len(each), *shape[:-1], -1), 0, -2).reshape(shape)


def loss(
    lm: LanguageModel, params: Params, carry: LstmState, batch: Any, keys: Array | None
) -> tuple[Array, tuple[dict[str, Array], LstmState]]:
    """The training objective of a batch, and its metrics and new carry.

    With a key of each row there is dropout.

    The objective is the negative log-likelihood (natural log) summed over the window
    and averaged over rows and directions: the scale on which the paper's learning
    rate and gradient norm are meant (bilm-tf multiplies its mean loss by the window).
    """
    top, after = lm.top_layer(params, carry, batch, keys)
    total, each = lm.nll(params["head"], top, batch, train=True)
    weights = batch.weights.T[:, None]
    forward, backward = (each * weights).sum((0, 2)) / weights.sum()
    metrics = {
        lm.loss_name: (forward + backward) / 2,
        f"forward_{lm.loss_name}": forward,
        f"backward_{lm.loss_name}": backward,
    }
    return total / (2 * batch.weights.shape[0]), (metrics, jax.lax.stop_gradient(after))


def train_step(
    lm: LanguageModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Any,
    guard: Guard = OFF,
    only: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update: gradient of `loss`, clipping, optimiser; the carry moves on.

    A batch in microbatches gives the same update as the whole one, in less memory. With
    `only` one part of the parameters is trained (`head`), and the others are left out
    of the backward pass, of the norm and of the optimiser.
    """
    key = jax.random.wrap_key_data(state.key, impl=RANDOM)
    key = jax.random.fold_in(key, state.step)
    parts = state.params.items()
    params = {name: part for name, part in parts if only in (None, name)}
    frozen = {name: part for name, part in parts if name not in params}
    opt_state = state.optimizer
    tables = params, opt_state
    named = None
    if batch.negatives is not None:  # the rows of the tables that the batch names,
        names = batch.negatives.words  # the same in each microbatch
        named = names.reshape(-1, names.shape[-1])[0]
        params, opt_state = take(tables, named)
    gradient, metrics, carry = _gradient(lm, params, frozen, state.carry, batch, key)
    # Optax has float ** int32: refused under strict promotion, float64 under x64.
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        updates, new_opt_state = optimizer.update(gradient, opt_state, params)
    new_params = cast(Params, optax.apply_updates(params, updates))
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    loss, norm = metrics[lm.loss_name], metrics["gradient_norm"]
    bad, watch = check_update(guard, state.watch, loss, norm)
    new = skip_update(
        guard,
        bad,
        (new_params, new_opt_state, carry),
        (params, opt_state, state.carry),
    )
    new_params, new_opt_state, carry = new
    if named is not None:
        new_params, new_opt_state = put(tables, named, (new_params, new_opt_state))
    metrics |= {"bad": bad.astype(jnp.int32), "skipped": watch.skipped}
    new_params = {**frozen, **new_params}
    step = state.step + 1
    return TrainState(new_params, new_opt_state, carry, state.key, step, watch), metrics


def _gradient(
    lm: LanguageModel,
    params: Params,
    frozen: Params,
    carry: LstmState,
    batch: Any,
    key: Array,
) -> tuple[Params, dict[str, Array], LstmState]:
    """Gradient of `loss`, metrics, new carry; of microbatches one after the other."""
    keys = row_keys(key, jnp.arange(carry.cell.shape[2]))

    def whole(params: Params, *rest: Any) -> Any:
        return loss(lm, {**frozen, **params}, *rest)

    one_microbatch = jax.value_and_grad(whole, has_aux=True)
    if batch.weights.ndim == 2:
        (_, (metrics, carry)), gradient = one_microbatch(params, carry, batch, keys)
        return gradient, metrics, carry
    microbatches = len(batch.weights)
    shards = 1 if lm.mesh is None else lm.mesh.shape["data"]
    split = partial(split_rows, shards=shards, microbatches=microbatches)
    carries = jax.tree.map(lambda leaf: split(leaf, 2), carry)

    def body(sums: Any, microbatch: Any) -> tuple[Any, LstmState]:
        (_, (metrics, after)), gradient = one_microbatch(params, *microbatch)
        return jax.tree.map(jnp.add, sums, (gradient, metrics)), after

    parts = (carries, batch, split(keys, 0))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    (_, (metrics, _)), gradient = jax.eval_shape(one_microbatch, params, *first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (gradient, metrics))
    sums, carries = jax.lax.scan(body, zeros, parts)
    gradient, metrics = jax.tree.map(lambda leaf: leaf / microbatches, sums)
    carry = jax.tree.map(lambda leaf: join_rows(leaf, 2, shards), carries)
    return gradient, metrics, carry


def compile_train_step(
    lm: LanguageModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    guard: Guard = OFF,
    only: str | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]:
    """`train_step` as one program, which takes over the memory of its old state.

    The new state lies on the devices as `state` does. Left to the compiler, it would
    drift from the sharding table, and the second step would be another program. The
    metrics lie whole on every device, for every process to read.
    """
    formats = jax.tree.map(lambda leaf: leaf.format, state)
    step = partial(train_step, lm, optimizer, guard=guard, only=only)
    out_shardings = (formats, replicated(lm.mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def evaluation_step(
    lm: LanguageModel, params: Params, carry: LstmState, batch: Any
) -> tuple[Array, LstmState]:
    """Weighted sums of -log p, [forward, backward], and the new carry."""
    top, carry = lm.top_layer(params, carry, batch, None)
    _, each = lm.nll(params["head"], top, batch, train=False)
    return (each * batch.weights.T[:, None]).sum((0, 2)), carry


def init_state(
    lm: LanguageModel, optimizer: optax.GradientTransformation, rows: int, seed: int
) -> TrainState:
    """The state before the first step; a pure function, to be jitted with shardings."""
    words = jnp.asarray([seed >> 32, seed % 2**32], jnp.uint32)
    start, run = jax.random.split(jax.random.wrap_key_data(words, impl=RANDOM))
    params = lm.init(start)
    carry = LstmState.zeros(lm.config.lstm, rows)
    key = jax.random.key_data(run)
    return TrainState(
        params,
        optimizer.init(params),
        carry,
        key,
        jnp.zeros((), jnp.int32),
        Watch.start(),
    )
