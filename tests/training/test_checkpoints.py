"""Checkpoints on any devices, under any switch, and with Orbax alone."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import CHARACTERS, LSTM, answer, done, refused
from conftest import REPOSITORY
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1

import elmojax
from elmojax.embedding.export import export_programs
from elmojax.formats.tf_checkpoint import load_tf_checkpoint
from elmojax.loading import open_model
from elmojax.model.bilm import tree_shapes
from elmojax.training import checkpoint as module
from elmojax.training.checkpoint import Checkpoints
from elmojax.training.damage import DamagedCheckpoint

pytestmark = [
    pytest.mark.usefixtures("quick_compilation", "compile_once"),
    # Of Orbax, where it is not told where arrays go.
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
]

TEXT = "the river bank is green .\nI went to the bank .\nthe cat sat on the mat .\n"
SENTENCES = [line.split() for line in TEXT.splitlines()]
TF_CHECKPOINT = Path(__file__).parents[1] / "data" / "bilm_tf_checkpoint" / "plain"


class World(NamedTuple):
    data: Path
    text: Path
    run: Path
    """Trained on a mesh of 4 x 2."""
    files: Path
    """The same model as HDF5."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    world = World(*(folder / name for name in ("data", "text.txt", "run", "files")))
    world.text.write_text(TEXT, encoding="utf-8")
    done("prepare", "--text", world.text, "--out", world.data)
    done(
        *("pretrain", "--data", world.data, "--heldout", world.data),
        *("--workdir", world.run, "--steps", 2, "--rows", 8, "--window", 4),
        *("--mesh.data", 4, "--mesh.model", 2, *LSTM, *CHARACTERS),
    )
    done("convert", world.run, "--out", world.files)
    return world


def assert_same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one: Any, other: Any) -> None:
    """As far as other programs, made for other devices, round."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


# --- meshes --------------------------------------------------------------------------


def uses(world: World) -> dict[str, Any]:
    """What people do with a model, on the host."""
    params, files = elmojax.restore(world.run), elmojax.load(world.files)
    for leaf in jax.tree.leaves((params.tree, files.tree)):
        assert not leaf.committed and leaf.dtype == np.float32
    tokens, gammas = elmojax.batch_to_ids(SENTENCES, 16), np.ones(3, np.float32)
    embedder = elmojax.Embedder(params, batch_tokens=64)
    spread = elmojax.Embedder(params, batch_tokens=64, mesh=mesh_of((8,)))
    warm = elmojax.warm(params, tolerance=0.1).initial_state
    cached = elmojax.cache_words(params, ["the", "river"])
    scores = elmojax.score(world.run, SENTENCES)
    values = {
        "restore": elmojax.embed(params, tokens, gammas),
        "load": elmojax.embed(files, tokens, gammas),
        "score": [(score.forward, score.backward) for score in scores],
        "Embedder": embedder.embed_batch(SENTENCES),
        "Embedder on a mesh": spread.embed_batch(SENTENCES),
        "warm": (warm.cell, warm.hidden),
        "cache_words": cached.encoder["embedding"],
    }
    return jax.tree.map(np.asarray, values)


@pytest.fixture(scope="module")
def wanted(world) -> dict[str, Any]:
    return uses(world)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        pytest.param((1,), AxisType.Explicit, marks=pytest.mark.slow),
        pytest.param((4,), AxisType.Auto, marks=pytest.mark.slow),
        pytest.param((4, 2), AxisType.Auto, marks=pytest.mark.slow),
        ((4, 2), AxisType.Explicit),
    ],
)
def test_a_model_works_inside_any_mesh(world, wanted, shape, axes):
    mesh = mesh_of(shape, axes)
    with jax.set_mesh(mesh):
        found = uses(world)
    assert_close(found, wanted)


def mesh_of(shape: tuple[int, ...], axes: AxisType = AxisType.Explicit):
    names, count = ("data", "model")[: len(shape)], int(np.prod(shape))
    types = (axes,) * len(shape)
    return jax.make_mesh(shape, names, axis_types=types, devices=jax.devices()[:count])


def rows_over(mesh: jax.sharding.Mesh, config: elmojax.ElmoConfig) -> Any:
    """A sharding of every array, many of them split."""
    shapes = jax.eval_shape(lambda: elmojax.init(config, jax.random.key(0)))

    def place(leaf: Any) -> NamedSharding:
        split = leaf.ndim == 4 and leaf.shape[1] % mesh.shape["data"] == 0
        return NamedSharding(mesh, P(None, "data") if split else P())

    return jax.tree.map(place, shapes)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_other_devices_than_those_of_the_mesh_around(world, axes):
    """Where the caller says, not where `set_mesh` is; programs are for any device."""
    params = elmojax.restore(world.run)
    programs = export_programs(params)
    third = SingleDeviceSharding(jax.devices()[2])
    two = jax.make_mesh((2,), ("x",), devices=jax.devices()[3:5])
    with jax.set_mesh(mesh_of((4, 2), axes)):
        by_device = elmojax.restore(world.run, sharding=jax.devices()[2])
        assert {leaf.sharding for leaf in jax.tree.leaves(by_device)} == {third}
        for place in (
            third,
            NamedSharding(two, P()),
            NamedSharding(mesh_of((8,)), P()),
        ):
            found = elmojax.restore(world.run, sharding=place)
            assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {place}
            assert_same(found.tree, params.tree)
            half = elmojax.load(world.files, sharding=place, precision="bf16")
            assert half.lstm["kernel_0"].sharding.device_set == place.device_set
        assert export_programs(params) == programs
        on_third = elmojax.restore(world.run, sharding=third)
        found = elmojax.Embedder(on_third, batch_tokens=64).embed_batch(SENTENCES)
    wanted = elmojax.Embedder(params, batch_tokens=64).embed_batch(SENTENCES)
    assert_close(found, wanted)


def test_what_reads_files_is_not_traced(world):
    with pytest.raises(elmojax.InputError, match=r"outside of jax\.jit only"):
        jax.jit(lambda: elmojax.restore(world.run))()


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_arrays_are_read_straight_to_where_they_are_to_lie(world, monkeypatch, axes):
    """Orbax is asked for shares and never for the softmax; so each device gets its."""
    mesh, asked = mesh_of((4, 2), axes), {}
    restore = ocp.PyTreeCheckpointHandler.restore

    def spy(self, directory, args=None):
        if directory.name == "params":
            asked.update(args.restore_args)
        return restore(self, directory, args=args)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spy)
    places = rows_over(mesh, elmojax.model_config(world.run))
    whole = elmojax.restore(world.run)
    assert sorted({name.split(".")[0] for name in asked}) == ["encoder", "lstm"]
    split = elmojax.restore(world.run, sharding=places)
    flat = module._flat(places.tree)
    assert {name: how.sharding for name, how in asked.items()} == flat
    assert_same(split.tree, whole.tree)
    assert {leaf.sharding for leaf in split.lstm.values()} == set(places.lstm.values())
    kernel = split.lstm["kernel_0"]
    assert kernel.addressable_data(0).shape[1] == kernel.shape[1] // 4

    files = elmojax.load(world.files, sharding=places)
    assert files.lstm["kernel_0"].sharding == places.lstm["kernel_0"]
    assert_same(files.tree, whole.tree)
    everywhere = NamedSharding(mesh, P())
    theirs = elmojax.load(TF_CHECKPOINT, sharding=everywhere)
    assert {a.sharding for a in jax.tree.leaves(theirs.tree)} == {everywhere}
    assert_same(theirs.tree, elmojax.load(TF_CHECKPOINT).tree)
    second = SingleDeviceSharding(jax.devices()[1])
    prefix = places.replace(encoder=second, lstm=everywhere)
    mixed = elmojax.restore(world.run, sharding=prefix)  # on different devices
    assert mixed.encoder["embedding"].devices() == {jax.devices()[1]}
    assert_same(mixed.tree, whole.tree)


def test_a_sharding_that_does_not_fit_is_refused(world):
    mesh = mesh_of((8,))
    for wrong in (NamedSharding(mesh, P("data")), {"encoder": None}, mesh, "data"):
        for read in (elmojax.restore, elmojax.load):
            with pytest.raises(elmojax.InputError, match="sharding does not fit"):
                read(world.run, sharding=wrong)
    with pytest.raises(elmojax.InputError, match="sharding does not fit"):
        elmojax.load(world.files, sharding=wrong)


def test_the_softmax_is_read_where_it_is_wanted_only(world, tmp_path):
    copy = tmp_path / "files"
    shutil.copytree(world.files, copy)
    with h5py.File(copy / "softmax.hdf5", "w"):
        pass
    assert_same(elmojax.load(copy).tree, elmojax.restore(world.run).tree)
    refused("score", copy, "--text", world.text, says="softmax.hdf5 has no")
    params, head = load_tf_checkpoint(TF_CHECKPOINT, head=False)
    assert head is None
    assert_same(params.tree, load_tf_checkpoint(TF_CHECKPOINT)[0].tree)


@pytest.mark.parametrize("part", ["lstm", "head"])
def test_sums_of_what_is_read_are_compared(world, tmp_path, monkeypatch, part):
    run, real = tmp_path / "run", module.digests
    shutil.copytree(world.run, run)
    shutil.rmtree(run / "checkpoints")

    def wrong(leaves: Any) -> np.ndarray:
        sums = real(leaves).copy()
        sums[next(i for i, n in enumerate(sorted(leaves)) if n.startswith(part))] += 1
        return sums

    model = open_model(world.run)
    with monkeypatch.context() as patch:
        patch.setattr(module, "digests", wrong)
        checkpoints = Checkpoints(run)
        checkpoints.save(2, {**model.params.tree, "head": model.head}, None)
        checkpoints.close()
    with pytest.raises(DamagedCheckpoint, match="numbers of its part 'params'"):
        open_model(run)
    if part == "head":
        assert_same(elmojax.restore(run).tree, model.params.tree)
    else:
        with pytest.raises(DamagedCheckpoint, match="numbers of its part 'params'"):
            elmojax.restore(run)


# --- switches ------------------------------------------------------------------------


@pytest.mark.slow
def test_float32_is_float32_under_x64(world, tmp_path):
    """All that reads a model gives the numbers that it gives without the switch."""

    def outcomes(folder: Path) -> Any:
        folder.mkdir()
        tree_shapes.cache_clear()
        params = elmojax.restore(world.run)
        fresh = elmojax.init(params.config, jax.random.key(0))
        out = folder / "vectors.hdf5"
        done("embed", world.run, "--text", world.text, "--out", out)
        done("convert", world.run, "--out", folder / "files")
        done("convert", folder / "files", "--out", folder / "run")
        scores = answer("score", world.run, "--text", world.text)["sentences"]
        found = answer("evaluate", world.run, "--data", world.data)
        with h5py.File(out) as file:
            vectors = file["0"][()]
        trees = [params.tree, elmojax.load(folder / "files").tree, fresh.tree]
        trees += [elmojax.restore(folder / "run").tree]
        assert {leaf.dtype for leaf in jax.tree.leaves(trees)} == {np.dtype("float32")}
        numbers = [scores[0]["forward"], found["loss"]]
        return jax.tree.map(np.asarray, (trees, vectors, numbers))

    narrow = outcomes(tmp_path / "32")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = outcomes(tmp_path / "64")
    tree_shapes.cache_clear()
    assert_same(narrow[:1], wide[:1])
    assert_close(narrow, wide)


# --- Orbax alone ---------------------------------------------------------------------


def test_the_blocks_of_the_page_run(world, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mini").symlink_to(world.run)
    monkeypatch.chdir(tmp_path)
    page = REPOSITORY / "docs" / "checkpoints.md"
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.M))
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for found in blocks:
        lines = "\n" * text[: found.start(1)].count("\n")
        exec(compile(lines + found[1], page, "exec"), names)
    items, params = names["items"], names["params"]
    assert set(items.keys()) == {"params", "training", "sums"}
    for tree in (items.params, names["tree"]):
        made = elmojax.from_tree(params.config, tree)
        assert_same(made.tree, params.tree)
    for leaf in jax.tree.leaves(names["everywhere"].tree):
        assert leaf.sharding == NamedSharding(names["mesh"], P())
    assert any(not a.is_fully_replicated for a in jax.tree.leaves(names["shared"].tree))
    assert_same(names["shared"].tree, params.tree)


def test_trees_are_made_into_params_by_name(world):
    params = elmojax.restore(world.run)
    assert_same(elmojax.from_tree(params.config, params.tree), params)
    flat = module._flat(params.tree)
    assert_same(elmojax.from_tree(params.config, flat), params)
    with pytest.raises(elmojax.InputError, match=r"lstm\.bias_0 is missing"):
        lacking = {name: leaf for name, leaf in flat.items() if name != "lstm.bias_0"}
        elmojax.from_tree(params.config, lacking)
    with pytest.raises(elmojax.InputError, match=r"encoder\.embedding has shape"):
        elmojax.from_tree(params.config, {**flat, "encoder.embedding": np.ones(3)})


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"dim": 16', '"dim": 24', r"model\.lstm\.dim = 16"),
        ('"skip_connections": true', '"skip_connections": false', "skip_connections"),
        ('"activation": "relu"', '"activation": "tanh"', r"model\.encoder\.activation"),
        ('"cell_clip": 3.0', '"cell_clip": 1.5', "cell_clip = 3.0"),
    ],
)
def test_another_configuration_is_refused_by_name(world, tmp_path, old, new, name):
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    path = run / "config.json"
    path.write_text(path.read_text().replace(old, new))
    for read in (elmojax.restore, elmojax.load, open_model):
        with pytest.raises(
            elmojax.InputError, match=rf"another configuration: .*{name}"
        ):
            read(run)


def test_an_edited_run_does_not_go_on(world, tmp_path):
    """What is edited may be read with the model, and may be harmless."""
    run = tmp_path / "run"
    shutil.copytree(world.run, run)
    path = run / "config.json"
    text = path.read_text().replace('"log_every": 10', '"log_every": 7')
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert_same(elmojax.restore(run).tree, elmojax.restore(world.run).tree)
    says = "was trained with seed = 0, and config.json says 1"
    flags = ["--data", world.data, "--heldout", world.data, "--steps", 3]
    refused("pretrain", *flags, "--workdir", run, says=says)
    assert [step.name for step in (run / "checkpoints").iterdir()] == ["2"]
    path.write_text(text)
    done("pretrain", *flags[:-2], "--workdir", run)


# --- checkpoints of earlier versions -------------------------------------------------


@pytest.fixture
def before(tmp_path) -> Path:
    """A run of elmojax 0.1.0 that saved as Orbax's v1 does: one step of two rows."""
    with tarfile.open(
        Path(__file__).parents[1] / "data/checkpoint/before.tar.xz"
    ) as file:
        file.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_earlier_checkpoints_are_read_with_their_sums(before, monkeypatch):
    checkpoint = before / "checkpoints" / "2"
    stored = v1.load_checkpointables(checkpoint)
    params = elmojax.restore(before)
    assert_same(
        module._flat(params.tree).keys() | {"head.kernel", "head.bias"},
        stored["params"].keys(),
    )
    assert_same(elmojax.from_tree(params.config, stored["params"]).tree, params.tree)
    checkpoints = Checkpoints(before)
    assert checkpoints.best == (12.021902168090929, 2)
    like = {
        part: {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in stored[part].items()
        }
        for part in ("params", "training")
    }
    found = checkpoints.load(2, **like)
    assert_same(found, {part: stored[part] for part in like})
    real = module.digests
    monkeypatch.setattr(module, "digests", lambda leaves: real(leaves) + np.uint32(1))
    for part, tree in like.items():
        with pytest.raises(DamagedCheckpoint, match=f"numbers of its part '{part}'"):
            checkpoints.load(2, **{part: tree})
    checkpoints.close()
