"""Sentiment without a network: a linear map from the mean of a sentence's vectors.

    python experiments/tasks/sentiment_probe.py --train train.tsv --dev dev.tsv \\
        --test test.tsv

Files are those of sentiment.py. Each layer is read alone, then all of them one after
the other, then the words of the sentence (whether each stands there; those that the
training file has twice), then words and layers together. Ridge regression, whose
penalty is the one that is best on dev; test is read once.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from classification import Example, read_examples
from features import Features, make_features
from fitting import Fitted
from heads import Words
from parts import PartOptions
from sentiment import read_sentiment
from task_options import FeatureOptions, ReportOptions, command
from task_report import Outcome, Report, summary

from elmojax import InputError

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
WORDS = "words"


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(PartOptions, FeatureOptions, ReportOptions):
    """Tells the class of a sentence by a linear map, and scores it."""


class Found(NamedTuple):
    """What a reading gives."""

    hits: np.ndarray
    """Whether each example of test gets its class, bool."""
    dev: float
    """Accuracy in per cent."""
    penalty: float
    """The one that dev chose."""

    def report(self) -> Report:
        test = round(100 * float(self.hits.mean()), 2)
        return {"test": test, "dev": round(self.dev, 2), "penalty": self.penalty}


def gain(of: Found, over: Found) -> Report:
    """What one reading has more than another on test, with the deviation of the
    difference over the same examples."""
    more = 100 * (of.hits.astype(float) - over.hits)
    deviation = float(more.std() / np.sqrt(len(more)))
    return {"mean": round(float(more.mean()), 2), "deviation": round(deviation, 2)}


def bags(words: Words, examples: Sequence[Example]) -> Any:
    """Sparse [sentences, words]: a third for each word that is there, so that a
    sentence has about the length of a reading."""
    from scipy.sparse import csr_array

    ids = [np.unique(words.ids(e.texts, 1, len(e.texts[0]))) for e in examples]
    rows = np.repeat(np.arange(len(ids)), list(map(len, ids)))
    values = np.full(len(rows), np.float32(1 / 3))
    shape = len(ids), words.size
    return csr_array((values, (rows, np.concatenate(ids))), shape)


def readings(parts: Sequence[Features]) -> dict[str, list[np.ndarray]]:
    """Of each layer and of all, the mean over the words [sentences, vector].

    Over the sentences of train each value has the mean 0 and the same deviation, and
    the squared length of a vector has the mean 1.
    """
    means = []
    for features in parts:
        count = np.diff(features.starts)[:, None, None]
        total = np.add.reduceat(
            features.vectors.astype(np.float32), features.starts[:-1], axis=0
        )
        means.append(total / count.astype(np.float32))
    centre, spread = means[0].mean(axis=0), means[0].std(axis=0) + np.float32(1e-6)
    scaled = [(mean - centre) / spread for mean in means]
    found = {
        f"layer {layer}": [part[:, layer] for part in scaled]
        for layer in range(parts[0].layers)
    }
    if len(found) > 1:
        found["all layers"] = [part.reshape(len(part), -1) for part in scaled]
    return {
        name: [part / np.float32(np.sqrt(part.shape[1])) for part in of_parts]
        for name, of_parts in found.items()
    }


def regress(vectors: Sequence[Any], labels: Sequence[np.ndarray]) -> Found:
    """Trains on the first part, chooses on the second, scores on the third."""
    from sklearn.linear_model import RidgeClassifier

    best: tuple[float, float, Any] = (-1.0, 0.0, None)
    for penalty in PENALTIES:
        model = RidgeClassifier(penalty, solver="sparse_cg", tol=1e-3)
        model.fit(vectors[0], labels[0])
        dev = 100 * model.score(vectors[1], labels[1])
        if dev > best[0]:
            best = dev, penalty, model
    dev, penalty, model = best
    return Found(model.predict(vectors[2]) == labels[2], dev, penalty)


def run(options: ProbeOptions) -> Report:
    """The accuracy of every reading; the score is that of words and layers together.

    Raises:
      InputError: for files and models that do not fit, and without scikit-learn.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("The probe needs scikit-learn: pip install scikit-learn.")
    from scipy.sparse import csr_array, hstack

    examples = read_examples(options, read_sentiment)
    labels = [np.array([example.label for example in part]) for part in examples]
    spelt = [[example.texts[0] for example in part] for part in examples]
    features = make_features(options, spelt)
    started = time.perf_counter()
    words = Words.of(spelt[0])
    of_words = [bags(words, part) for part in examples]
    vectors = {WORDS: of_words}
    for name, parts in readings(features).items() if features else ():
        vectors[name] = parts
    last = list(vectors)[-1]
    if last != WORDS:
        both = zip(of_words, vectors[last], strict=True)
        vectors[f"{WORDS} and {last}"] = [
            hstack([some, csr_array(others)]).tocsr() for some, others in both
        ]
    found = {name: regress(parts, labels) for name, parts in vectors.items()}
    *_, score = found.values()
    fitted = Fitted({}, [{"loss": 0.0, "dev": score.dev}])
    accuracy = 100 * float(score.hits.mean())
    outcome = Outcome(accuracy, fitted, time.perf_counter() - started, 0.0)
    return summary(
        *("sentiment, linear", "accuracy", options, features, [outcome]),
        readings={name: each.report() for name, each in found.items()},
        gain_over_words=gain(score, found[WORDS]),
        examples=[len(part) for part in examples],
    )


def main(argv: Sequence[str] | None = None) -> None:
    command("sentiment_probe", ProbeOptions, run, argv)


if __name__ == "__main__":
    main()
