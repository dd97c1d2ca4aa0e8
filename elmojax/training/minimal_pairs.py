"""Minimal pairs, a good and a bad sentence: which a model finds more probable.

See Marvin and Linzen 2018, "Targeted syntactic evaluation of language models". Pairs
come from files as BLiMP has them (Warstadt et al. 2020), or from two texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from elmojax.disk import local, parse_json
from elmojax.errors import InputError, one_line
from elmojax.text.files import expand, read_blocks
from elmojax.text.formats import words_of

if TYPE_CHECKING:  # so that --help comes soon
    from elmojax.training.score import Scorer

Split = Literal["blanks", "marks", "penn"]
GROUPS = ("field", "linguistics_term", "UID")
"""Keys of BLiMP that say what a pair is about, from wide to narrow."""
SENTENCES = ("sentence_good", "sentence_bad")


class Pair(NamedTuple):
    """Two sentences that differ in what is judged."""

    good: list[str]
    bad: list[str]
    groups: Mapping[str, str]
    """Of `GROUPS`, those that the file names; UID, or else the name of the file."""


def read_pairs(names: Sequence[str], split: Split | None = None) -> list[Pair]:
    """The pairs of files.

    Args:
      names: JSON lines with the keys `sentence_good` and `sentence_bad` (and those of
        `GROUPS`, or not), any number of files, globs, or directories of *.jsonl; or two
        texts, good and bad sentences line by line.
      split: how sentences become words; see `words`. None = "marks" for JSON lines and
        "blanks" for texts.

    Raises:
      InputError: for files of neither kind or that cannot be read, sentences that are
        missing, empty or the same, and texts of different length.
    """
    files = expand([file for name in names for file in _files(name)])
    kinds = [_is_json(path) for path in files]
    if all(kinds):
        found = [pair for path in files for pair in _blimp(path, split or "marks")]
    elif len(files) != 2 or any(kinds):
        named = zip(files, kinds, strict=True)
        texts = ", ".join(str(file) for file, is_json in named if not is_json)
        raise InputError(
            "Give files of JSON lines as BLiMP has them, or two texts, one of good and "
            f"one of bad sentences; no JSON lines are in {texts:.200}."
        )
    else:
        found = list(_texts(files[0], files[1], split or "blanks"))
    if not found:
        raise InputError(f"There is no pair of sentences in {', '.join(names):.200}.")
    return found


def words(sentence: str, split: Split) -> list[str]:
    """The words of a sentence.

    "blanks" sets words apart at blanks only. "marks" also parts punctuation from the
    word it touches, and a word before its apostrophe (Jill 's, don 't), as the text of
    the bundled model has it. "penn" does so but for n't (do n't), as the Penn Treebank
    and the One Billion Word Benchmark have it. Marks inside a word stay: 3.5, half-way.
    """
    if split == "penn":
        sentence = _NOT.sub(" ", sentence)
    if split != "blanks":
        sentence = _MARKS.sub(lambda found: f" {found[0]} ", sentence)
    return words_of(re.sub(r"[\r\n]", " ", sentence))


_NOT = re.compile(r"(?<=\w)(?=n['’]t\b)", re.IGNORECASE)
_MARKS = re.compile(
    r"(?<!\w)(?!['’](?:d|ll|m|re|s|t|ve)\b)[^\w\s]|[^\w\s](?!\w)"
    r"|(?<=\w)(?<!\sn)(?=['’]\w)",
    re.IGNORECASE,
)


def _files(name: str) -> list[str]:
    if not local(name).is_dir():
        return [name]
    found = sorted(map(str, Path(name).glob("*.jsonl")))
    if not found:
        raise InputError(f"The directory {name} holds no *.jsonl; name its files.")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for block in read_blocks(path):
        yield from enumerate(block.lines, block.first_line)


def _is_json(path: Path) -> bool:
    """Whether its first line with anything on it begins like a JSON object."""
    for _, line in _lines(path):
        if line.strip():
            return line.lstrip().startswith("{")
    raise InputError(f"{path} is empty; was it downloaded or written whole?")


def _blimp(path: Path, split: Split) -> Iterator[Pair]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        try:
            entry = parse_json(line)
            json.dumps(entry, ensure_ascii=False).encode()  # a lone surrogate raises
        except ValueError as error:
            raise InputError(f"{where} is no JSON: {one_line(error)}.") from error
        sentences = []
        for key in SENTENCES:
            sentence = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(sentence, str):
                raise InputError(
                    f"{where} has no text {key!r}; each line must be a JSON object "
                    f"with {' and '.join(SENTENCES)}, as BLiMP has it."
                )
            sentences.append(sentence)
        named = {key: str(entry[key]) for key in GROUPS if key in entry}
        name = path.name.partition(".")[0]
        good, bad = sentences
        yield _pair(good, bad, split, {"UID": name, **named}, where)


def _texts(good: Path, bad: Path, split: Split) -> Iterator[Pair]:
    for one, other in zip_longest(_lines(good), _lines(bad)):
        if one is None or other is None:
            longer, shorter = (good, bad) if other is None else (bad, good)
            number = (one or other)[0]
            raise InputError(
                f"{longer} has a line {number} and {shorter} has not; they must hold, "
                "line by line, the good and the bad sentence of a pair."
            )
        if one[1].strip() or other[1].strip():
            where = f"Line {one[0]} of {good} and {bad}"
            yield _pair(one[1], other[1], split, {}, where)


def _pair(
    good: str, bad: str, split: Split, groups: Mapping[str, str], where: str
) -> Pair:
    pair = Pair(words(good, split), words(bad, split), groups)
    if not (pair.good and pair.bad):
        raise InputError(f"{where} has a sentence without words, and two are due.")
    if pair.good == pair.bad:
        raise InputError(
            f"{where} has the same sentence twice, {' '.join(pair.good)!r:.100}; the "
            "two of a pair must differ."
        )
    return pair


WAYS = ("forward", "backward", "both")


class Judged(NamedTuple):
    """Log-probabilities of pairs, sums of whole sentences with their ends."""

    log_probs: np.ndarray
    """float64 [pairs, two, three]: good and bad; forward, backward and the sum of both,
    in nats."""
    unknown: np.ndarray
    """bool [pairs]: whether a word of either is outside the vocabulary."""


def judge(
    scorer: Scorer,
    pairs: Sequence[Pair],
    progress: Callable[[int], Any] = lambda tokens: None,
) -> Judged:
    """Scores each sentence for itself."""
    sentences = (sentence for pair in pairs for sentence in (pair.good, pair.bad))
    scores = [
        (one.forward_sum, one.backward_sum, not one.known.all())
        for one in scorer(sentences, progress)
    ]
    found = np.array(scores).reshape(len(pairs), 2, 3)
    ways, unknown = found[..., :2], np.any(found[..., 2], axis=1)
    both = ways.sum(axis=-1, keepdims=True)
    return Judged(np.concatenate([ways, both], axis=-1), unknown)


def accuracies(pairs: Sequence[Pair], judged: Judged) -> dict[str, Any]:
    """How often the good sentence is the more probable one, and by phenomenon.

    Returns `pairs`, `unknown` (pairs with a word outside the vocabulary), `forward`,
    `backward` and `both` (shares from 0 to 1), `forward_ties` and so on (pairs that are
    equally probable, which count as wrong); and of each of `GROUPS` that pairs name, a
    dict of the same for each name, in the order in which they come.
    """
    margin = judged.log_probs[:, 0] - judged.log_probs[:, 1]
    report = _shares(margin, judged.unknown)
    for group in GROUPS:
        named: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            if group in pair.groups:
                named.setdefault(pair.groups[group], []).append(number)
        if named:
            report[group] = {
                name: _shares(margin[numbers], judged.unknown[numbers])
                for name, numbers in named.items()
            }
    return report


def _shares(margin: np.ndarray, unknown: np.ndarray) -> dict[str, Any]:
    """Of some pairs; margin [pairs, three]."""
    right, ties = (margin > 0).mean(axis=0), (margin == 0).sum(axis=0)
    named: Iterable[tuple[str, Any]] = [
        *zip(WAYS, right.tolist(), strict=True),
        *zip((f"{way}_ties" for way in WAYS), ties.tolist(), strict=True),
    ]
    return {"pairs": len(margin), "unknown": int(unknown.sum()), **dict(named)}
