"""Lexical semantic change: how far the uses of words moved between two corpora.

    elmojax embed MODEL --text old.txt --only words.txt --layers top --out old
    elmojax embed MODEL --text new.txt --only words.txt --layers top --out new
    python experiments/semantic_change.py old new --gold graded.txt

One row a word, the most changed by APD first. With u and v the vectors of its uses in
the first and in the second corpus:

    APD  average pairwise distance: the mean of 1 - cos(u, v) over all pairs
    PRT  inverted similarity of prototypes: 1 / cos(mean of u, mean of v)
    JSD  Jensen-Shannon divergence, in bits from 0 to 1, of how often the corpora use
         each of the clusters that all u and v form together

as Kutuzov and Giulianelli (2020) and Giulianelli et al. (2020) measure them. Clusters
are those of scikit-learn (pip install scikit-learn), of vectors of length 1: k-means
with the k from 2 to 10 that has the best silhouette, or affinity propagation, whose
memory grows with the square of the uses. A gold file has a word, a tab and a number a
line, as that of task 1 of SemEval-2020; Spearman's correlation is over its words that
have both numbers.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

import elmojax
from elmojax import InputError
from elmojax.arguments import check_fields
from elmojax.config import Count, CountOrZero
from elmojax.disk import parse_json, read_object
from elmojax.text.files import read_blocks

Output = Annotated[Path, tyro.conf.Positional]
Clustering = Literal["kmeans", "affinity"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures how far the uses of words moved between two corpora."""

    first: Output
    """Output of `elmojax embed --only` of the first corpus: arrays, HDF5 or Parquet."""
    second: Output
    """The same of the second corpus, by the same model."""
    gold: Path | None = None
    """File of a word, a tab and a number a line, to correlate the measures with."""
    layer: CountOrZero | None = None
    """Where outputs have all layers, the one to take; None = the mean of layers 1 and
    up."""
    clustering: Clustering = "kmeans"
    sample: Count = 2000
    """Most uses of a word in a corpus that are clustered, drawn at random."""
    seed: CountOrZero = 0
    json: bool = False
    """Print one JSON object instead of a table."""


class Change(NamedTuple):
    """A row of the table. None where a corpus lacks the word, or has too few uses."""

    word: str
    first: int
    """Uses in the first corpus."""
    second: int
    apd: float | None
    prt: float | None
    jsd: float | None


MEASURES = ("apd", "prt", "jsd")


def read_uses(
    out: Path, layer: int | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What was asked for, and the vectors [uses, vector] of each word.

    Raises:
      InputError: for what is no output of `elmojax embed --only`, or a layer that it
        does not have.
    """
    read = {".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet}
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    try:
        request, rows = read.get(out.suffix.lower(), _arrays)(out)
        if "only" not in request:
            raise ValueError("it has the vectors of all words")
        shape = request["shape"]
        if layer is not None and (len(shape) < 2 or layer >= shape[0]):
            has = "one vector a word" if len(shape) < 2 else f"{shape[0]} layers"
            raise InputError(f"--layer is {layer}, and {out} has {has}, from 0.")
        for word, vectors in rows:
            if vectors.ndim == 2:
                vectors = vectors[1:].mean(axis=0) if layer is None else vectors[layer]
            found[word].append(np.asarray(vectors, np.float32))
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(
            f"{out} is no output of `elmojax embed --only` ({error}); make it with a "
            "file of the words."
        ) from error
    return request, {word: np.stack(vectors) for word, vectors in found.items()}


Rows = Iterator[tuple[str, np.ndarray]]
"""A word and its vectors [vector] or [layers + 1, vector], a row a use."""


def _arrays(out: Path) -> tuple[dict[str, Any], Rows]:
    vectors = elmojax.read_vectors(out)
    words = (word for words in vectors.sentences() for word in words)
    return read_object(out / "info.json"), zip(words, vectors.vectors, strict=True)


def _hdf5(out: Path) -> tuple[dict[str, Any], Rows]:
    import h5py

    def rows() -> Rows:
        with h5py.File(out) as file:
            for data in file.values():
                vectors = np.moveaxis(np.asarray(data, np.float32), -2, 0)
                yield from zip(data.attrs["words"], vectors, strict=True)

    with h5py.File(out) as file:
        return parse_json(file.attrs["elmojax"]), rows()


def _parquet(out: Path) -> tuple[dict[str, Any], Rows]:
    import pyarrow.parquet as pq

    def rows() -> Rows:
        for part in sorted(out.glob("[0-9]*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(1024):
                for row in batch.to_pylist():
                    layers = [row[n] for n in row if n.startswith("layer_")]
                    vectors = np.stack(layers, 1) if layers else row["vectors"]
                    yield from zip(row["words"], np.asarray(vectors), strict=True)

    return read_object(out / "_info.json"), rows()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 in the same directions, in float64; zeros stay."""
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def apd(one: np.ndarray, other: np.ndarray) -> float:
    """Average pairwise cosine distance of [n, vector] and [m, vector]."""
    # The mean over all pairs of products is the product of the means.
    return float(1 - unit(one).mean(axis=0) @ unit(other).mean(axis=0))


def prt(one: np.ndarray, other: np.ndarray) -> float:
    """1 / cosine of the means; infinite where that is not above 0."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    cosine = float(unit(first.mean(axis=0)) @ unit(second.mean(axis=0)))
    return 1 / cosine if cosine > 0 else math.inf


def jsd(one: np.ndarray, other: np.ndarray, clustering: Clustering, seed: int) -> float:
    """Jensen-Shannon divergence of the clusters' shares, in bits."""
    points = unit(np.concatenate([one, other]))
    labels = _clusters(points, clustering, seed)
    count = labels.max() + 1
    shares = np.stack(
        [
            np.bincount(part, minlength=count) / len(part)
            for part in np.split(labels, [len(one)])
        ]
    )
    middle = np.broadcast_to(shares.mean(axis=0), shares.shape)
    used = shares > 0
    return float((shares[used] * np.log2(shares[used] / middle[used])).sum() / 2)


def _clusters(points: np.ndarray, clustering: Clustering, seed: int) -> np.ndarray:
    """The number of the cluster of each of [n, vector], from 0; of one or two
    different ones each is a cluster."""
    from sklearn.cluster import AffinityPropagation, KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    different, same = np.unique(points, axis=0, return_inverse=True)
    if len(different) < 3:
        return same.reshape(-1)
    if clustering == "affinity":
        model = AffinityPropagation(damping=0.9, random_state=seed, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                return model.fit_predict(points)
            except ConvergenceWarning as warning:
                raise InputError(
                    "Affinity propagation does not settle on the uses of a word; take "
                    "--clustering kmeans."
                ) from warning
    best, found = -math.inf, np.zeros(len(points), np.int64)
    for k in range(2, min(10, len(different) - 1) + 1):
        labels = KMeans(k, n_init=10, random_state=seed).fit_predict(points)
        score = silhouette_score(points, labels)
        if score > best:
            best, found = score, labels
    return found


def measure(asked: Arguments) -> list[Change]:
    """The change of each word, the greatest APD first.

    Raises:
      InputError: for outputs that cannot be read, or do not belong together.
    """
    (wanted, old), (other, new) = (
        read_uses(out, asked.layer) for out in (asked.first, asked.second)
    )
    for name in ("model", "precision", "layers", "gammas", "dtype"):
        if wanted.get(name) != other.get(name):
            raise InputError(
                f"{asked.first} and {asked.second} differ in {name}, so their vectors "
                "are not of one space; embed both texts with the same model and flags."
            )
    draw = np.random.default_rng(asked.seed)
    rows = []
    for word in sorted({*wanted["only"], *other["only"]}):
        if word not in old or word not in new:
            uses = (len(old.get(word, ())), len(new.get(word, ())))
            rows.append(Change(word, *uses, None, None, None))
            continue
        u, v = old[word], new[word]
        some = [draw.permutation(x)[: asked.sample] for x in (u, v)]
        few = len(u) + len(v) < 3
        divergence = None if few else jsd(*some, asked.clustering, asked.seed)
        rows.append(Change(word, len(u), len(v), apd(u, v), prt(u, v), divergence))
    return sorted(rows, key=lambda row: math.inf if row.apd is None else -row.apd)


def read_gold(path: Path) -> dict[str, float]:
    """The number of each word. `InputError` for a line without one, or a word twice."""
    gold: dict[str, float] = {}
    for block in read_blocks(path):
        for number, line in enumerate(block.lines, block.first_line):
            word, tab, value = line.partition("\t")
            if not line.strip():
                continue
            try:
                score = float(value) if tab else math.nan
            except ValueError:
                score = math.nan
            if not math.isfinite(score) or word in gold:
                raise InputError(
                    f"Line {number} of {path} is {line!r:.60}; write a word, a tab and "
                    "a number, each word once."
                )
            gold[word] = score
    return gold


def correlations(
    rows: Sequence[Change], gold: dict[str, float]
) -> dict[str, float | int | None]:
    """Spearman's of each measure with the gold numbers, over words that have both; None
    for fewer than three, or where all are equal."""
    from scipy.stats import spearmanr

    both = [row for row in rows if row.word in gold and row.apd is not None]
    told: dict[str, float | int | None] = {"words": len(both)}
    for name in MEASURES:
        known = [row for row in both if getattr(row, name) is not None]
        one = [getattr(row, name) for row in known]
        other = [gold[row.word] for row in known]
        spread = min(len(set(one)), len(set(other))) > 1 and len(known) > 2
        told[name] = float(spearmanr(one, other).statistic) if spread else None
    return told


def run(asked: Arguments) -> None:
    """Measures and prints. `InputError` as `measure`, and without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("Clusters need scikit-learn: pip install scikit-learn.")
    gold = None if asked.gold is None else read_gold(asked.gold)
    rows = measure(asked)
    found = None if gold is None else correlations(rows, gold)
    if asked.json:
        each = [_finite(row._asdict()) for row in rows]
        print(json.dumps({"words": each, "spearman": found}, ensure_ascii=False))
        return
    print("word\tfirst\tsecond\tAPD\tPRT\tJSD")
    for row in rows:
        numbers = ("-" if x is None else f"{x:.4f}" for x in row[3:])
        print(row.word, row.first, row.second, *numbers, sep="\t")
    if found is not None:
        numbers = ("-" if found[m] is None else f"{found[m]:.4f}" for m in MEASURES)
        print(f"Spearman, {found['words']} words\t\t", *numbers, sep="\t")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value == math.inf else value for name, value in row.items()}


def main(argv: Sequence[str] | None = None) -> None:
    asked = tyro.cli(Arguments, args=argv)
    try:
        check_fields(asked, flags=True)
        run(asked)
    except InputError as error:
        print(f"semantic_change: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
