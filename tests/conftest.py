"""Strict JAX on eight CPU devices, and the data that tests share.

What JAX would quietly put right elsewhere raises here: mixed dtypes
(`jax_numpy_dtype_promotion`) and mixed ranks (`jax_numpy_rank_promotion`).
`JAX_PLATFORMS=cuda pytest` runs the tests on a GPU instead. `pytest --shapes` checks
the type and shape of every argument and result of elmojax as the tests run.
"""

from __future__ import annotations

import functools
import gc
import importlib
import lzma
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import optax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Nothing of the tests goes into the user's own cache.
_cache = tempfile.TemporaryDirectory(prefix="elmojax-tests-")
os.environ["ELMOJAX_CACHE"] = _cache.name

# A program is compiled once for all tests, also in the other process and in commands
# that they start; where JAX_COMPILATION_CACHE_DIR is set, for the next run as well.
for _name, _value in {
    "jax_compilation_cache_dir": f"{_cache.name}/programs",
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}.items():
    if _name.upper() not in os.environ:
        os.environ[_name.upper()] = str(_value)
        jax.config.update(_name, _value)

REPOSITORY = Path(__file__).resolve().parent.parent

USERS_FORM = jax.lax.platform_dependent
"""As it is before `quick_compilation` traces the form of a CPU alone."""

hypothesis.settings.register_profile("elmojax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("elmojax")


def _with_standard_promotion(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, whose rule computes float ** int32; `train_step` allows that itself."""

    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        rule = make(*args, **kwargs)
        free = jax.numpy_dtype_promotion("standard")(rule.update)
        return rule._replace(update=free)

    return call


for _name in ("adam", "adamw"):
    setattr(optax, _name, _with_standard_promotion(getattr(optax, _name)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shapes",
        action="store_true",
        help="check types and shapes of arguments and results (jaxtyping, beartype)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--shapes"):
        import jaxtyping

        os.environ["ELMOJAX_SHAPES"] = "1"
        jaxtyping.install_import_hook("elmojax", "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def _subprocesses_import_this_checkout() -> None:
    """As `pythonpath` in setup.cfg does it for the tests themselves."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Half the time to compile, for tests of many small programs that run once, and
    for the commands that they start. Of computations with a form for each platform only
    that of a CPU is traced, unless a test names another.

    JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles them like all others.
    """
    name = "jax_disable_most_optimizations"
    if name.upper() in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")
        patch.setattr(jax.lax, "platform_dependent", _form_of_a_cpu)
        jax.config.update(name, True)
        yield
        jax.config.update(name, False)


def _form_of_a_cpu(*arguments, cpu, **others):
    return cpu(*arguments)


@pytest.fixture
def users_compilation(quick_compilation) -> Iterator[None]:
    """For one test that compiles its own programs: all optimisations, as users have
    them. Every kind of parity has one."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="module")
def compile_once() -> Iterator[None]:
    """Commands have the devices of the tests, and so the programs compiled for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", str(jax.device_count()))
        yield
        gc.collect()


@pytest.fixture(scope="module")
def task() -> Iterator[Callable[[str], ModuleType]]:
    """A module of experiments/tasks by its name, as the commands there import it."""
    folder = str(REPOSITORY / "experiments" / "tasks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a biLM of tiny parameters, for tasks to read."""
    from toys import tiny_params

    import elmojax

    folder = tmp_path_factory.mktemp("model") / "toy"
    elmojax.save_hdf5(tiny_params(), folder)
    return folder


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of what other programs computed; its README says which."""
    return REPOSITORY / "tests" / "goldens"


@pytest.fixture(scope="session")
def sample_lines() -> Callable[..., list[str]]:
    """`sample_lines(count, name="train")`: first lines of a text in the package."""

    def lines(count: int, name: str = "train") -> list[str]:
        packed = resources.files("elmojax") / "sample" / f"{name}.txt.xz"
        text = lzma.decompress(packed.read_bytes()).decode("utf-8")
        return text.splitlines()[:count]

    return lines
