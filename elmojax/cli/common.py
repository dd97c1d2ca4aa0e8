"""What commands share: flags with their meaning, parsing, printing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import docstring_parser
import tyro
from tqdm import tqdm
from tyro.conf import (
    AvoidSubcommands,
    DisallowNone,
    FlagCreatePairsOff,
    Positional,
    UseAppendAction,
    arg,
)

from elmojax.arguments import check_fields
from elmojax.cloud import address, cache_directory
from elmojax.config import CountOrZero
from elmojax.disk import local
from elmojax.errors import InputError, showable
from elmojax.model.ops import Precision
from elmojax.text.characters import BEGIN, END, byte_limit
from elmojax.text.files import Errors, Oddities, Text, expand, read_text
from elmojax.text.formats import Format

if TYPE_CHECKING:
    from elmojax import loading

Parsed = TypeVar("Parsed")

# --- flags ---------------------------------------------------------------------------

BUNDLED = "mini"
"""The model of commands that read text, where none is named."""
MODEL = (
    "Model: a run directory, a directory or archive with options.json and weights.hdf5 "
    f"or of ELMoForManyLangs, hf://OWNER/NAME, another address, or {BUNDLED}, which "
    "ships with elmojax."
)
Model = Annotated[str, arg(metavar="MODEL", help=MODEL)]
MaybeModel = Annotated[
    str | None,
    arg(metavar="MODEL", help=MODEL, help_behavior_hint=f"(default: {BUNDLED})"),
]
Step = Annotated[
    CountOrZero | None,
    arg(help="Step of the checkpoint to use; the newest one by default."),
]
Files = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(metavar="FILE [FILE ...]", help_behavior_hint="(may be repeated)"),
]
TextFormat = Annotated[
    Format,
    arg(
        help="Format of the texts: plain lines (text); CoNLL-U, column FORM without "
        "ranges and empty nodes; JSON lines, each a list of words; or FASTA, each "
        "protein a sentence and each residue a word."
    ),
]
BadBytes = Annotated[
    Errors,
    arg(
        help="How to treat bytes that are not UTF-8: refuse the text (strict), or read "
        "each as U+FFFD (replace)."
    ),
]
Switch = Annotated[bool, FlagCreatePairsOff]
Overwrite = Annotated[Switch, arg(help="Replace the output if it already exists.")]
Json = Annotated[Switch, arg(help="Print exactly one JSON object on standard output.")]


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """A model, as commands open it."""

    model: Positional[MaybeModel] = None
    step: Step = None
    precision: Precision = "float32"
    """Data type of matrix products. bf16 rounds their factors to bfloat16, which is
    faster on accelerators and moves vectors by about 0.2 %. Sums are float32 in
    both."""

    def open(self, **how: Any) -> loading.Model:
        """The model, the one that is bundled if none is named; see `open_model`."""
        from elmojax.loading import open_model

        keep_compiled_programs()
        if self.model is None:
            say(f"no MODEL is named, so it is {BUNDLED}, which ships with elmojax.")
        model = open_model(self.model or BUNDLED, self.step, **how)
        return model.cast(self.precision)


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """Texts, as commands read them."""

    text: Files = ()
    """Text files or quoted globs, in UTF-8, one tokenised sentence a line. Only spaces
    and tabs set words apart; a line feed ends a line, or a carriage return and a line
    feed. What gzip, xz or bzip2 packed is unpacked."""
    format: TextFormat = "text"
    errors: BadBytes = "strict"

    def paths(self, without: str | None = None) -> list[Path]:
        """The text files; where none is given `InputError`, if that is told."""
        names = sum(self.text, ())
        if without is not None and not names:
            raise InputError(without)
        return expand(names)


# --- texts ---------------------------------------------------------------------------


def read_texts(
    paths: Sequence[Path], errors: Errors, format: Format, columns: int | None
) -> tuple[list[Text], Oddities]:
    """Texts for a model with so many character columns, and what is odd about them."""
    texts = [read_text(path, errors, columns, format) for path in paths]
    odd = Oddities()
    for text in texts:
        odd.add(text.odd)
    return texts, odd


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


# --- parsing -------------------------------------------------------------------------

PLACES = ("workdir", "data", "heldout")
"""Paths of a run that may be on gs:// or s3://."""


def parse(
    kind: type[Parsed],
    command: str,
    argv: list[str],
    addresses: Sequence[str] = PLACES,
    **more: Any,
) -> Parsed:
    """The arguments of a command, within their ranges; --help ends the process.

    `addresses` are the paths that may be on gs:// or s3://. Raises `InputError` for
    flags that are unknown, missing or wrong.
    """
    plain = (AvoidSubcommands, DisallowNone)
    found: Parsed = run_tyro(
        kind, f"elmojax {command}", args=argv, config=plain, **more
    )
    check_places(found, addresses)
    check_fields(found, flags=True)
    return found


def run_tyro(kind: type, program: str, **more: Any) -> Any:
    """`tyro.cli`, with one sentence in place of the box that it prints."""
    explain(kind)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=program, **more)
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
            f"{_in_short(box.getvalue())}; see `{program} --help`."
        ) from None


@cache
def explain(kind: Any) -> None:
    """Hands tyro what docstrings say of fields: it would keep their line ends."""
    for base in filter(dataclasses.is_dataclass, kind.__mro__[::-1]):
        for about in docstring_parser.parse_from_object(base).params:
            text = {"help": " ".join((about.description or "").split())}
            kind.__dataclass_fields__[about.arg_name].metadata = text
    for hint in get_type_hints(kind).values():
        for inner in get_args(hint) or (hint,):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                explain(inner)


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


def check_places(asked: object, addresses: Sequence[str] = PLACES) -> None:
    """`InputError` for a path that is not of this machine, but for `addresses`."""
    for name, value in vars(asked).items():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Path):
                address(each) if name in addresses else local(each)


# --- printing ------------------------------------------------------------------------


def say(message: str) -> None:
    """A remark on standard error, on one line whatever names it holds."""
    shown = re.sub(r"[\x00-\x1f\x7f]", lambda m: repr(m[0])[1:-1], showable(message))
    tqdm.write(f"elmojax: {shown}", file=sys.stderr)


def show(as_json: bool, report: Mapping[str, Any], text: str) -> None:
    """What a command found: one JSON object, or text for people."""
    print_json(report) if as_json else print(text)


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


def table(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Lines with the cells in columns; those of `right` end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
