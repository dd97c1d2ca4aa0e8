"""Words encoded once or at every position: the same training, in few shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.experimental.layout import Format, Layout
from toys import CORPUS, TINY, corpus_of, drawn

from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    HeadConfig,
    MeshConfig,
    TrainConfig,
    WordTableConfig,
)
from elmojax.text.batches import TrainingText, distinct_words
from elmojax.text.prepare import prepare
from elmojax.text.tables import WordTables
from elmojax.training import prefetch
from elmojax.training.distributed import Stop
from elmojax.training.loop import pretrain
from elmojax.training.metrics import read_metrics
from elmojax.training.prefetch import Programs, prefetched
from elmojax.training.sharding import batch_shardings, make_mesh, put_on_mesh, shardings
from elmojax.training.sizes import batch_shapes, training_text
from elmojax.training.start import start
from elmojax.training.step import LanguageModel, compile_train_step, init_state

pytestmark = pytest.mark.usefixtures("quick_compilation", "compile_once")

ROWS, WINDOW = 8, 6
LM = LanguageModel(
    TINY, len(CORPUS.vocabulary), HeadConfig("adaptive", (6, 15), 2.0), dropout=0.1
)


def loss_and_gradient(every: bool, shards: int, microbatches: int):
    """Of two steps of plain descent, so that the change is the gradient."""
    mesh = make_mesh(MeshConfig(shards)) if shards > 1 else None
    lm, optimizer = replace(LM, mesh=mesh), optax.sgd(1.0)
    shapes = jax.eval_shape(partial(init_state, lm, optimizer, ROWS, 0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    before = jax.tree.map(np.asarray, drawn(shapes.params, seed=7, scale=0.3))
    state = zeros.replace(params=before)
    state = jax.device_put(state, mesh and shardings(mesh, shapes))
    step = compile_train_step(lm, optimizer, state)
    words = WordTables(CORPUS, CORPUS.vocabulary, TINY, shards, every)
    text = TrainingText(CORPUS, words, ROWS, WINDOW, 0, microbatches=microbatches)
    batch = text.batch(0)
    placed = put_on_mesh(mesh, batch, "batch.", microbatches=microbatches > 1)
    state, metrics = step(state, placed)
    gradient = jax.tree.map(lambda a, b: np.asarray(a - b), before, state.params)
    return batch, {k: float(v) for k, v in metrics.items()}, gradient


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "microbatches"), [(2, 2), (1, 1), (2, 1), (1, 2)], ids=str
)
def test_on_and_off_give_the_same_loss_and_gradients(shards, microbatches):
    once, wanted, slopes = loss_and_gradient(False, shards, microbatches)
    every, got, others = loss_and_gradient(True, shards, microbatches)
    assert got == pytest.approx(wanted, rel=1e-6)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes))
    close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6 * scale)
    jax.tree.map(close, others, slopes)
    # Off, a shard has a row for each of its positions, in both directions.
    positions = 2 * ROWS * WINDOW // shards // microbatches
    (table,) = every.words
    assert table.shape[microbatches > 1] == shards * positions
    here = every.inputs if microbatches > 1 else every.inputs[None]
    for shard in np.split(here, shards, axis=2):
        for piece in shard:
            assert sorted(piece.ravel()) == list(range(positions))
    assert len(np.unique(once.inputs)) < len(np.unique(every.inputs))
    np.testing.assert_array_equal(every.targets, once.targets)


def zipf_text(types=20_000, words=200_000):
    """Words as often as in natural text, and as long: rare ones mostly longer."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, types + 1)
    text = random.choice(types, words, p=share / share.sum())
    sizes = random.poisson(2 + np.log(np.arange(1, types + 1)) / 2)
    names = [f"{i}" + "x" * size for i, size in enumerate(sizes)]
    return [[names[i] for i in line] for line in np.array_split(text, words // 24)]


@pytest.mark.parametrize(("rows", "shards"), [(64, 1), (256, 1), (64, 4)])
def test_an_epoch_of_natural_text_has_one_shape(rows, shards):
    """Which is little larger than what a step needs on average."""
    corpus = corpus_of(zipf_text(), 5000)
    model, head = replace(TINY, encoder=CharCnnConfig()), HeadConfig(cutoffs=(99, 999))
    words = WordTables(corpus, corpus.vocabulary, model, shards, head=head)
    text = TrainingText(corpus, words, rows, 20, 0)
    made = [text.batch_at_level(step) for step in range(text.steps(1))]
    assert {level for level, _ in made} == {0}
    used = np.mean([distinct_words(batch) for _, batch in made]) / shards
    expected = sum(words.frequencies(20).distinct(rows * 20 / shards))
    assert expected == pytest.approx(used, rel=0.05)
    assert sum(text.capacities.usual.words) < 1.25 * used + 2 * 64


class Notes:
    """A tracker that keeps the sentences for people."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)

    def begin(self, *_):
        pass

    step = log = begin

    def close(self):
        pass


def prepared(folder, lines):
    (folder / "text").write_text("\n".join(lines))
    prepare(folder / "data", patterns=[folder / "text"], max_vocabulary=30)
    return TrainConfig(
        data=folder / "data",
        workdir=folder / "run",
        model=ElmoConfig(
            replace(TINY.encoder, max_characters=50), replace(TINY.lstm, layers=1)
        ),
        head=HeadConfig("full"),
        mesh=MeshConfig(1),
        rows=8,
        window=20,
        log_every=1,
    )


@pytest.mark.slow
def test_words_that_do_not_fit_get_a_larger_program(tmp_path):
    """Nothing is lost, and it is told once."""
    common = ["the river bank is the bank"] * 240
    rare = [" ".join(f"{i}{'y' * 40}{j}" for j in range(99)) for i in range(2)]
    config = replace(prepared(tmp_path, common + rare), steps=12)
    notes = Notes()
    pretrain(config, [notes])
    lines = read_metrics(config.workdir / "metrics.jsonl")
    words = [int(line["table_words"]) for line in lines]
    assert min(words) < 10 and max(words) > 64
    (said,) = (note for note in notes.said if "more words" in note)
    first = next(n for n, count in enumerate(words) if count > 64)
    assert f"Step {first + 1} has more words than are usual" in said
    assert "compiled once" in said
    every = replace(config, workdir=tmp_path / "every", unique_words=False)
    pretrain(every)
    again = read_metrics(every.workdir / "metrics.jsonl")
    losses = [[line["loss"] for line in run] for run in (lines, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({"head": HeadConfig("adaptive", (6, 15), 2.0), "accumulate": 2}, 0),
        ({"head": HeadConfig("adaptive", (6, 15), 2.0)}, 1),
        ({"head": HeadConfig("sampled", samples=5)}, 2),
        ({"head": HeadConfig("full"), "encoder": "words", "unique_words": False}, 0),
    ],
    ids=["microbatches", "adaptive", "sampled", "every word"],
)
def test_shapes_are_known_without_a_batch(options, level):
    """Those of the arrays on the devices, and where they lie."""
    model = TINY
    if options.pop("encoder", None):
        model = replace(TINY, encoder=WordTableConfig(len(CORPUS.vocabulary), 4))
    config = TrainConfig(model=model, rows=8, window=6, **options)
    config = replace(config, mesh=MeshConfig(2, 2))
    mesh, microbatches = make_mesh(config.mesh), config.accumulate > 1
    text = training_text(config, CORPUS, 2)
    found, batch = text.batch_at_level(0, level)
    sizes = text.capacities.at(found)
    known = batch_shapes(config, sizes, text.words.columns, 2)
    placed = put_on_mesh(mesh, batch, "batch.", microbatches=microbatches)
    places = batch_shardings(mesh, known, microbatches)

    def same(shape, sharding, array):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert sharding == array.sharding

    jax.tree.map(same, known, places, placed)


@pytest.mark.slow
def test_a_program_is_compiled_ahead_of_its_step(tmp_path, monkeypatch):
    """And the step does not compile it again, nor where kernels lie as on a TPU."""
    config = prepared(tmp_path, ["the river bank is no bank"] * 200)
    config = replace(config, freeze_steps=2, steps=4)
    run = start(config, "test")

    def laid(leaf):
        order = (2, 0, 1, 3) if leaf.ndim == 4 and leaf.shape[2] == 4 else None
        return Format(order and Layout(order), leaf.sharding)

    state = jax.device_put(run.state, jax.tree.map(laid, run.state))
    assert state.params["lstm"]["kernel_0"].format != (
        run.state.params["lstm"]["kernel_0"].format
    )
    run = replace(run, state=state)
    programs, compiled = Programs(run), []
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        programs.ahead(1, 0)
        programs.ahead(2, 0)
    events = "/jax/core/compile/backend_compile_duration"
    made = list(prefetched(run, 0, Stop()))
    assert [ready.level for ready in made] == [0] * 4
    first, first_is_new = programs.take(1, 0)
    whole, whole_is_new = programs.take(2, 0)
    assert first is not whole and first_is_new and whole_is_new
    assert programs.take(3, 0) == (whole, False)

    def listen(event, duration, **_):
        compiled.append(event == events)

    jax.monitoring.register_event_duration_secs_listener(listen)
    state, _ = first(run.state, made[1].batch)
    state, metrics = whole(state, made[2].batch)
    assert np.isfinite(float(metrics["loss"])) and not any(compiled)
    whole.lower(state, made[2].batch).compile({"xla_embed_ir_in_executable": True})
    assert any(compiled), "the event has another name"
    programs.close()

    # Another process needs larger arrays at two steps, and was asked to stop.
    others = iter([(15, 0, 1, 0), (0, 2)])
    monkeypatch.setattr(prefetch, "BLOCK", 3)
    monkeypatch.setattr(prefetch, "ASK", 2)
    monkeypatch.setattr(
        prefetch, "gather", lambda *mine: lambda: np.array([mine, next(others)])
    )
    told = []
    made = list(prefetched(run, 0, Stop(), lambda *step: told.append(step)))
    assert [ready.level for ready in made] == [0, 1, 0, 2]
    assert [ready.asked for ready in made] == [15, 0, 0, 0]
    assert told == list(enumerate([0, 1, 0, 2]))
    for step, ready in enumerate(made):
        wanted = run.text.batch_at_level(step, ready.level)[1]
        jax.tree.map(np.testing.assert_array_equal, ready.batch, wanted)
    run.lock.release()


@pytest.mark.slow
def test_a_run_goes_on_with_the_switch_as_given(tmp_path):
    """It changes no number; a record from before it was there still loads."""
    config = replace(prepared(tmp_path, ["the river bank is no bank"] * 200), steps=2)
    pretrain(config)
    path = config.workdir / "config.json"
    record = json.loads(path.read_text())
    assert record["train"].pop("unique_words") is True
    path.write_text(json.dumps(record))
    pretrain(replace(config, steps=4, unique_words=False))
    whole = replace(config, steps=4, workdir=tmp_path / "whole")
    pretrain(whole)
    lines = [
        read_metrics(run / "metrics.jsonl") for run in (config.workdir, whole.workdir)
    ]
    losses = [[line["loss"] for line in run] for run in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    counts = [[line["table_words"] for line in run] for run in lines]
    assert counts[0] == [*counts[1][:2], 320, 320] and max(counts[1]) < 10
