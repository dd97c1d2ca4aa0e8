"""JAX's process-wide switches change neither vectors nor what a file means."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from typing import Any

import commands
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TINY, tiny_params

import elmojax
from elmojax.config import OptimizerConfig
from elmojax.embedding.export import export_programs
from elmojax.training.optim import make_schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")

SWITCHES = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_prng_impl": "rbg",
    "jax_legacy_prng_key": "error",
    "jax_default_matmul_precision": "bfloat16",
    "jax_default_device": "the third",
    "jax_debug_nans": True,
    "jax_debug_infs": True,
}
SENTENCES = [["The", "river", "bank"], ["Hi"]]
LONG = [f"w{n % 7}" for n in range(90)]


@contextlib.contextmanager
def switched(**switches: Any) -> Iterator[None]:
    """JAX with these switches, for all threads, as the environment sets them."""
    before = {name: getattr(jax.config, name) for name in switches}
    try:
        for name, value in switches.items():
            third = name == "jax_default_device"
            jax.config.update(name, jax.devices()[2] if third else value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def assert_same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    """Names, dtypes and numbers, of arrays that may lie on other devices."""
    pairs = map(jax.tree_util.tree_leaves_with_path, (one, other))
    for (path, a), (_, b) in zip(*pairs, strict=True):
        name = jax.tree_util.keystr(path)
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype, name
        if tolerance:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def vectors(params: elmojax.ElmoParams, key: jax.Array) -> dict[str, Any]:
    """What the functions of arrays give, of numbers as users of x64 have them too."""
    tokens = elmojax.batch_to_ids(SENTENCES, 12)
    gammas = np.array([0.2, 0.3, 0.5])  # float64
    encoded = elmojax.encode(params, tokens)

    def loss(params: elmojax.ElmoParams, gammas: jax.Array) -> jax.Array:
        return (elmojax.embed(params, tokens.astype(np.int64), gammas) ** 2).sum()

    both = jnp.asarray([gammas, gammas], jnp.float32)
    return {
        "tokens": tokens,
        "embed": elmojax.embed(params, tokens, gammas, np.float64(0.5)),
        "one layer": elmojax.embed(params, tokens, [0, 1, 0], 1),
        "two mixes": elmojax.embed(params, tokens, both, gammas[:2]),
        "encode": encoded,
        "gradient": jax.grad(loss, (0, 1))(params, both[0]),
        "mixes": mixes(encoded, key),
    }


def mixes(encoded: elmojax.Encoded, key: jax.Array) -> list[Any]:
    mix = elmojax.ScalarMix(layer_norm=True, dropout=0.5)
    start = mix.init(key, encoded.layers, encoded.mask)
    return [
        start,
        mix.apply(start, *encoded[:2], deterministic=False, rngs={"dropout": key}),
        elmojax.mix_weights(np.array([0.1, 0.2]), np.float64(2)),
        elmojax.mix_penalty(start["params"], np.float64(0.1)),
    ]


def exported(params: elmojax.ElmoParams) -> dict[str, Any]:
    """What tells the exported programs apart."""
    return {
        name: np.frombuffer(hashlib.sha256(program).digest(), np.uint8)
        for name, program in export_programs(params).items()
    }


def the_rest(params: elmojax.ElmoParams, key: jax.Array, folder: Any) -> dict[str, Any]:
    """Everything else that elmojax offers, and its files."""
    words = [*SENTENCES[0], *SENTENCES[1]]
    cached = elmojax.cache_words(params, words)
    ids = elmojax.word_ids(words, SENTENCES)
    embedder = elmojax.Embedder(params, batch_tokens=64, dtype="float16")
    elmojax.save_hdf5(params, folder)
    files = folder / "options.json", folder / "weights.hdf5"
    encoded = elmojax.encode(params, elmojax.batch_to_ids(SENTENCES, 12))
    rate = make_schedule(OptimizerConfig(decay="cosine", warmup_steps=2), 9)
    return {
        "init": elmojax.init(TINY, key),
        "warm": elmojax.warm(params, tolerance=0.1),
        "cached": elmojax.embed(cached, ids.astype(np.int64), [0.2, 0.3, 0.5]),
        "sentences": embedder.embed_batch([*SENTENCES, LONG]),
        "hub": elmojax.hub_default(params, ["The river bank", ""]),
        "pool": elmojax.pool(encoded.layers[:, 1], encoded.mask, "mean"),
        "hdf5": elmojax.load_hdf5(*files),
        "programs": exported(params),
        "rates": [rate(1), rate(5)],
    }


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def usual(params, key, tmp_path_factory):
    """Without switches, but for those of all tests."""
    return {
        **vectors(params, key),
        **the_rest(params, key, tmp_path_factory.mktemp("hdf5")),
    }


@pytest.mark.slow
def test_public_functions_under_all_switches_at_once(params, key, usual, tmp_path):
    with switched(**SWITCHES):
        found = {**vectors(params, key), **the_rest(params, key, tmp_path)}
    assert_same(usual, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *SWITCHES.items(),
        ("jax_numpy_dtype_promotion", "standard"),
        ("jax_default_matmul_precision", "tensorfloat32"),
    ],
)
def test_public_functions_under_one_switch(params, key, usual, tmp_path, name, value):
    with switched(**{name: value}):
        found = {**vectors(params, key), **the_rest(params, key, tmp_path)}
    assert_same(usual, found)


@pytest.mark.slow
def test_no_tracer_leaks(params, key, usual):
    """Vectors and gradients: JAX looks through all memory after each trace."""
    with switched(jax_check_tracer_leaks=True):
        found = vectors(params, key)
    assert_same({name: usual[name] for name in found}, found)


@pytest.mark.slow
def test_encode_without_jit(params, usual):
    """What is not compiled as a whole may round otherwise."""
    with jax.disable_jit():
        found = elmojax.encode(params, elmojax.batch_to_ids(SENTENCES, 12))
    assert_same(usual["encode"], found, tolerance=1e-5)


@pytest.mark.slow
def test_vectors_and_gradients_without_jit(params, key, usual):
    with jax.disable_jit():
        found = vectors(params, key)
    assert_same({name: usual[name] for name in found}, found, tolerance=1e-5)


def test_an_export_needs_no_jit_while_it_is_made(params):
    with jax.disable_jit():
        found = exported(params)
    assert_same(exported(params), found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a text and of a run of two steps, with both checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.txt").write_text("the river bank is the bank\nno bank is odd\n" * 9)
    commands.done("prepare", "--text", folder / "a.txt", "--out", folder / "data")
    train(folder, folder / "run")
    return folder


def train(folder, workdir):
    flags = (*commands.TINY, "--dropout", 0.1, "--steps", 2, "--checkpoint-every", 1)
    # Cosine and AdamW: Optax has powers of whole numbers in both.
    flags += ("--optimizer.name", "adamw", "--optimizer.decay", "cosine")
    flags += ("--optimizer.warmup-steps", 1)
    given = ("--data", folder / "data", "--workdir", workdir)
    return commands.done("pretrain", *given, *flags)


def files_of(folder, out):
    """What the other commands make of the run in `folder`, on files in `out`."""
    run, text = folder / "run", ("--text", folder / "a.txt")
    commands.done("convert", run, "--out", out / "hdf5")
    commands.done("convert", out / "hdf5", "--out", out / "orbax")
    commands.done("embed", run, *text, "--out", out / "v.hdf5")
    commands.done("export", run, "--out", out / "exported")
    commands.done("verify", run)
    perplexities = commands.answer("evaluate", run, *text)
    del perplexities["seconds"]
    with h5py.File(out / "v.hdf5") as vectors:
        first = vectors["0"][...]
    return {
        "hdf5": elmojax.load(out / "hdf5"),
        "orbax": elmojax.load(out / "orbax"),
        "vectors": first,
        "exported": np.frombuffer((out / "exported").read_bytes(), np.uint8),
        "perplexities": perplexities,
        "scores": commands.answer("score", run, *text)["sentences"][0]["forward"],
    }


@pytest.fixture(scope="module")
def usual_files(run, tmp_path_factory):
    return files_of(run, tmp_path_factory.mktemp("files"))


@pytest.mark.slow
def test_commands_under_all_switches_at_once(run, usual_files, tmp_path):
    with switched(**SWITCHES):
        found = files_of(run, tmp_path)
    # On the third device alone, where all eight shared the work before.
    sums = "perplexities"
    assert_same(usual_files[sums], found[sums], tolerance=1e-5)
    assert_same({**usual_files, sums: None}, {**found, sums: None})


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_under_all_switches_at_once(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    with switched(**SWITCHES):
        assert "Going on" in train(run, tmp_path / "run").err
    assert_same(elmojax.restore(run / "run"), elmojax.restore(tmp_path / "run"))
