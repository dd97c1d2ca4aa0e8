"""Sharded training equals training on one device, and lies where the table says."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import PartitionSpec as P
from toys import CORPUS, TINY, drawn, zipf_sentences

from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    LstmConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
    WordTableConfig,
)
from elmojax.errors import InputError
from elmojax.text.batches import TrainingText
from elmojax.text.prepare import prepare
from elmojax.text.tables import WordTables
from elmojax.training import evaluate
from elmojax.training.evaluate import Evaluator
from elmojax.training.loop import pretrain
from elmojax.training.optim import make_optimizer
from elmojax.training.sharding import (
    make_mesh,
    memory_layouts,
    path_name,
    put_on_mesh,
    shardings,
)
from elmojax.training.step import LanguageModel, compile_train_step, init_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, WINDOW, STEPS = 8, 3, 5
CONFIG = replace(
    TINY,
    encoder=CharCnnConfig(((1, 4), (3, 12)), 4, 1, max_characters=12),
    lstm=LstmConfig(dim=16, projection=6, cell_clip=0.8, projection_clip=0.6),
)
RECIPE = OptimizerConfig(gradient_norm=0.5)
TOLERANCE = 1e-5
"""Relative, after five steps: sums over devices round otherwise than sums on one."""

HEAD = HeadConfig("adaptive", (6, 15), 2.0)
LM = LanguageModel(CONFIG, len(CORPUS.vocabulary), HEAD, dropout=0.1)
SMALL = LanguageModel(
    ElmoConfig(WordTableConfig(30, 6), LstmConfig(8, 6, 1)), 30, HeadConfig("full")
)


def mesh_of(data, model):
    return make_mesh(MeshConfig(data, model))


def train(mesh, dropout=LM.dropout, lay=memory_layouts):
    """The first steps of a run, as the loop takes them; mesh None = no sharding."""
    lm = replace(LM, mesh=mesh, dropout=dropout)
    optimizer = make_optimizer(RECIPE, 100)
    multiple = 1 if mesh is None else mesh.shape["data"]
    words = WordTables(CORPUS, CORPUS.vocabulary, CONFIG, multiple)
    batches = TrainingText(CORPUS, words, ROWS, WINDOW, seed=0)
    shapes = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
    params = drawn(shapes.params, seed=7)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = zeros.replace(params=params, optimizer=optimizer.init(params))
    places = None if mesh is None else shardings(mesh, shapes)
    state = jax.device_put(state, places)
    state = jax.device_put(state, lay(state))
    step = compile_train_step(lm, optimizer, state)
    metrics = []
    for number in range(STEPS):
        batch = put_on_mesh(lm.mesh, batches.batch(number), "batch.")
        state, numbers = step(state, batch)
        metrics.append({name: float(value) for name, value in numbers.items()})
    return SimpleNamespace(
        mesh=mesh,
        state=state,
        places=places,
        metrics=metrics,
        compiled=step._cache_size(),
    )


@pytest.fixture(scope="module")
def plain():
    return train(None)


@pytest.fixture(
    scope="module",
    params=[
        (4, 2),
        *(
            pytest.param(mesh, marks=pytest.mark.slow)
            for mesh in ((1, 1), (8, 1), (2, 4), (1, 8))
        ),
    ],
    ids="{0[0]}x{0[1]}".format,
)
def sharded(request):
    return train(mesh_of(*request.param))


def test_a_step_leaves_arrays_in_the_order_of_axes_that_they_lie_in(plain):
    """As kernels of the LSTM do on a TPU, gate after gate."""
    order = (2, 0, 1, 3)

    def laid(path, leaf):
        gates = re.search(r"lstm\.kernel_\d$", path_name(path))
        return Format(Layout(order) if gates else None, leaf.sharding)

    found = train(None, lay=partial(jax.tree_util.tree_map_with_path, laid))
    assert found.compiled == 1
    for old, new in zip(*map(jax.tree.leaves, (plain.state, found.state)), strict=True):
        np.testing.assert_array_equal(old, new)
    moments = found.state.optimizer[1][0].sum_of_squares["lstm"]["kernel_1"]
    for kernel in (found.state.params["lstm"]["kernel_0"], moments):
        assert kernel.format.layout.major_to_minor == order


def test_on_a_cpu_arrays_lie_in_the_order_of_their_axes(plain):
    for form in jax.tree.leaves(memory_layouts(plain.state)):
        assert form.layout is None


def test_dropout_clips_and_tails_are_at_work(plain):
    assert all(m["gradient_norm"] > RECIPE.gradient_norm for m in plain.metrics)
    clipped = np.abs(plain.state.carry.cell) == CONFIG.lstm.cell_clip
    assert clipped.mean() > 0.02
    clipped = np.abs(plain.state.carry.hidden) == CONFIG.lstm.projection_clip
    assert clipped.mean() > 0.02
    words = WordTables(CORPUS, CORPUS.vocabulary, CONFIG, 1)
    targets = TrainingText(CORPUS, words, ROWS, WINDOW, 0).batch(0).targets
    assert np.any(targets < 6) and np.any(targets >= 15)
    assert np.any((targets >= 6) & (targets < 15))


def test_sharded_training_equals_one_device(plain, sharded):
    for got, wanted in zip(sharded.metrics, plain.metrics, strict=True):
        assert got == pytest.approx(wanted, rel=TOLERANCE)
    trees = (sharded.state, plain.state)
    for (path, got), wanted in zip(
        jax.tree.leaves_with_path(trees[0]), jax.tree.leaves(trees[1]), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=path_name(path))


def test_arrays_lie_where_the_table_says_after_a_step(sharded):
    """Shapes of what one device holds, written out once more."""
    state = sharded.state
    data, model = sharded.mesh.shape["data"], sharded.mesh.shape["model"]
    dim, projection = CONFIG.lstm.dim // model, CONFIG.lstm.projection
    accumulators = state.optimizer[1][0].sum_of_squares
    for params in (state.params, accumulators):
        assert {name: held(leaf) for name, leaf in params["lstm"].items()} == {
            "kernel_0": (2, 2 * projection, 4, dim),
            "kernel_1": (2, 2 * projection, 4, dim),
            "bias_0": (2, 4, dim),
            "bias_1": (2, 4, dim),
            "projection_0": (2, dim, projection),
            "projection_1": (2, dim, projection),
        }
        for name, leaf in params["encoder"].items():
            assert held(leaf) == leaf.shape, name
        words = {name: leaf.shape[0] for name, leaf in params["head"].items()}
        columns = projection if projection % model else projection // model
        for name, leaf in params["head"].items():
            split = {"kernel": (words[name], columns)}
            if name.startswith("up_") and not words[name] % model:
                split[name] = (words[name] // model, leaf.shape[1])
            elif name.startswith("up_") and not leaf.shape[1] % model:
                split[name] = (words[name], leaf.shape[1] // model)
            assert held(leaf) == split.get(name, leaf.shape), name
    assert held(state.carry.cell) == (2, 2, ROWS // data, dim)
    assert held(state.carry.hidden) == (2, 2, ROWS // data, projection)
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == data * model


def held(leaf):
    """The shape of what each device holds, all alike."""
    (shape,) = {shard.data.shape for shard in leaf.addressable_shards}
    return shape


def test_steps_of_equal_shapes_compile_once(sharded):
    """What a step gives back lies as what it took, so the next is the same program."""
    assert sharded.compiled == 1
    for (path, leaf), wanted in zip(
        jax.tree.leaves_with_path(sharded.state),
        jax.tree.leaves(sharded.places),
        strict=True,
    ):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), path_name(path)


def test_batches_are_split_by_rows_and_words():
    mesh = mesh_of(4, 2)
    head = HeadConfig("adaptive", (6, 15))
    words = WordTables(CORPUS, CORPUS.vocabulary, CONFIG, 4, head=head, split=2)
    batch = TrainingText(CORPUS, words, ROWS, WINDOW, 0).batch(0)
    placed = put_on_mesh(mesh, batch, "batch.")
    for tail, whole in zip(placed.members, batch.members, strict=True):
        size = whole.positions.shape[1]
        assert held(tail.positions) == held(tail.targets) == (1, size)
    (placed_table,), (table,) = placed.words, batch.words
    assert held(placed_table) == (len(table) // 8, 12)
    assert held(placed.inputs) == held(placed.targets) == (2, ROWS // 4, WINDOW)
    assert held(placed.weights) == (ROWS // 4, WINDOW)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


def test_fresh_parameters_do_not_depend_on_the_mesh():
    optimizer = make_optimizer(RECIPE, 100)
    create = partial(init_state, SMALL, optimizer, ROWS, 0)
    places = shardings(mesh_of(4, 2), jax.eval_shape(create))
    sharded = jax.jit(create, out_shardings=places)()
    assert held(sharded.params["lstm"]["kernel_0"]) == (2, 12, 4, 4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6), sharded, jax.jit(create)()
    )


def test_evaluation_does_not_depend_on_the_mesh(monkeypatch):
    monkeypatch.setattr(evaluate, "ROWS", ROWS)
    params = drawn(jax.eval_shape(SMALL.init, jax.random.key(0)))
    scores = []
    for mesh in (None, mesh_of(4, 2)):
        lm = replace(SMALL, mesh=mesh)
        placed = params
        if mesh is not None:
            placed = jax.device_put(params, shardings(mesh, params, "params."))
        scores.append(Evaluator(lm, CORPUS, CORPUS.vocabulary)(placed))
        del scores[-1]["seconds"]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adagrad", "adamw", "adafactor"])
@pytest.mark.parametrize("encoder", ["characters", "words"])
@pytest.mark.parametrize("freeze_steps", [0, 1])
def test_the_table_knows_every_array(optimizer, encoder, freeze_steps):
    """Moments of a parameter lie as it does, but for Adafactor's, which are small."""
    lm = LM
    if encoder == "words":
        lm = replace(LM, config=replace(CONFIG, encoder=WordTableConfig(30, 5)))
    recipe = OptimizerConfig(optimizer, weight_decay=0.01)
    rule = make_optimizer(recipe, 10, freeze_steps)
    shapes = jax.eval_shape(partial(init_state, lm, rule, ROWS, 0))
    places = shardings(mesh_of(4, 2), shapes)
    specs = {
        path_name(path): leaf.spec for path, leaf in jax.tree.leaves_with_path(places)
    }
    split = P(None, None, None, "model")
    assert specs["params.lstm.kernel_0"] == split
    moments = [name for name in specs if name.endswith("lstm.kernel_0")][1:]
    factored = [name for name in moments if ".v" in name]
    wanted = {"adagrad": (1, 0), "adamw": (2, 0), "adafactor": (3, 3)}[optimizer]
    assert (len(moments), len(factored)) == wanted
    for name in moments:
        assert specs[name] == (P() if name in factored else split)


def test_an_array_that_the_table_does_not_know_is_an_error():
    mesh = mesh_of(4, 2)
    with pytest.raises(KeyError, match=r"params\.decoder\.kernel"):
        shardings(mesh, {"params": {"decoder": {"kernel": np.ones(8)}}})


@pytest.mark.parametrize(
    ("lm", "rows", "mesh", "parts"),
    [
        (LM, 6, (4, 2), ("carry.cell", "6", "4", "--mesh.data", "--rows")),
        (LM, 8, (1, 5), ("16", "5", "--mesh.model")),
        (SMALL, 8, (2, 3), ("8", "3", "--mesh.model")),
    ],
    ids=["rows", "dim", "dim of words"],
)
def test_what_does_not_divide_is_named(lm, rows, mesh, parts):
    create = partial(init_state, lm, make_optimizer(RECIPE, 10), rows, 0)
    with pytest.raises(InputError) as caught:
        shardings(mesh_of(*mesh), jax.eval_shape(create))
    for part in parts:
        assert part in str(caught.value)


def test_meshes_fit_the_devices():
    assert dict(mesh_of(0, 2).shape) == {"data": 4, "model": 2}
    assert dict(mesh_of(2, 1).shape) == {"data": 2, "model": 1}
    for data, model in ((9, 1), (3, 3), (0, 16)):
        with pytest.raises(InputError, match=r"there are 8 \(cpu\)") as caught:
            mesh_of(data, model)
        assert str(max(data, 1) * model) in str(caught.value)


@pytest.mark.slow
def test_a_whole_run_compiles_its_step_once(tmp_path, caplog):
    """Through evaluations and checkpoints, on a mesh."""
    lines = "\n".join(" ".join(sentence) for sentence in zipf_sentences())
    (tmp_path / "text").write_text(lines)
    prepare(tmp_path / "data", patterns=[tmp_path / "text"], max_vocabulary=30)
    config = TrainConfig(
        data=tmp_path / "data",
        heldout=tmp_path / "data",
        workdir=tmp_path / "run",
        model=SMALL.config,
        encoder="words",
        mesh=MeshConfig(4, 2),
        steps=7,
        rows=ROWS,
        window=WINDOW,
        checkpoint_every=2,
        evaluate_every=3,
    )
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        result = pretrain(config)
    assert result.step == 7
    compiled = [
        record.getMessage()
        for record in caplog.records
        if "Finished XLA compilation" in record.getMessage()
    ]
    for name in ("train_step", "evaluation_step"):
        assert sum(name in message for message in compiled) == 1, compiled
