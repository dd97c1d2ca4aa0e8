"""What commands share: flags (those of a pretraining run too), parsing, printing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tqdm import tqdm

from elmojax.arguments import check_fields
from elmojax.atomic import local
from elmojax.cloud import address, cache_directory
from elmojax.config import CountOrZero, HeadConfig, OptimizerConfig, TrainConfig
from elmojax.errors import InputError, showable
from elmojax.model import ops
from elmojax.text.characters import BEGIN, END, byte_limit
from elmojax.text.files import Errors, Oddities
from elmojax.text.formats import Format

arg = tyro.conf.arg
ModelOption = Annotated[
    str,
    arg(
        metavar="MODEL",
        help="Model: a run directory, a directory or archive with options.json and "
        "weights.hdf5 or of ELMoForManyLangs, hf://OWNER/NAME, another address, or "
        "mini, which ships with elmojax.",
    ),
]
Model = Annotated[ModelOption, tyro.conf.Positional]
BUNDLED = "mini"
"""The model of commands that read text, where none is named."""
TextFiles = Annotated[
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    arg(
        metavar="FILE [FILE ...]",
        help_behavior_hint="(may be repeated)",
        help="Text files or quoted globs, in UTF-8, one tokenised sentence a line. "
        "Only spaces and tabs set words apart; a line feed ends a line, or a carriage "
        "return and a line feed. What gzip, xz or bzip2 packed is unpacked.",
    ),
]
Step = Annotated[
    CountOrZero | None,
    arg(help="Step of the checkpoint to use; the newest one by default."),
]
TextFormat = Annotated[
    Format,
    arg(
        help="Format of the texts: plain lines (text); CoNLL-U, column FORM without "
        "ranges and empty nodes; JSON lines, each a list of words; or FASTA, each "
        "protein a sentence and each residue a word."
    ),
]
BadBytes = Annotated[Errors, arg(help="How to treat bytes that are not UTF-8.")]
Precision = Annotated[
    ops.Precision,
    arg(
        help="Data type of matrix products. bf16 rounds their factors to bfloat16, "
        "which is faster on accelerators and moves vectors by about 0.2 %. Sums are "
        "float32 in both."
    ),
]
Overwrite = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    arg(help="Replace the output if it already exists."),
]
Json = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    arg(help="Print exactly one JSON object on standard output."),
]


PLACES = ("workdir", "data", "heldout")
"""Paths of a run that may be on gs:// or s3://."""

Parsed = TypeVar("Parsed")


def say_which_model(model: str, argv: list[str]) -> None:
    """Where no MODEL is named, says that it is the bundled one."""
    if model == BUNDLED and BUNDLED not in argv:
        say(f"no MODEL is named, so it is {BUNDLED}, which ships with elmojax.")


def say(message: str) -> None:
    """A remark on standard error, on one line whatever names it holds."""
    shown = re.sub(r"[\x00-\x1f\x7f]", lambda m: repr(m[0])[1:-1], showable(message))
    tqdm.write(f"elmojax: {shown}", file=sys.stderr)


def remark(
    odd: Oddities, max_characters: int | None, format: Format = "text"
) -> list[str]:
    """Says what is odd about a text, on standard error; the sentences, for --json."""
    said = []
    plain = format == "text"
    if odd.truncated_words and max_characters is not None:
        said.append(
            f"Words cut after {byte_limit(max_characters)} bytes: "
            f"{odd.truncated_words:,}; those that differ only after them are one word "
            "to the model."
        )
    if plain and 100 * odd.unsegmented_lines > odd.lines:
        said.append(
            f"Lines that look unsegmented (20 characters and more for each word): "
            f"{odd.unsegmented_lines:,} of {odd.lines:,}; words are what spaces and "
            "tabs set apart, so put spaces between words, or between characters; for "
            "proteins in FASTA there is --format fasta."
        )
    if plain and odd.lines == 1 and odd.words > 100:
        said.append(
            f"The text is one single line of {odd.words:,} words, read as one "
            "sentence; write one sentence a line."
        )
    elif plain and odd.long_lines:
        said.append(
            f"Lines of more than 1,000 words: {odd.long_lines:,}, each read as one "
            "sentence; write one sentence a line."
        )
    if plain and odd.listed_lines:
        said.append(
            f"Lines that are JSON lists: {odd.listed_lines:,}; as JSON lines they are "
            "read with --format jsonl."
        )
    if odd.spaced_words:
        said.append(
            f"Words that hold a space: {odd.spaced_words:,}; each is one word, and "
            "stays out of vocabularies and of files of word vectors."
        )
    marks = {mark: odd.spellings[mark] for mark in (BEGIN, END) if odd.spellings[mark]}
    if marks:
        said.append(
            f"The text has sentence marks ({_counted(marks)}): <S> at the beginning "
            "and </S> at the end of a line are left out, as every sentence gets its "
            "own; elsewhere they are read as marks."
        )
    others = {word: n for word, n in odd.spellings.items() if word not in marks}
    if others:
        said.append(
            f"Ordinary words of the text look like special ones ({_counted(others)}): "
            "only <UNK>, <S> and </S> in this spelling are special, so replace them "
            "if they are meant."
        )
    for sentence in said:
        say(sentence)
    return said


def _counted(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {count:,} times" for word, count in words.items())


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names of files or directories, each another one."""
    packed = re.compile(r"(\.(gz|xz|bz2))?$", re.IGNORECASE)
    stems = [Path(packed.sub("", path.name)).stem or str(path) for path in paths]
    return [
        stem if stems.count(stem) == 1 else str(path)
        for stem, path in zip(stems, paths, strict=True)
    ]


def keep_compiled_programs() -> None:
    """Compiled programs stay on the disk, so that the next command need not wait.

    Where JAX_COMPILATION_CACHE_DIR says, else in elmojax's own cache directory. Without
    one that can be written, programs are made anew each time.
    """
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    # RuntimeError: there is no home.
    with contextlib.suppress(InputError, OSError, RuntimeError):
        programs = cache_directory() / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        if not os.access(programs, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(programs))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parse(
    kind: Callable[..., Any],
    command: str,
    argv: list[str],
    addresses: Sequence[str] = PLACES,
    **more: Any,
) -> Any:
    """The arguments of a command, within their ranges; --help ends the process.

    `addresses` are the paths that may be on gs:// or s3://. Raises `InputError` for
    flags that are unknown, missing or wrong.
    """
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone)
    found = _reachable(_tyro(kind, command, args=argv, config=plain, **more), addresses)
    check_fields(found, flags=True)
    return found


def _tyro(kind: Callable[..., Any], command: str, **more: Any) -> Any:
    """`tyro.cli`, with one sentence in place of the box that it prints."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=f"elmojax {command}", **more)
    except SystemExit as ended:
        if not ended.code:
            raise
        error: BaseException | None = ended
        while error is not None and not isinstance(error, InputError):
            error = error.__context__
        if error is not None:
            raise InputError(
                re.sub(r"^(\w+)\.(\w+)(?= is )", _flag, str(error))
            ) from None
        raise InputError(
            f"{_in_short(box.getvalue())}; see `elmojax {command} --help`."
        ) from None


PREFIXES = {
    "ElmoConfig": "model.",
    "CharCnnConfig": "model.encoder.",
    "WordTableConfig": "model.encoder.",
    "LstmConfig": "model.lstm.",
    "HeadConfig": "head.",
    "OptimizerConfig": "optimizer.",
    "MeshConfig": "mesh.",
}
"""How flags of the fields of a configuration begin."""


def _flag(field: re.Match[str]) -> str:
    """The flag of a field that a sentence names by its class."""
    return f"--{PREFIXES.get(field[1], '')}{field[2]}".replace("_", "-")


PLAINER = {
    r"^Error parsing ": "",
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not a whole number",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"no type matching (\S+) could be instantiated from (.*)": r"\2 is not \1",
    r"Could not find valid parse for arguments: (.*)": r"\1 cannot be its values",
    r"Exceeds the limit .*": "a number of so many digits is out of range",
    r"\. Expected": "; expected",
    r"'None', |, 'None'": "",
}
"""Words of tyro and Python in those of people."""


def _in_short(box: str) -> str:
    """What a box of tyro says: its first part, and the flags that it lists."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row[2:-2].rstrip() for row in plain.splitlines()[1:-1]]
    text = "\n".join(rows).lstrip("-\n").split("\nFor full helptext")[0]
    flags = re.findall(r"^ {4}(\S.*)", text, re.MULTILINE)
    if text.startswith("Missing from"):
        return f"the command lacks {' and '.join(flags)}"
    told = " ".join(re.split(r"\n(?:[─-]{5}|\s*\n)", text)[0].split()).removesuffix(".")
    for pattern, words in PLAINER.items():
        told = re.sub(pattern, words, told)
    told = told if len(told) <= 240 else f"{told[:240]}..."
    if flags and "Perhaps you meant" in text:
        return f"{told}; did you mean {' or '.join(flags[:2])}"
    return told[:1].lower() + told[1:]


def _reachable(asked: Parsed, addresses: Sequence[str] = PLACES) -> Parsed:
    """Arguments whose paths are of this machine, but for `addresses`; `InputError`
    for others."""
    for name, value in vars(asked).items():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path):
                address(each) if name in addresses else local(each)
    return asked


def print_json(report: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(_finite(report), default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON knows no number that is not finite: null."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


ALIASES: dict[type, dict[str, tuple[str, ...]]] = {
    TrainConfig: {
        "rows": ("--batch-size",),
        "window": ("--unroll", "--seq-len"),
        "heldout": ("--eval-data",),
        "accumulate": ("--grad-accum",),
    },
    HeadConfig: {"samples": ("--num-negatives",)},
    OptimizerConfig: {"gradient_norm": ("--max-grad-norm",)},
}
"""Other names of flags, which people know from other programs."""

# Tyro reads them with the types, and configurations are to load without tyro.
for _kind, _fields in ALIASES.items():
    for _name, _aliases in _fields.items():
        _type = get_type_hints(_kind, include_extras=True)[_name]
        _kind.__annotations__[_name] = Annotated[_type, arg(aliases=_aliases)]


@dataclass(frozen=True)
class RecipeArguments(TrainConfig):
    """What commands about a run that is to be share."""

    start_from: Annotated[
        Literal["mini", "small", "medium", "original"], arg(name="preset")
    ] = "mini"
    """Model size and training recipe to start from; other flags change single
    settings."""
    config: Path | None = None
    """File with the settings to start from: TOML or JSON with fields of TrainConfig
    (such as the config.json of a run), or Python with a function `config()`."""


Recipe = TypeVar("Recipe", bound=RecipeArguments)


def train_config(asked: RecipeArguments) -> TrainConfig:
    """The run that flags describe, without the flags of the command."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(asked, name) for name in names})


def defaults(kind: type[Recipe], found: Typed) -> Recipe:
    """What flags fall back to: the run that is there, else --config, else --preset."""
    from elmojax.initialization import read_config
    from elmojax.training.record import read_record
    from elmojax.training.remote import bring_run

    for one, other in (("preset", "config"), ("steps", "epochs")):
        if None not in (getattr(found, one), getattr(found, other)):
            raise InputError(f"Give --{one} or --{other}, not both.")
    chosen: dict[str, Any] = {}
    if found.config is not None:
        chosen["config"] = found.config
        base = read_config(found.config)
    else:
        chosen["start_from"] = found.preset or "mini"
        base = TrainConfig.preset(chosen["start_from"])
        run = found.workdir or base.workdir
        here = bring_run(run)
        if found.preset is None and (here / "config.json").exists():
            base = dataclasses.replace(read_record(here).train, workdir=run)
    if found.epochs is not None:
        base = dataclasses.replace(base, steps=None)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    return kind(**values, **chosen)


@dataclass(frozen=True)
class Typed:
    """Flags that say what others fall back on, where they were given."""

    preset: str | None = None
    config: Path | None = None
    workdir: Path | None = None
    data: Path | None = None
    steps: str | None = None
    epochs: str | None = None


def typed(argv: list[str], command: str = "pretrain") -> Typed:
    """What was given of these flags: read before all others."""
    found: Typed
    alone = {"add_help": False, "return_unknown_args": True}
    found, _ = _tyro(Typed, command, args=argv, **alone)
    return _reachable(found)
