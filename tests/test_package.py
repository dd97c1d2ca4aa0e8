"""The package as a whole: what importing it costs, what it offers, what it ships."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

import pytest

import elmojax

HEAVY = (
    "aiohttp",
    "array_record",
    "fsspec",
    "grain",
    "h5py",
    "matplotlib",
    "optax",
    "orbax",
    "pyarrow",
    "ray",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tqdm",
    "trackio",
    "tyro",
    "wandb",
)


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _installed() -> importlib.metadata.Distribution:
    """What pip installed; not the egg-info that building leaves in the checkout."""
    for distribution in importlib.metadata.distributions(name="elmojax"):
        if distribution.read_text("RECORD") is not None:
            return distribution
    pytest.skip("elmojax is not installed, only imported from the checkout")


def test_import_is_light():
    loaded = _run(
        "import sys, elmojax, elmojax.formats.fetch\n"
        f"print(*sorted({{m.partition('.')[0] for m in sys.modules}} & {set(HEAVY)}))"
    )
    assert loaded.split() == []


@pytest.mark.parametrize("name", sorted(elmojax.__all__))
def test_public_name_resolves_and_says_what_it_is(name):
    words = getattr(elmojax, name).__doc__ or ""
    # That of a dataclass without one is its signature.
    assert words.strip() and not words.startswith(f"{name}("), f"{name}: {words!r}"
    assert name in dir(elmojax)


def test_public_names_are_unique():
    assert len(set(elmojax.__all__)) == len(elmojax.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = elmojax.no_such_name


def test_version_is_that_of_the_installed_package():
    assert elmojax.__version__ == _installed().version


def test_tensorflow_is_never_required():
    required = [re.match(r"[\w.-]+", r)[0] for r in _installed().requires or []]
    assert "tensorflow-datasets" in required
    assert "tensorflow" not in required


def test_wheel_has_the_sample_and_no_tests():
    files = {str(file) for file in _installed().files or []}
    if "elmojax/config.py" not in files:
        pytest.skip("elmojax is installed in editable mode")
    names = ("train.txt.xz", "heldout.txt.xz", "senses/bank-river.txt")
    sample = {f"elmojax/sample/{name}" for name in names}
    assert sample | {"elmojax/py.typed"} <= files
    assert not {f for f in files if f.startswith(("tests/", "experiments/"))}
