"""README and docs run as they stand: their Python, their commands, their flags.

The Python blocks of a page run one after the other in one namespace, in a directory
where `runs/mini` is a run that `elmojax pretrain` made. Commands about that run are
run; of all others the real parser reads the flags.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import h5py
import jax
import numpy as np
import pytest
import tyro
from conftest import REPOSITORY, USERS_FORM

import elmojax
from elmojax.cli import COMMANDS
from elmojax.cli.plot import KINDS
from elmojax.formats import fetch

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAGES = ["README.md", *(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md"))]
LINES = "The river bank was steep .\n\nI went to the bank .\n" * 40

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.M)
COMMAND = re.compile(r"^ {4}(?:\$ )?((?:elmojax|python|echo|printf) (?:\\\n|.)*)", re.M)
RUN = (
    *("evaluate", "score", "embed", "convert", "verify", "export", "runs"),
    "minimal-pairs",
)
"""Commands that are run where they are about a model that is there."""
HERE_IS = re.compile("runs/|mini$")


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def commands_of(page: str) -> list[str]:
    """What the page types into a shell, in order."""
    text = PYTHON.sub("", read(page))
    return [part for line in COMMAND.findall(text) for part in line.split(" && ")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A directory as a reader of the README has it: a run, texts, prepared corpora."""
    here = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for name in ("text.txt", "heldout.txt", "words.txt"):
            Path(name).write_text(LINES)
        commands.done("prepare", "--text", "text.txt", "--out", "data/train")
        words = "data/train/vocabulary.txt"
        for out in ("data/heldout", "runs/mini/sample-heldout"):
            given = ("--text", "heldout.txt", "--vocabulary", words)
            commands.done("prepare", *given, "--out", out)
        small = "--model.lstm.dim 8 --model.lstm.projection 64 --steps 2 --log-every 1 "
        small += "--model.encoder.filters 1 4 2 4 --model.encoder.embedding-dim 4 "
        small += "--rows 4 --window 5 --mesh.data 1 --data data/train"
        commands.done("pretrain", *small.split())
        elmojax.save_hdf5(elmojax.restore("runs/mini"), ".")
        for name in ("3", "a"):
            os.symlink("mini", f"runs/{name}")
    return here


@pytest.fixture
def there(made, tmp_path, monkeypatch) -> Path:
    """Its copy for one page; what a page makes, no other page sees."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_is_read():
    """Neither pattern has gone blind."""
    assert sum(len(PYTHON.findall(read(page))) for page in PAGES) >= 19
    assert sum(len(commands_of(page)) for page in PAGES) >= 35
    for page in PAGES:
        assert len(PYTHON.findall(read(page))) == read(page).count("```python")


# --- Python --------------------------------------------------------------------------


@pytest.fixture
def published(there, goldens, monkeypatch):
    """Every address has the files of a model; nothing leaves this machine."""
    model = goldens / "allennlp"
    files = {"json": "options.json", "hdf5": "lm_weights.hdf5"}

    def served(path, url, sha256, content):
        shutil.copy(model / files[url.rpartition(".")[2]], path)

    manylangs = REPOSITORY / "tests" / "data" / "manylangs"
    shutil.copytree(manylangs / "legacy", there / "144")
    shutil.copytree(manylangs / "configs", there / "configs")
    shutil.copytree(REPOSITORY / "tests/data/tf_hub_module", there / "elmo_3")
    monkeypatch.setattr(fetch, "_download", served)
    monkeypatch.setenv("ELMOJAX_CACHE", str(there / "cache"))
    return {
        "digits": hashlib.sha256((model / files["hdf5"]).read_bytes()).hexdigest(),
        "options_url": "https://example.org/mine.json",
        "weights_url": "https://example.org/mine.hdf5",
    }


SLOW = ("docs/pipelines.md", "docs/softmax.md")
HERE = [
    pytest.param(page, marks=pytest.mark.slow if page in SLOW else [])
    for page in PAGES
    if PYTHON.search(read(page)) and page != "docs/checkpoints.md"
]
"""The other one is run by test_checkpoints.py, with a run that a mesh trained."""


@pytest.mark.parametrize("page", HERE)
def test_the_python_of_a_page_runs(page, there, published, monkeypatch):
    """Errors name the line of the page. Programs have the forms of all platforms, as
    those of a reader."""
    monkeypatch.setattr(jax.lax, "platform_dependent", USERS_FORM)
    text = read(page)
    names = dict(published)
    for found in PYTHON.finditer(text):
        blank = "\n" * text[: found.start(1)].count("\n")
        exec(compile(blank + found[1], REPOSITORY / page, "exec"), names)
    if page.endswith("pipelines.md"):
        assert np.isfinite(names["value"])
        assert np.abs(names["task"]["mix"]["s"]).min() > 0


# --- commands ------------------------------------------------------------------------


class Parsed(BaseException):
    """The flags were right; nothing else happens."""


def parse_only(argv: list[str], monkeypatch) -> None:
    """What `argv` starts, until its flags are read."""

    def then_stop(parse):
        def stopping(*arguments, **more):
            parse(*arguments, **more)
            raise Parsed

        return stopping

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(tyro, "cli", then_stop(tyro.cli))
        parser = argparse.ArgumentParser
        patch.setattr(parser, "parse_args", then_stop(parser.parse_args))
        if argv[0] == "elmojax":
            COMMANDS[argv[1]](argv[2:])
        else:
            script = REPOSITORY / argv[1]
            patch.setattr(sys, "argv", argv[1:])
            patch.setattr(sys, "path", [str(script.parent), *sys.path])
            patch.setattr(os, "environ", dict(os.environ))
            runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if "measures" in page else [])
        for page in PAGES
        if commands_of(page)
    ],
)
def test_the_commands_of_a_page(page, there, monkeypatch):
    """`...` stands for more flags, N and I for numbers. Then come its `>>>` lines."""
    for command in commands_of(page):
        argv = shlex.split(command.replace("\\\n", " "), comments=True)
        argv = ["1" if word in ("N", "I") else word for word in argv if word != "..."]
        if argv[0] in ("echo", "printf"):
            subprocess.run(["sh", "-c", command], check=True)
        elif argv[:2] == ["python", "-c"]:
            exec(argv[2], {})
        elif argv[0] == "elmojax" and argv[1] in RUN and HERE_IS.match(argv[2]):
            commands.done(*argv[1:])
        elif argv[0] == "elmojax" or (argv[1:] and argv[1].endswith(".py")):
            parse_only(argv, monkeypatch)
    for example in doctest.DocTestParser().get_examples(read(page)):
        assert repr(eval(example.source, {"h5py": h5py})) == example.want.strip()


def test_every_flag_that_a_page_names_exists():
    """In a command, in a sentence or in a table."""
    known = {"--help", "--version"}
    for name in (*COMMANDS, *(f"plot {kind}" for kind in KINDS)):
        told = commands.run(*name.split(), "--help").out
        known.update(re.findall(r"--[a-z][\w.-]+", told))
    tests = REPOSITORY / "tests"
    scripts = [tests / "faults.py", tests / "damage.py"]
    for script in (*REPOSITORY.glob("experiments/**/*.py"), *scripts):
        code = script.read_text(encoding="utf-8")
        known.update(re.findall(r"--[a-z][\w.-]+", code))
        fields = re.findall(r"^    (\w+): ", code, re.M)  # of tyro
        fields += re.findall(r"^        (\w+)=", code, re.M)  # of harness.options
        known.update("--" + name.replace("_", "-") for name in fields)
    theirs = {"--all", "--top", "--average"}  # of AllenNLP's `elmo`
    theirs |= {"--model_args", "--tasks", "--include_path"}  # of lm-evaluation-harness
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", read(page)))
        assert named - known <= theirs, f"{page}: {named - known - theirs}"


def test_the_picture_of_the_packages_is_that_of_their_imports():
    everywhere = {
        "__main__",
        "config",
        "errors",
        "shapes",
        "disk",
        "arguments",
        "cloud",
    }
    root, found = REPOSITORY / "elmojax", set()
    for path in root.rglob("*.py"):
        own = path.relative_to(root).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "elmojax."
            ):
                found.add((own, node.module.split(".")[1]))
    found = {
        (one, other)
        for one, other in found
        if one not in {other, "__init__"} and not {one, other} & everywhere
    }
    drawn = re.findall(r"^    (\w+) --> (\w+)$", read("docs/architecture.md"), re.M)
    assert set(drawn) == found and len(drawn) == len(set(drawn))


def test_the_reference_has_every_public_name_once():
    named = re.findall(r"^::: elmojax\.(\w+)$", read("docs/reference.md"), re.M)
    assert sorted(named) == sorted(elmojax.__all__)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", *PAGES])
def test_files_that_a_page_names_are_there(page):
    names = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|sh|cfg|toml))`", read(page))
    places = (REPOSITORY, REPOSITORY / "elmojax", REPOSITORY / "experiments" / "launch")
    for name in names:
        assert any((place / name).exists() for place in places), name
