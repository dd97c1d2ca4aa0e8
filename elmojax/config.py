"""Frozen configurations: what a model is, how it is trained, their presets, their JSON.

Every class checks itself when it is made and says which field is wrong, its value and
what would be right. `to_json` and `from_json` are how config.json of a run directory
holds them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from elmojax.arguments import checked, checked_fields
from elmojax.errors import InputError

PublishedFilters = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
MiniFilters = ((1, 16), (2, 16), (3, 32), (4, 64), (5, 128))


def _require(good: bool, owner: object, name: str, wanted: str) -> None:
    if not good:
        value = getattr(owner, name)
        raise InputError(
            f"{type(owner).__name__}.{name} is {value!r}; it must be {wanted}."
        )


@checked_fields
@dataclass(frozen=True)
class CharCnnConfig:
    """Words as characters (Kim et al. 2016): embedding, convolutions, highways."""

    filters: tuple[tuple[int, int], ...] = PublishedFilters
    """Convolutions: (width in characters, number of filters) of each."""
    embedding_dim: int = 16
    """Size of a character embedding."""
    highway_layers: int = 2
    """Number of highway layers (Srivastava et al. 2015) after the convolutions."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation function of the convolutions."""
    max_characters: int = 50
    """Character columns of a word, two of them for its marks. Of a longer word the
    first max_characters - 2 UTF-8 bytes count."""
    characters: int = 261
    """Rows of the character table: 256 bytes and 5 marks."""
    project: bool = True
    """End with a linear projection. Published models have none where there are as many
    filters as the LSTM takes inputs, and only there can it be left out."""

    def __post_init__(self) -> None:
        pairs = all(len(f) == 2 and min(f) > 0 for f in self.filters)
        _require(bool(self.filters) and pairs, self, "filters", "pairs above 0")
        _require(self.embedding_dim > 0, self, "embedding_dim", "above 0")
        _require(self.highway_layers >= 0, self, "highway_layers", "0 or more")
        good = self.activation in ("relu", "tanh")
        _require(good, self, "activation", "'relu' or 'tanh'")
        widest = max(width for width, _ in self.filters)
        wanted = f"3 or more and at least the widest filter ({widest})"
        good = self.max_characters >= max(3, widest)
        _require(good, self, "max_characters", wanted)
        _require(self.characters >= 261, self, "characters", "261 or more")

    @property
    def filter_count(self) -> int:
        return sum(count for _, count in self.filters)


@checked_fields
@dataclass(frozen=True)
class WordTableConfig:
    """Words as rows of a table, one a vocabulary entry: row = id - 1, 0 = padding."""

    size: int
    """Rows of the table, one for each vocabulary entry."""
    dim: int
    """Size of a word embedding."""
    begin_row: int = 0
    """Row of `<S>`."""
    end_row: int = 1
    """Row of `</S>`."""

    def __post_init__(self) -> None:
        _require(self.size > 0, self, "size", "above 0")
        _require(self.dim > 0, self, "dim", "above 0")
        for name in ("begin_row", "end_row"):
            good = 0 <= getattr(self, name) < max(self.size, 2)
            _require(good, self, name, f"a row of the table, below {self.size}")


@checked_fields
@dataclass(frozen=True)
class LstmConfig:
    """The bidirectional LSTM with projection (Sak et al. 2014)."""

    dim: int = 4096
    """Cells of one direction of one layer."""
    projection: int = 512
    """Output size of one direction; an ELMo vector is twice as wide."""
    layers: int = 2
    """Number of LSTM layers, each of which reads in both directions."""
    cell_clip: float = 3.0
    """Clip cell states to +-cell_clip; math.inf does not clip."""
    projection_clip: float = 3.0
    """Clip outputs to +-projection_clip; math.inf does not clip."""
    skip_connections: bool = True
    """Add the input of a layer to its output, from the second layer on."""

    def __post_init__(self) -> None:
        for name in ("dim", "projection", "layers"):
            _require(getattr(self, name) > 0, self, name, "above 0")
        for name in ("cell_clip", "projection_clip"):
            _require(getattr(self, name) > 0, self, name, "above 0")


@checked_fields
@dataclass(frozen=True)
class ElmoConfig:
    """The shape of a biLM without its softmax: encoder of words, then LSTM."""

    encoder: CharCnnConfig | WordTableConfig = field(default_factory=CharCnnConfig)
    lstm: LstmConfig = field(default_factory=LstmConfig)

    def __post_init__(self) -> None:
        encoder = self.encoder
        if not isinstance(encoder, CharCnnConfig) or encoder.project:
            return
        wanted = (
            f"True, as {encoder.filter_count} filters are not the "
            f"{self.lstm.projection} inputs of the LSTM"
        )
        good = encoder.filter_count == self.lstm.projection
        _require(good, encoder, "project", wanted)

    @classmethod
    @checked
    def preset(cls, name: str) -> ElmoConfig:
        """`mini`, `small`, `medium` or `original` (the published sizes)."""
        if name not in PRESETS:
            raise InputError(
                f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}."
            )
        return PRESETS[name]

    @property
    def dim(self) -> int:
        """Width of an ELMo vector: forward and backward side by side."""
        return 2 * self.lstm.projection


PRESETS = {
    "mini": ElmoConfig(
        CharCnnConfig(filters=MiniFilters, highway_layers=1), LstmConfig(512, 64)
    ),
    "small": ElmoConfig(CharCnnConfig(highway_layers=1), LstmConfig(1024, 128)),
    "medium": ElmoConfig(CharCnnConfig(highway_layers=1), LstmConfig(2048, 256)),
    "original": ElmoConfig(),
}


@checked_fields
@dataclass(frozen=True)
class HeadConfig:
    """The softmax over the vocabulary, shared by both directions."""

    kind: Literal["adaptive", "full", "sampled"] = "adaptive"
    """`adaptive` and `full` compute the exact softmax; adaptive is much cheaper for a
    large vocabulary. `sampled` trains the table of `full` on random negative samples,
    as bilm-tf does."""
    cutoffs: tuple[int, ...] = ()
    """Vocabulary ranks at which the tail clusters of the adaptive softmax begin; ()
    chooses them by the word counts."""
    div_value: float = 4.0
    """Factor by which each tail cluster is narrower than the one before (Grave et al.
    2017)."""
    bias: bool = True
    """Add a bias to the logits of the head cluster."""
    samples: int = 8192
    """Negative samples of a step, for each direction, where the softmax is
    `sampled`."""

    def __post_init__(self) -> None:
        good = self.kind in ("adaptive", "full", "sampled")
        _require(good, self, "kind", "'adaptive', 'full' or 'sampled'")
        _require(self.samples > 0, self, "samples", "above 0")
        rising = all(
            a < b for a, b in zip((0, *self.cutoffs), self.cutoffs, strict=False)
        )
        _require(rising, self, "cutoffs", "above 0 and strictly increasing")
        _require(self.div_value >= 1, self, "div_value", "1 or more")

    def edges(self, vocabulary: int) -> tuple[int, ...]:
        """Ranks where the tail clusters of an adaptive softmax begin, and the end."""
        return (*(self.cutoffs if self.kind == "adaptive" else ()), vocabulary)


@checked_fields
@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients move parameters."""

    name: Literal["adagrad", "adamw", "adafactor"] = "adagrad"
    """Optimizer; the paper uses adagrad."""
    learning_rate: float = 0.2
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up. `cosine` decays to a tenth of the peak
    by the end of the schedule."""
    gradient_norm: float = 10.0
    """Clip the gradient to this global norm."""
    initial_accumulator: float = 1.0
    """Initial value of Adagrad's sum of squares."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""

    def __post_init__(self) -> None:
        good = self.name in ("adagrad", "adamw", "adafactor")
        _require(good, self, "name", "'adagrad', 'adamw' or 'adafactor'")
        _require(self.decay in ("constant", "cosine"), self, "decay", "constant|cosine")
        _require(self.learning_rate > 0, self, "learning_rate", "above 0")
        _require(self.gradient_norm > 0, self, "gradient_norm", "above 0")
        for name in ("warmup_steps", "initial_accumulator", "weight_decay"):
            _require(getattr(self, name) >= 0, self, name, "0 or more")


@checked_fields
@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. Rows are split over `data`, wide matrices over `model`."""

    data: int = 0
    """Devices along the mesh axis `data`, over which the rows of a batch are split; 0
    takes all that `model` leaves."""
    model: int = 1
    """Devices along the mesh axis `model`, over which wide matrices are split."""

    def __post_init__(self) -> None:
        _require(self.data >= 0, self, "data", "0 (all devices) or more")
        _require(self.model >= 1, self, "model", "1 or more")


@checked_fields
@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run: model, text, recipe, cadence."""

    data: Path | None = None
    """Prepared corpus to train on. By default a sample text inside the package is
    used."""
    workdir: Path = Path("runs/mini")
    """Directory of the run. A run that is already there goes on where it stopped."""
    heldout: Path | None = None
    """Prepared corpus to measure held-out perplexity on."""
    model: ElmoConfig = field(default_factory=lambda: PRESETS["mini"])
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    encoder: Literal["characters", "words"] = "characters"
    """How words become vectors: `characters` is the character CNN, `words` a table with
    one row for each vocabulary entry."""
    word_vectors: Path | None = None
    """word2vec (text, .bin) or GloVe file whose vectors fill the table of `--encoder
    words` at the start."""
    init_from: str | None = None
    """Model whose weights a fresh run starts from: a run directory, HDF5 files or an
    address."""
    freeze_steps: int = 0
    """Train only the softmax for this many steps, and everything after that."""
    steps: int | None = None
    """Train for this many steps in all, whatever `epochs` says."""
    epochs: float = 1.0
    """Train for this many passes over the text."""
    schedule_steps: int | None = None
    """Steps over which the cosine schedule decays; after them the learning rate stays.
    By default they are all steps that the run began with."""
    rows: int = 64
    """Global batch size: the number of continuous streams of text, each of which has
    `window` positions in a step."""
    window: int = 20
    """Positions of each row in a step. Backpropagation through time is truncated where
    a window begins."""
    dropout: float = 0.1
    """Dropout rate of the inputs and outputs of the LSTM layers in training."""
    seed: int = 0
    """Random seed of the initial parameters, of dropout and of the order of
    sentences."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Data type of matrix products; `auto` is float32 on a CPU and bf16 on other
    devices."""
    checkpoint_every: int = 1000
    """Save a checkpoint every so many steps; 0 saves only the last one."""
    evaluate_every: int = 0
    """Evaluate on `heldout` every so many steps; 0 evaluates only before and after
    training."""
    log_every: int = 10
    """Write a line of metrics.jsonl every so many steps."""
    keep: int = 3
    """Keep this many of the newest checkpoints, and the best one."""
    patience: int = 0
    """Stop after this many evaluations without a better perplexity; 0 never stops
    early."""
    accumulate: int = 1
    """Gradient accumulation: compute each step in this many microbatches, which makes
    the same step in less memory."""
    unique_words: bool = True
    """Encode each distinct word of a batch once. Turn it off only to measure what it
    saves."""
    skip_nonfinite: int = 0
    """Skip up to this many updates whose loss or gradient is not finite; one more stops
    the run."""
    spike_guard: float = 0.0
    """Treat a loss above this many times its running mean like one that is not finite;
    0 turns it off."""
    allow_unsorted_vocabulary: bool = False
    """Accept a vocabulary that is not sorted by its counts in the training text."""

    def __post_init__(self) -> None:
        for name in ("data", "workdir", "heldout", "word_vectors"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        for name in ("rows", "window", "log_every", "keep", "accumulate"):
            _require(getattr(self, name) > 0, self, name, "above 0")
        cadences = ("checkpoint_every", "evaluate_every", "freeze_steps")
        for name in (*cadences, "seed", "patience", "skip_nonfinite"):
            _require(getattr(self, name) >= 0, self, name, "0 or more")
        good = self.spike_guard == 0 or 1 < self.spike_guard < math.inf
        _require(good, self, "spike_guard", "0 (off), or above 1 and finite")
        _require(self.seed < 2**63, self, "seed", "below 2**63")
        for name in ("steps", "schedule_steps"):
            value = getattr(self, name)
            _require(value is None or value > 0, self, name, "above 0")
        _require(0 < self.epochs < math.inf, self, "epochs", "above 0 and finite")
        _require(0 <= self.dropout < 1, self, "dropout", "at least 0 and below 1")
        good = self.precision in ("auto", "float32", "bf16")
        _require(good, self, "precision", "'auto', 'float32' or 'bf16'")
        good = self.encoder in ("characters", "words")
        _require(good, self, "encoder", "'characters' or 'words'")
        good = self.word_vectors is None or self.encoder == "words"
        _require(good, self, "word_vectors", "used with --encoder words")
        good = self.init_from is None or self.word_vectors is None
        _require(good, self, "init_from", "given without --word-vectors")

    @classmethod
    @checked
    def preset(cls, name: str) -> TrainConfig:
        """The recipe of each model size; `original` is the paper's."""
        model = ElmoConfig.preset(name)
        workdir = Path("runs") / name
        if name == "mini":
            return cls(
                model=model,
                workdir=workdir,
                head=HeadConfig(div_value=2.0),
                optimizer=OptimizerConfig("adamw", 5e-3, 100, "cosine", 1.0),
                epochs=2.0,
            )
        rows, epochs = (384, 10.0) if name == "original" else (128, 10.0)
        return cls(model=model, workdir=workdir, rows=rows, epochs=epochs)


T = TypeVar("T")


def to_json(config: Any) -> str:
    """A configuration as indented JSON, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(
    cls: type[T],
    text: str,
    where: object,
    parse: Callable[[str], Any] = json.loads,
) -> T:
    """The configuration that `to_json` wrote; `where` names its file in errors.

    Raises `InputError` for text that `parse` does not read, unknown or missing fields,
    and values that the configuration itself refuses.
    """
    try:
        return _build(cls, parse(text))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where} does not hold a {cls.__name__}: {error}. Was it edited or cut "
            "short? Restore it from a copy."
        ) from error


def _build(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        if unknown := sorted(value.keys() - hints.keys()):
            raise TypeError(f"{hint.__name__} has no field {unknown[0]!r}")
        return hint(**{name: _build(hints[name], v) for name, v in value.items()})
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if CharCnnConfig in options:
            known = "filters" in value
            return _build(CharCnnConfig if known else WordTableConfig, value)
        return _build(options[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_build(arguments[0], v) for v in value)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise TypeError(f"{value!r} is no {hint.__name__}")
    return value
