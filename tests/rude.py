"""Rude cases over all commands and the Python API: each ends in one clear sentence.

    python -m tests.rude [--kind PREFIX] [--folder DIR]

Cases are made from tables: flags x bad values, files x damages, texts x odd bytes, API
functions x wrong kinds. Each is judged by the same rule: status 2, nothing on standard
output, one sentence, no traceback, nothing left behind; or status 0 with the result
that the table names. Prints how many cases of each kind there are and every bad one;
exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import dataclasses
import gzip
import lzma
import math
import random
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import elmojax
from elmojax import config as configs
from elmojax.arguments import shown
from elmojax.cli import COMMANDS
from elmojax.config import from_json, to_json
from elmojax.errors import InputError
from tests.commands import Outcome, run
from tests.damage import kinds as damages

MADE = Path(__file__).parent / "data/made_before/made.tar.xz"
"""A run, HDF5 files, a corpus and vectors, which every case finds as `..`."""
MODULE = MADE.parents[1] / "tf_hub_module"


class Case(NamedTuple):
    kind: str
    name: str
    act: Callable[[], Outcome]
    """Run in a folder of its own."""
    good: str | None = None
    """What standard output holds where status 0 is right; None = it never is."""


def judge(case: Case) -> str:
    """What is wrong with how a case ended, "" for nothing."""
    try:
        status, out, err = case.act()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:160]
    left = sorted(path.name for path in Path().iterdir() if path.name != "given")
    if status == 0 and case.good is not None:
        return "" if case.good in out else f"{case.good!r} is not in {out[:200]!r}"
    lines = err.strip().splitlines() or [""]
    faults = {
        f"status {status}": status != 2,
        f"{len(lines)} lines": len(lines) != 1,
        f"prints {out[:40]!r}": bool(out),
        "no sentence": not (err.startswith("elmojax: ") and err.rstrip()[-1] in ".?"),
        f"{len(err)} characters": len(err) > 700,
        f"leaves {left}": bool(left),
    }
    found = [fault for fault, there in faults.items() if there]
    return f"{', '.join(found)}: {lines[-1][:200]}" if found else ""


def command(kind: str, *arguments: object, good: str | None = None) -> Case:
    name = " ".join(f"{a}"[:40] for a in arguments)
    return Case(kind, name, partial(run, *arguments), good)


def call(
    kind: str, function: Any, /, *arguments: Any, good: str | None = None, **more: Any
) -> Case:
    """A call of Python, judged like a command: an `InputError` is status 2."""

    def act() -> Outcome:
        try:
            return Outcome(0, str(function(*arguments, **more)), "")
        except InputError as error:
            return Outcome(2, "", f"elmojax: {error}\n")

    values = ", ".join(map(shown, (*arguments, *more.values())))
    return Case(kind, f"{function.__qualname__}({values})", act, good)


# --- numbers out of all measure ------------------------------------------------------

USUAL: dict[str, tuple[object, ...]] = {
    "pretrain": ("pretrain", "--data", "../data", "--workdir", "w"),
    "estimate": ("estimate", "--workdir", "w"),
    "prepare": ("prepare", "--text", "../three.txt", "--out", "o"),
    "embed": ("embed", "../hdf5", "--text", "../three.txt", "--out", "o.hdf5"),
    "static": ("static", "../hdf5", "--text", "../three.txt", "--out", "o.vec"),
    "evaluate": ("evaluate", "../run", "--text", "../three.txt"),
    "score": ("score", "../run", "--text", "../three.txt"),
    "minimal-pairs": ("minimal-pairs", "../run", "../pairs.jsonl"),
    "convert": ("convert", "../run", "--out", "o"),
    "export": ("export", "../run", "--out", "o"),
    "verify": ("verify", "../hdf5"),
    "runs": ("runs", ".."),
    "similar": (
        *("similar", "the river bank .", "--word", "bank"),
        *("--among", "../three.txt", "--model", "../hdf5"),
    ),
    "plot": ("plot", "run", "../run", "--out", "o.png"),
    "report": ("report", "../run", "--out", "o.html"),
}

NEVER = ("-1", "nan", "x", "", "9" * 5000, "9" * 4000, "1e300", "-inf")
"""Values that no number of a flag may have."""
WHOLE = ("1.5", "1e20", "99999999999999999999", "inf")
ZERO = ("0",)

RECIPE = {
    "--rows --window --log-every --keep --accumulate --steps --model.lstm.dim "
    "--model.lstm.projection --model.lstm.layers --model.encoder.embedding-dim "
    "--model.encoder.max-characters --head.samples --mesh.model": WHOLE + ZERO,
    "--freeze-steps --seed --checkpoint-every --evaluate-every --patience "
    "--skip-nonfinite --optimizer.warmup-steps --mesh.data": WHOLE,
    "--model.lstm.cell-clip --model.lstm.projection-clip --optimizer.learning-rate "
    "--optimizer.gradient-norm --epochs --head.div-value": ZERO,
    "--dropout": ("1", "inf"),
    "--spike-guard": ("0.5", "inf"),
    "--optimizer.weight-decay --optimizer.initial-accumulator": ("inf",),
}
NUMBERS = {
    "pretrain": RECIPE,
    "estimate": {**RECIPE, "--vocabulary --tokens": (*WHOLE, *ZERO, "2")[:-1]},
    "prepare": {"--max-vocabulary --min-count --max-characters": WHOLE + ZERO},
    "embed": {
        "--batch-tokens": WHOLE + ZERO,
        "--step": WHOLE,
        "--gammas": (),
        "--output-layer": (*WHOLE, "-3", "3"),
    },
    "static": {
        "--batch-tokens --min-count --max-vocabulary": WHOLE + ZERO,
        "--step": WHOLE,
        "--gammas": (),
    },
    "evaluate": {"--step": WHOLE},
    "score": {"--step --top-k": WHOLE},
    "minimal-pairs": {"--step": WHOLE},
    "convert": {"--step": WHOLE},
    "export": {"--step": WHOLE},
    "similar": {"--nearest --occurrence": WHOLE + ZERO, "--layer --step": WHOLE},
}
HUGE = (
    "pretrain --rows 2147483648",
    "pretrain --rows 1048576 --window 16",
    "pretrain --rows 524288",
    "pretrain --model.lstm.dim 131072 --model.lstm.projection 131072",
    "pretrain --model.encoder.filters 1 131072",
    "pretrain --mesh.model 256",
    "pretrain --mesh.data 1000000",
    "pretrain --head.samples 2000000 --head.kind sampled",
    "pretrain --process-count 4",
    "estimate --mesh.model 100000",
    "estimate --vocabulary 100000000000",
    "estimate --model.lstm.dim 2147483648",
    "embed --batch-tokens 1000000000000",
    "prepare --max-characters 2147483648",
    "embed --gammas 1e39 1 1 --layers mix",
)


def numbers() -> Iterator[Case]:
    for name, table in NUMBERS.items():
        for flags, values in table.items():
            for flag in flags.split():
                negative = flag in ("--gammas", "--output-layer")
                never = NEVER[1:] if negative else NEVER
                if flag.endswith(("-clip", "-norm")):  # 9 x 5000 is inf: no limit
                    never = tuple(value for value in NEVER if value[:1] != "9")
                for value in (*never, *values):
                    yield command(f"numbers: {name}", *USUAL[name], flag, value)
    for line in HUGE:
        name, *flags = line.split()
        yield command("numbers: huge", *USUAL[name], *flags)


def flags() -> Iterator[Case]:
    """Unknown flags, stray words, missing values, wrong choices."""
    for name in COMMANDS:
        for odd in (
            ("--nonsense",),
            ("--nonsense", "3"),
            ("a", "b"),
            ("--jso",),
            ("-x",),
        ):
            yield command(f"flags: {name}", *USUAL[name], *odd)
        yield command(f"flags: {name}", name, "--out")
        yield command(f"flags: {name}", *USUAL[name], "--" + "x" * 5000)
        if name not in ("pretrain", "estimate", "runs"):
            yield command(f"flags: {name}", name)
    for name, flag in (
        *(("pretrain", f) for f in ("precision", "encoder", "head.kind", "tracker")),
        *(("embed", f) for f in ("layers", "pool", "dtype", "precision", "engine")),
        *(("score", f) for f in ("unit", "direction", "level", "output-format")),
        ("minimal-pairs", "split"),
        *((name, "format") for name in ("prepare", "embed", "evaluate", "score")),
        ("static", "layers"),
        *(("prepare", "errors"), ("estimate", "chip"), ("estimate", "optimizer.decay")),
    ):
        for value in ("nonsense", "", "0", "x" * 5000):
            yield command("flags: choices", *USUAL[name], f"--{flag}", value)


CONFIGS = (
    configs.CharCnnConfig,
    configs.WordTableConfig,
    configs.LstmConfig,
    configs.ElmoConfig,
    configs.HeadConfig,
    configs.OptimizerConfig,
    configs.MeshConfig,
    configs.TrainConfig,
)
KINDS = (b"x", -1, math.nan, 10**5000, 2.5, [], [[1]], {}, object(), "x\0y", 1e300)


def made(kind: type, /, **fields: Any) -> str:
    """A configuration that is taken must be the same when it is read again."""
    made = kind(**fields)
    assert from_json(kind, to_json(made), "x") == made, made
    return "the same"


def fields() -> Iterator[Case]:
    for kind in CONFIGS:
        given = {"size": 9, "dim": 4} if kind is configs.WordTableConfig else {}
        for field in dataclasses.fields(kind):
            for value in KINDS:
                values = {**given, field.name: value}
                yield call(
                    f"fields: {kind.__name__}", made, kind, good="same", **values
                )


# --- files ---------------------------------------------------------------------------

JSON = {
    "brackets": "[" * 100_000,
    "braces": '{"a":' * 100_000,
    "5,000 digits": '{"rows": %s}' % ("9" * 5000),
    "empty": "",
    "list": "[]",
    "null": "null",
    "string": '"x"',
    "cut": '{"train": {"rows"',
    "NUL": "\0" * 100,
    "Latin-1": b'{"a": "\xff"}',
}


def given(source: str, *names: str) -> Path:
    """A copy of something of the world, to be damaged."""
    target = Path("given")
    if source:
        shutil.copytree(Path("..", source), target)
    else:
        target.mkdir()
    return target.joinpath(*names)


def changed(
    source: str, name: str, damage: Callable[[Path], Any], arguments: str
) -> Outcome:
    damage(given(source, name))
    return run(*arguments.split())


def written(content: str | bytes) -> Callable[[Path], Any]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


READERS = {
    ("run", "config.json"): "evaluate given --text ../three.txt",
    ("data", "corpus.json"): "evaluate ../run --data given",
    ("hdf5", "options.json"): "verify given",
    ("saved", "config.json"): "verify given",
    ("", "a.json"): "pretrain --config given/a.json --workdir w",
    ("", "a.toml"): "pretrain --config given/a.toml --workdir w",
    ("", "a.py"): "pretrain --config given/a.py --workdir w",
    ("", "mix.json"): "plot mix given/mix.json --out o.png",
}


def json_files() -> Iterator[Case]:
    for (source, file), line in READERS.items():
        for what, content in JSON.items():
            if (file, what) == ("a.toml", "empty"):
                continue  # the usual run
            act = partial(changed, source, file, written(content), line)
            yield Case("JSON", f"{file}, {what}", act)
    for file in ("status.json", "metrics.jsonl"):
        for what, content in JSON.items():
            act = partial(changed, "run", file, written(content), "runs .")
            yield Case("JSON", f"{file}, {what}", act, "given")


def whole(file: str, what: str) -> str | None:
    """The last byte of these is the end of a line, which nobody needs."""
    needless = file in ("options.json", "info.json", "vocabulary.txt")
    return "" if needless and what == "cut by a byte" else None


def damaged_files() -> Iterator[Case]:
    """Those of a checkpoint are swept by tests/damage.py."""
    for (source, file), line in {
        ("data", "words.npy"): "evaluate ../run --data given",
        ("data", "offsets.npy"): "evaluate ../run --data given",
        ("data", "counts.npy"): "evaluate ../run --data given",
        ("data", "types.txt"): "evaluate ../run --data given",
        ("data", "vocabulary.txt"): "evaluate ../run --data given",
        ("run", "vocabulary.txt"): "evaluate given --text ../three.txt",
    }.items():
        for what, damage in damages(1, random.Random(f"{source} {file}")):
            act = partial(changed, source, file, damage, line)
            yield Case(
                "damaged files", f"{source}/{file}, {what}", act, whole(file, what)
            )
    for file in ("weights.hdf5", "options.json"):
        for what, damage in list(damages(0, random.Random(0))):
            act = partial(changed, "hdf5", file, damage, "verify given")
            yield Case("damaged files", f"hdf5/{file}, {what}", act, whole(file, what))
    for source, file in (
        ("saved", "model.safetensors"),
        ("module", "variables/variables.index"),
        ("module", "variables/variables.data-00000-of-00002"),
        ("packed", "hdf5.zip"),
        ("packed", "hdf5.tar.gz"),
    ):
        line = f"verify given/{file}" if source == "packed" else "verify given"
        for what, damage in list(damages(0, random.Random(0))):
            act = partial(changed, source, file, damage, line)
            yield Case("damaged files", f"{source}/{file}, {what}", act)
    for file in ("vectors.npy", "offsets.npy", "info.json"):
        for what, damage in list(damages(0, random.Random(0))):
            case = call("damaged files", elmojax.read_vectors, "given")

            def act(
                file: str = file, damage: Any = damage, case: Case = case
            ) -> Outcome:
                damage(given("vectors", file))
                return case.act()

            yield Case(
                "damaged files", f"vectors/{file}, {what}", act, whole(file, what)
            )


WRONG = (
    "nothing",
    "../data",
    "../three.txt",
    "",
    "/",
    ".",
    "x" * 300,
    "a\nb",
    "gs://x",
    "hf://x",
)
PATHS = (
    ("evaluate {} --text ../three.txt", WRONG),
    ("score {} --text ../three.txt", WRONG),
    ("minimal-pairs {} ../pairs.jsonl", WRONG),
    ("minimal-pairs ../run {}", WRONG),
    (
        "minimal-pairs ../run ../pairs.jsonl --out {}",
        ("../three.txt", "../run", "/", "no/o", "x" * 300),
    ),
    ("verify {}", WRONG),
    ("convert {} --out o", WRONG),
    ("export {} --out o", WRONG),
    ("embed {} --text ../three.txt --out o.hdf5", WRONG),
    ("evaluate ../run --text {}", ("nothing", "../data", "", "/", "x" * 300)),
    ("embed ../run --out o.hdf5 --text {}", ("nothing", "../data", "", "/", "x" * 300)),
    ("prepare --out o --text {}", ("nothing", "../data", "", "/", "x" * 300)),
    (
        "prepare --text ../three.txt --out {}",
        ("../three.txt", "../run", "/", "x" * 300),
    ),
    ("convert ../run --out {}", ("../three.txt", "../run", "/", "x" * 300)),
    ("export ../run --out {}", ("../three.txt", "../run", "/", "x" * 300)),
    ("embed ../run --text ../three.txt --out {}", ("../run", "/", "x" * 300)),
    ("pretrain --workdir w --data {}", ("nothing", "../run", "", "/", "x" * 300)),
    ("pretrain --data ../data --workdir {}", ("../three.txt", "x" * 300)),
    ("pretrain --workdir w --config {}", ("nothing", "../run", "../three.txt", "/")),
    ("pretrain --workdir w --data ../data --init-from {}", WRONG),
    ("similar bank --word bank --among ../three.txt --model {}", WRONG),
    (
        "similar bank --word bank --model ../hdf5 --among {}",
        ("nothing", "../data", "", "/", "x" * 300, "a\nb"),
    ),
    ("plot run {} --out o.png", WRONG),
    ("plot mix {} --out o.png", WRONG),
    ("plot run ../run --out {}", ("o", "o.pdf", "../run", "/", "x" * 300 + ".png")),
    (
        "plot senses --word bank --model ../hdf5 --out {}",
        ("o", "../run.gif", "no/o.svg"),
    ),
    ("report {}", WRONG),
    ("report ../run --out {}", ("../three.txt", "../run", "/", "no/o", "x" * 300)),
    ("runs {}", ("nothing", "../data", "../three.txt", "", "x" * 300)),
)


def paths() -> Iterator[Case]:
    for line, wrong in PATHS:
        for path in wrong:
            arguments = [path if word == "{}" else word for word in line.split()]
            yield command("paths", *arguments)


# --- texts ---------------------------------------------------------------------------

LINES = b"the river bank .\na second line .\n"


def tar(data: bytes) -> bytes:
    block = b"a.txt".ljust(124, b"\0") + b"%011o\0" % len(data)
    block = block.ljust(257, b"\0") + b"ustar\x0000"
    return block.ljust(512, b"\0") + data.ljust(512, b"\0") + bytes(1024)


TEXTS: dict[str, tuple[str, bytes, str | None]] = {
    "nothing": ("a.txt", b"", None),
    "blanks": ("a.txt", b" \n\t\n", None),
    "Latin-1": ("a.txt", b"caf\xe9\n", None),
    "NUL": ("a.txt", b"a \0 b\n", None),
    "gzip as text": ("a.txt", gzip.compress(LINES), "8 words"),
    "xz as text": ("a.txt", lzma.compress(LINES), "8 words"),
    "bzip2 as text": ("a.txt", bz2.compress(LINES), "8 words"),
    "text as gzip": ("a.gz", LINES, None),
    "cut xz": ("a.xz", lzma.compress(LINES)[:-9], None),
    "cut gzip": ("a.gz", gzip.compress(LINES)[:-9], None),
    "bad second xz": ("a.xz", lzma.compress(LINES) + b"\xfd7zXZ\0bad", None),
    "bad second bzip2": ("a.bz2", bz2.compress(LINES) + b"BZh9bad", None),
    "zip": ("a.txt", b"PK\3\4" + bytes(60), None),
    "tar": ("a.txt", tar(LINES), None),
    "tar as bzip2": ("a.bz2", bz2.compress(tar(LINES)), None),
    "UTF-16": ("a.txt", LINES.decode().encode("utf-16"), None),
    "UTF-16 without a mark": ("a.txt", LINES.decode().encode("utf-16-le"), None),
    "UTF-32": ("a.txt", LINES.decode().encode("utf-32"), None),
    "carriage returns": ("a.txt", LINES.replace(b"\n", b"\r"), None),
    "CoNLL-U": ("a.txt", b"1\tThe\tthe\tDET\tDT\t_\t2\tdet\t_\t_\n" * 9, None),
    "DOS lines": ("a.txt", LINES.replace(b"\n", b"\r\n"), "8 words"),
    "UTF-8 mark": ("a.txt", b"\xef\xbb\xbf" + LINES, "8 words"),
    "no-break space": ("a.txt", "10\u00a0000 x\n".encode(), "2 words"),
    "ideographic space": ("a.txt", "a\u3000b c\n".encode(), "2 words"),
    "line separator": ("a.txt", "a\u2028b c\n".encode(), "2 words"),
    "no last newline": ("a.txt", LINES[:-1], "8 words"),
    "combining": ("a.txt", "e\u0301 \u202e\n".encode(), "2 words"),
}


FORMATS: dict[str, tuple[str, bytes, str | None]] = {
    "conllu, text": ("conllu", LINES, None),
    "conllu, nine columns": ("conllu", b"1\ta" + b"\t_" * 7, None),
    "conllu, numbers": ("conllu", b"2\ta" + b"\t_" * 8, None),
    "conllu, comments": ("conllu", b"# a\n# b\n", None),
    "conllu": ("conllu", b"1\ta" + b"\t_" * 8, "1 words"),
    "jsonl, text": ("jsonl", LINES, None),
    "jsonl, objects": ("jsonl", b'{"a": ["b"]}\n', None),
    "jsonl, numbers": ("jsonl", b"[1, 2]\n", None),
    "jsonl, deep": ("jsonl", b"[" * 99_999, None),
    "jsonl, digits": ("jsonl", b"[" + b"9" * 9999 + b"]", None),
    "jsonl, line feed": ("jsonl", b'["a\\nb"]', None),
    "jsonl, half": ("jsonl", b'["\\ud800"]', None),
    "jsonl, Latin-1": ("jsonl", b'["caf\xe9"]', None),
    "jsonl": ("jsonl", b'["a", "b c"]', "2 words"),
    "fasta, text": ("fasta", LINES, None),
    "fasta, no id": ("fasta", b">\nMK\n", None),
    "fasta, no residues": ("fasta", b">a\n>b\nMK\n", None),
    "fasta, twice": ("fasta", b">a\nM\n>a\nK\n", None),
    "fasta, gap": ("fasta", b">a\nM-K\n", None),
    "fasta": ("fasta", b">a\nMKT*\n", "3 words"),
}


def texts() -> Iterator[Case]:
    for what, (form, data, good) in FORMATS.items():
        for line in (
            "prepare --text given/a --out o --format",
            "evaluate ../run --text given/a --format",
        ):
            act = partial(changed, "", "a", written(data), f"{line} {form}")
            first = good if line.startswith("prepare") else good and "perplexity"
            yield Case("texts", f"{line.split()[0]}, {what}", act, first)
    for what, (name, data, good) in TEXTS.items():
        for line in (
            "prepare --text given/{} --out o",
            "evaluate ../run --text given/{}",
        ):
            act = partial(changed, "", name, written(data), line.format(name))
            first = good if line.startswith("prepare") else good and "perplexity"
            yield Case("texts", f"{line.split()[0]}, {what}", act, first)


# --- Python --------------------------------------------------------------------------


def failing() -> Iterator[list[str]]:
    yield ["a"]
    raise RuntimeError("a generator of the user fails")


def python() -> Iterator[Case]:
    things = (None, 3, 1.5, b"x", "", object(), [3], {}, Path("nothing"))
    kind = "API: paths"
    opens = (elmojax.load, elmojax.load_hdf5, elmojax.restore, elmojax.read_vectors)
    for function in (*opens, elmojax.load_language_model, elmojax.model_config):
        for thing in things:
            yield call(kind, function, *[thing] * (1 + (function is elmojax.load_hdf5)))
    kind = "API: sentences"
    for thing in (
        None,
        3,
        "a b",
        b"a",
        ["a b"],
        [3],
        [[3]],
        [[None]],
        [[b"a"]],
        object(),
    ):
        yield call(kind, elmojax.batch_to_ids, thing)
    for columns in (0, 2, -1, 2**31, 1.5, "x", None, math.nan):
        yield call("API: numbers", elmojax.batch_to_ids, [["a"]], columns)
    kind = "API: arrays"
    params = elmojax.init(SMALL, jax.random.key(0))
    ids = elmojax.batch_to_ids([["a", "b"]], 9)
    arrays = (
        None,
        3,
        "x",
        [],
        np.zeros((1, 2), np.int32),
        np.zeros((1, 2, 9)),
        [["a"]],
    )
    for wrong in (*arrays, ids[0]):
        yield call(kind, elmojax.encode, params, wrong)
        yield call(kind, elmojax.embed, params, wrong, [1, 1, 1])
    for wrong in (np.full((1, 2, 9), -5), np.full((1, 2, 9), 999)):
        yield call(kind, elmojax.embed, params, wrong, [1, 1, 1], good="[nan nan")
    yield call(kind, elmojax.embed, params, ids, [1, 1, math.nan], good="[nan nan")
    for wrong in (None, "x", [1], [1, 1, 1, 1]):
        yield call(kind, elmojax.embed, params, ids, wrong)
    for wrong in (None, 3, "x", {}, SMALL):
        yield call("API: parameters", elmojax.encode, wrong, ids)
        yield call("API: parameters", elmojax.Embedder, wrong)
    for wrong in (0, -1, 2**40, 1.5, "x", None, math.nan, 10**5000):
        yield call("API: numbers", elmojax.Embedder, params, batch_tokens=wrong)
    for wrong in (None, 3, "mini", {}, object()):
        yield call("API: configurations", elmojax.pretrain, wrong)
    for wrong in (None, 3, "", "tiny", []):
        yield call("API: configurations", elmojax.TrainConfig.preset, wrong)
        yield call("API: configurations", elmojax.ElmoConfig.preset, wrong)


SMALL = elmojax.ElmoConfig(
    configs.CharCnnConfig(((1, 4),), 4, 1, max_characters=9), configs.LstmConfig(8, 4)
)

TABLES = (numbers, flags, fields, json_files, damaged_files, paths, texts, python)


def cases() -> Iterator[Case]:
    for table in TABLES:
        yield from table()


@contextlib.contextmanager
def world(folder: Path) -> Iterator[Callable[[Case], str]]:
    """Things to be rude to, in `folder`, and what judges a case there."""
    with tarfile.open(MADE) as file:
        file.extractall(folder, filter="data")
    made = folder / "made"
    pair = '{"sentence_good": "The banks are.", "sentence_bad": "The banks is."}'
    (made / "pairs.jsonl").write_text(pair)
    elmojax.save_pretrained(made / "hdf5", made / "saved")
    shutil.copytree(MODULE, made / "module")
    for kind in ("zip", "gztar"):
        shutil.make_archive(str(made / "packed" / "hdf5"), kind, made / "hdf5")
    place = made / "case"

    def judged(case: Case) -> str:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with contextlib.chdir(place):
            return judge(case)

    yield judged


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.rude", description=__doc__)
    parser.add_argument("--kind", default="", help="only kinds that begin so")
    parser.add_argument("--folder", type=Path, help="where to work; is left there")
    asked = parser.parse_args()
    total: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        world(asked.folder or Path(folder)) as judged,
    ):
        for case in cases():
            if not case.kind.startswith(asked.kind):
                continue
            total[case.kind] += 1
            if fault := judged(case):
                bad[case.kind] += 1
                print(f"BAD {case.kind} | {case.name[:160]} | {fault}", flush=True)
    print(f"{'kind':28} {'cases':>6} {'bad':>5}")
    for kind, count in total.items():
        print(f"{kind:28} {count:6} {bad[kind]:5}")
    print(f"{'all':28} {total.total():6} {bad.total():5}")
    sys.exit(bool(bad.total()))


if __name__ == "__main__":
    main()
