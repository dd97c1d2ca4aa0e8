"""`elmojax minimal-pairs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tqdm import tqdm
from tyro.conf import Positional, arg

from elmojax.cli import common
from elmojax.disk import check_out, replacing
from elmojax.errors import InputError
from elmojax.training.minimal_pairs import GROUPS, SENTENCES, Pair, Split, read_pairs

if TYPE_CHECKING:
    from elmojax.training.minimal_pairs import Judged

COLUMNS = ("pairs", "unknown", "forward", "backward", "both")


@dataclass(frozen=True, kw_only=True)
class MinimalPairsArguments(common.ModelArguments):
    """Counts how often a model finds the good sentence of a pair the more probable one.

    Accuracy in percent, over all pairs and by phenomenon: forward, backward, and by the
    sum of both log-probabilities. Sentences are scored for themselves, with their ends,
    and not divided by their length. Equally probable ones count as wrong. `unknown`
    counts the pairs with a word outside the vocabulary, which is scored as <UNK>.
    """

    model: Positional[common.Model] = field()
    files: Positional[Annotated[tuple[str, ...], arg(metavar="FILE [FILE ...]")]] = ()
    """JSON lines with sentence_good and sentence_bad, as BLiMP has them: files, quoted
    globs, or a directory of *.jsonl. Or two texts, the first of good and the second of
    bad sentences, line by line."""
    split: Split | None = None
    """How sentences become words. blanks: at blanks only (the default for two texts).
    marks: punctuation is set apart, too, and what follows an apostrophe (don 't), as
    in the text of the bundled model (the default for JSON lines). penn: the same but
    for n't (do n't), as in the Penn Treebank and the One Billion Word Benchmark."""
    out: Path | None = None
    """File to write the log-probabilities of every pair to, as JSON lines."""
    overwrite: common.Overwrite = False
    json: common.Json = False


def minimal_pairs(argv: list[str]) -> None:
    """accuracy on minimal pairs (BLiMP), by phenomenon"""
    from elmojax.model.ops import local_mesh
    from elmojax.training.minimal_pairs import accuracies, judge

    asked = common.parse(MinimalPairsArguments, "minimal-pairs", argv)
    if not asked.files:
        raise InputError(
            "Give MODEL and a file of pairs: `elmojax minimal-pairs MODEL FILE`."
        )
    if asked.out is not None:
        check_out(asked.out, asked.overwrite)
    pairs = read_pairs(asked.files, asked.split)
    model = asked.open()
    scorer = model.scorer(local_mesh())
    tokens = sum(len(pair.good) + len(pair.bad) + 2 for pair in pairs)
    with tqdm(total=tokens, unit="token", desc="minimal-pairs", disable=None) as bar:
        judged = judge(scorer, pairs, bar.update)
    if asked.out is not None:
        _write(asked.out, pairs, judged)
    report = accuracies(pairs, judged)
    rows = [("", "", *COLUMNS), ("all", "", *_cells(report))]
    for group in GROUPS:
        found = report.get(group, {}).items()
        rows += [(group, name, *_cells(of)) for name, of in found]
    common.show(
        asked.json, report, "\n".join(common.table(rows, range(2, len(rows[0]))))
    )
    ties = {way: report[f"{way}_ties"] for way in COLUMNS[2:]}
    if any(ties.values()) and not asked.json:
        counts = ", ".join(f"{way} {count:,}" for way, count in ties.items())
        common.say(f"pairs that are equally probable, which count as wrong: {counts}.")


def _cells(found: dict[str, Any]) -> list[str]:
    shares = (f"{100 * found[way]:.1f}" for way in COLUMNS[2:])
    return [f"{found['pairs']:,}", f"{found['unknown']:,}", *shares]


def _write(out: Path, pairs: Sequence[Pair], judged: Judged) -> None:
    """One JSON object a pair: its words, what it is about, and log-probabilities."""
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        for pair, log_probs, unknown in zip(pairs, *judged, strict=True):
            sentences = zip(SENTENCES, map(" ".join, pair[:2]), strict=True)
            numbers = {
                f"{way}_{which}": log_probs[row, column]
                for column, way in enumerate(COLUMNS[2:4])
                for row, which in enumerate(("good", "bad"))
            }
            entry = {**dict(sentences), **pair.groups, "unknown": bool(unknown)}
            print(json.dumps({**entry, **numbers}, ensure_ascii=False), file=file)
