"""The card of a model: what it is, what it was trained on, and how good it is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from elmojax.cloud import copy_of
from elmojax.config import PRESETS, CharCnnConfig, TrainConfig, WordTableConfig
from elmojax.disk import read_object, replacing
from elmojax.errors import showable
from elmojax.text.corpus import SUMMARY
from elmojax.training.metrics import evaluations, read_metrics, step_seconds
from elmojax.training.record import RunRecord, Status, language_model, read_record

CARD = "card.md"
"""Its name in a run directory, and beside the files of a model."""

PLACES = ("data", "workdir", "heldout", "init_from")
"""Choices whose values are places of one machine, and are named apart."""

Evaluations = Mapping[str, Mapping[str, float]]
"""Name of a text -> what `Evaluator` says of it."""


def write_card(run: Path) -> None:
    """Writes card.md into a run directory; not where the disk takes no more."""
    with contextlib.suppress(OSError), replacing(run / CARD) as partial:
        partial.write_text(model_card(run), encoding="utf-8")


def model_card(run: Path, evaluations: Evaluations | None = None) -> str:
    """The card of the model that a run trains, in Markdown, from the run's files alone.

    What the files do not tell is left out.

    Args:
      run: a run directory, of a run that is over or still going on.
      evaluations: held-out texts besides the run's own.

    Raises:
      InputError: if it is not a run directory, or its files cannot be read.
    """
    record, lines = read_record(run), read_metrics(run / "metrics.jsonl")
    scores = {**_own_evaluation(record, lines), **(evaluations or {})}
    train, status = record.train, Status.read(run)
    if status is not None:  # the length of a run may change while it goes on
        train = dataclasses.replace(train, steps=status.steps)
    told = facts(record, lines, status)
    rows = [("model", ""), ("---", "---"), *told.items()]
    parts = [
        f"# {run.resolve().name}",
        "A bidirectional language model (ELMo, Peters et al. 2018), trained by elmojax "
        f"{record.elmojax or '(version not known)'}.",
        "\n".join(f"| {name} | {value} |" for name, value in rows),
        "## Text",
        *_text(record.train),
        "## Held-out perplexity",
        _perplexities(scores) if scores else "Not measured.",
        "## Command",
        f"    {command(train)}",
    ]
    return "\n\n".join(parts) + "\n"


def facts(
    record: RunRecord, lines: Sequence[Mapping[str, Any]], status: Status | None
) -> dict[str, str]:
    """What a run trains and how, in words: the rows of its card.

    Args:
      record, lines, status: what its directory says, as `read_record`, `read_metrics`
        and `Status.read` give it.
    """
    return _model(record) | _training(record, lines, status)


def command(config: TrainConfig) -> str:
    """The command that makes a run like this, with every choice that is no default.

    What a shell would take apart is not quoted: choices hold no blanks.
    """
    named = [name for name, model in PRESETS.items() if model == config.model]
    base = TrainConfig.preset(named[0]) if named else TrainConfig()
    if config.init_from is not None:  # the shape is that of this model
        base = dataclasses.replace(base, model=config.model)
    if config.steps is not None:  # they count, whatever the epochs
        base = dataclasses.replace(base, epochs=config.epochs)
    words = ["elmojax pretrain", *(f"--preset {name}" for name in named[:1])]
    for name in PLACES:
        value = getattr(config, name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')} {_shown_place(value)}")
    return " ".join([*words, *_flags(base, config, "")])


def _flags(was: Any, now: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(now):
        one, other = getattr(was, field.name, None), getattr(now, field.name)
        if one == other or other is None or (not prefix and field.name in PLACES):
            continue
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(other):
            yield from _flags(one, other, f"{name}.")
        elif isinstance(other, bool):
            yield f"--{name}" if other else f"--{prefix}no-{field.name}"
        elif isinstance(other, tuple):
            yield f"--{name} {' '.join(map(str, other))}"
        else:
            yield f"--{name} {other}"


def _model(record: RunRecord) -> dict[str, str]:
    model, train = record.train.model, record.train
    lstm, encoder = model.lstm, model.encoder
    if isinstance(encoder, CharCnnConfig):
        reads = f"characters ({encoder.max_characters} a word, {encoder.filter_count} "
        reads += f"filters, highway layers: {encoder.highway_layers})"
    elif isinstance(encoder, WordTableConfig):
        reads = f"ids of {encoder.size:,} words"
    else:
        reads = "dictionaries of Unicode characters and words"
    lm = language_model(record)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    head = sum(leaf.size for leaf in jax.tree.leaves(shapes.pop("head")))
    body = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return {
        "reads": reads,
        "LSTM": f"{lstm.layers} layers of {lstm.dim} cells in each direction, "
        f"projected to {lstm.projection}",
        "vectors": f"{lstm.layers + 1} layers of {2 * lstm.projection} numbers a word",
        "parameters": f"{body:,}, and {head:,} of the {train.head.kind} softmax over "
        f"{record.vocabulary:,} words",
    }


def _training(
    record: RunRecord, lines: Sequence[Mapping[str, Any]], status: Status | None
) -> dict[str, str]:
    train = record.train
    found: dict[str, str] = {}
    last = next((line for line in reversed(lines) if line.get("tokens")), None)
    if last is not None:
        found["trained for"] = (
            f"{last['step']:,} steps of {train.rows} x {train.window} tokens: "
            f"{last['tokens']:,.0f} tokens"
        )
        if last.get("epoch"):
            found["passes over the text"] = f"{last['epoch']:.2f}"
        found["time of the steps"] = _duration(step_seconds(lines))
    if status is not None:
        found["state"] = status.state + (f" ({status.why})" if status.why else "")
    if record.devices:
        found["devices"] = record.devices
    optimizer = train.optimizer
    found["optimizer"] = (
        f"{optimizer.name}, learning rate {optimizer.learning_rate:g} "
        f"({optimizer.decay}), dropout {train.dropout:g}, {train.precision}"
    )
    if train.init_from is not None:
        found["started from"] = _shown_place(train.init_from)
    return found


def _shown_place(place: str | Path) -> str:
    """An address, or the last part of a path: where it lies is of no use elsewhere."""
    address = showable(str(place))
    return address if "://" in address else Path(place).name


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    return f"{hours}{minutes % 60} min" if minutes else f"{seconds:.0f} s"


def _text(train: TrainConfig) -> Iterator[str]:
    """Paragraphs about the training text, as far as its directory is still there."""
    if train.data is None:
        yield "The sample text inside elmojax: novels in the public domain."
        return
    try:
        info = read_object(copy_of(train.data) / SUMMARY)
        yield (
            f"{info['tokens']:,} words in {info['sentences']:,} sentences, "
            f"{info['types']:,} distinct words; {info['oov_rate']:.1%} of the words "
            f"are outside the vocabulary. {_files(info)}"
        )
        about = [str(line) for line in info.get("about", [])]
    except (OSError, ValueError, KeyError, TypeError):
        yield f"The prepared corpus {train.data.name}, which is not there any more."
        return
    if about:
        yield "\n".join(f"- {line}" for line in about)
    else:
        yield "Where it comes from and under which licence was not said (`--about`)."


def _files(info: dict[str, Any]) -> str:
    if info.get("tfds"):
        return f"From the TensorFlow data set {info['tfds']['name']}."
    names = [Path(file["name"]).name for file in info["files"]]
    if len(names) > 2:
        return f"{len(names)} files, {names[0]} to {names[-1]}."
    return f"From {' and '.join(names)}."


def _own_evaluation(record: RunRecord, lines: list[dict[str, Any]]) -> Evaluations:
    """The run's last one."""
    train, scores = record.train, [*evaluations(lines).values()]
    name = train.heldout.name if train.heldout else "sample, held out"
    return {name: scores[-1]} if scores else {}


COLUMNS = {
    "forward": ("forward_perplexity", ",.1f"),
    "backward": ("backward_perplexity", ",.1f"),
    "mean": ("mean_perplexity", ",.1f"),
    "bits a byte": ("bits_per_byte", ".3f"),
    "out of vocabulary": ("oov_rate", ".1%"),
    "tokens": ("tokens", ",.0f"),
}


def _perplexities(scores: Evaluations) -> str:
    rows = [["text", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for name, score in scores.items():
        cells = [
            format(score[key], form) if score.get(key) is not None else "-"
            for key, form in COLUMNS.values()
        ]
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
