"""Frozen configurations: what a model is, how it is trained, their presets, their JSON.

Every class checks itself when it is made and says which field is wrong, its value and
what would be right: bounds stand beside the field, in its type. `to_json` and
`from_json` are how config.json of a run directory holds them.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from elmojax.arguments import Range, check_fields, checked, field_hints, shown
from elmojax.cloud import address
from elmojax.disk import parse_json
from elmojax.errors import InputError

MOST_WORDS = 2**25
"""Entries of the largest vocabulary; no published one has a tenth of them."""
MOST_POSITIONS = 2**24
"""Positions of the largest batch."""
MOST_DEPTH = 100
"""Layers of a kind, or filters of different widths, that a model may have."""

Count = Annotated[int, Range(1, 2**31 - 1)]
CountOrZero = Annotated[int, Range(0, 2**31 - 1)]
"""A count that may be 0."""
Width = Annotated[int, Range(1, 2**17)]
Depth = Annotated[int, Range(1, MOST_DEPTH)]
Highways = Annotated[int, Range(0, MOST_DEPTH)]
Columns = Annotated[int, Range(3, 2**16)]
Words = Annotated[int, Range(1, MOST_WORDS)]
VocabularySize = Annotated[int, Range(4, MOST_WORDS)]
"""Of a text: `<S>`, `</S>`, `<UNK>` and a word."""
BatchTokens = Annotated[int, Range(1, MOST_POSITIONS)]
Filters = Annotated[
    tuple[tuple[Annotated[int, Range(1, 2**16)], Width], ...], Range(1, MOST_DEPTH)
]
Positive = Annotated[float, Range(1e-30, 1e30)]
"""Neither 0 nor inf in float32, and its square neither 0 nor inf in float64."""
NonNegative = Annotated[float, Range(0, 1e30)]
Limit = Annotated[float, Range(1e-30, 1e30, infinite=True)]


PublishedFilters = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
MiniFilters = ((1, 16), (2, 16), (3, 32), (4, 64), (5, 128))


def _require(good: bool, owner: Any, name: str, wanted: str) -> None:
    """A field that its type alone cannot judge."""
    if not good:
        called = f"{field_hints(owner.__class__)[name][0]}.{name}"
        raise InputError(
            f"{called} is {shown(getattr(owner, name))}; it must be {wanted}."
        )


@dataclass(frozen=True)
class CharCnnConfig:
    """Words as characters (Kim et al. 2016): embedding, convolutions, highways."""

    filters: Filters = PublishedFilters
    """Convolutions: (width in characters, number of filters) of each."""
    embedding_dim: Width = 16
    """Size of a character embedding."""
    highway_layers: Highways = 2
    """Number of highway layers (Srivastava et al. 2015) after the convolutions."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation function of the convolutions."""
    max_characters: Columns = 50
    """Character columns of a word, two of them for its marks. Of a longer word the
    first max_characters - 2 UTF-8 bytes count."""
    characters: Annotated[int, Range(261, 2**17)] = 261
    """Rows of the character table: 256 bytes and 5 marks."""
    project: bool = True
    """End with a linear projection. Published models have none where there are as many
    filters as the LSTM takes inputs, and only there can it be left out."""

    def __post_init__(self) -> None:
        check_fields(self)
        widest = max(width for width, _ in self.filters)
        good = self.max_characters >= widest
        _require(good, self, "max_characters", f"at least the widest filter ({widest})")

    @property
    def filter_count(self) -> int:
        return sum(count for _, count in self.filters)

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Of the ids of one word."""
        return (self.max_characters,)


@dataclass(frozen=True)
class UnicodeCnnConfig:
    """Words as Unicode characters and as rows of a word table, both by dictionary: the
    encoder of ELMoForManyLangs, which only reads models that were trained there.

    The table of words has a row for each of `words`, that of characters one for each of
    `alphabet`, in this order.
    """

    words: Annotated[tuple[str, ...], Range(2, MOST_WORDS)] = field(repr=False)
    alphabet: Annotated[tuple[str, ...], Range(6, 2**17)] = field(repr=False)
    word_dim: Width
    """Size of a word embedding."""
    filters: Filters
    embedding_dim: Width
    highway_layers: Highways
    activation: Literal["relu", "tanh"]
    max_characters: Columns
    """Character columns of a word, two of them for its marks. Of a longer word the
    first max_characters - 2 characters count, in the table of words too."""

    def __post_init__(self) -> None:
        check_fields(self)
        widest = max(width for width, _ in self.filters)
        good = self.max_characters >= widest
        _require(good, self, "max_characters", f"at least the widest filter ({widest})")
        for name, marks in (("words", WORD_MARKS), ("alphabet", CHARACTER_MARKS)):
            entries = set(getattr(self, name))
            good = len(entries) == len(getattr(self, name)) and entries >= set(marks)
            _require(good, self, name, f"different entries, {', '.join(marks)} too")

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Of the ids of one word: its row, then its characters."""
        return (1 + self.max_characters,)


WORD_MARKS = ("<oov>", "<pad>")
CHARACTER_MARKS = ("<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>")
"""Entries that the dictionaries of a `UnicodeCnnConfig` have besides words and
characters."""


@dataclass(frozen=True)
class WordTableConfig:
    """Words as rows of a table, one a vocabulary entry: row = id - 1, 0 = padding."""

    size: Words
    """Rows of the table, one for each vocabulary entry."""
    dim: Width
    """Size of a word embedding."""
    begin_row: CountOrZero = 0
    """Row of `<S>`."""
    end_row: CountOrZero = 1
    """Row of `</S>`."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("begin_row", "end_row"):
            good = getattr(self, name) < max(self.size, 2)
            _require(good, self, name, f"a row of the table, below {self.size}")

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Of the id of one word."""
        return ()


EncoderConfig: TypeAlias = CharCnnConfig | WordTableConfig | UnicodeCnnConfig


@dataclass(frozen=True)
class LstmConfig:
    """The bidirectional LSTM with projection (Sak et al. 2014)."""

    dim: Width = 4096
    """Cells of one direction of one layer."""
    projection: Width = 512
    """Output size of one direction; an ELMo vector is twice as wide."""
    layers: Depth = 2
    """Number of LSTM layers, each of which reads in both directions."""
    cell_clip: Limit = 3.0
    """Clip cell states to +-cell_clip; math.inf does not clip."""
    projection_clip: Limit = 3.0
    """Clip outputs to +-projection_clip; math.inf does not clip."""
    skip_connections: bool = True
    """Add the input of a layer to its output, from the second layer on."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ElmoConfig:
    """The shape of a biLM without its softmax: encoder of words, then LSTM."""

    encoder: EncoderConfig = field(default_factory=CharCnnConfig)
    lstm: LstmConfig = field(default_factory=LstmConfig)

    def __post_init__(self) -> None:
        check_fields(self)
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
        if not isinstance(name, str) or name not in PRESETS:
            raise InputError(
                f"There is no preset {shown(name)}; choose one of {', '.join(PRESETS)}."
            )
        return PRESETS[name]

    @property
    def dim(self) -> int:
        """Width of an ELMo vector: forward and backward side by side."""
        return 2 * self.lstm.projection

    @property
    def max_characters(self) -> int | None:
        """Columns of a word in bytes; None for a model that reads no bytes."""
        encoder = self.encoder
        return encoder.max_characters if isinstance(encoder, CharCnnConfig) else None


PRESETS = {
    "mini": ElmoConfig(
        CharCnnConfig(filters=MiniFilters, highway_layers=1), LstmConfig(512, 64)
    ),
    "small": ElmoConfig(CharCnnConfig(highway_layers=1), LstmConfig(1024, 128)),
    "medium": ElmoConfig(CharCnnConfig(highway_layers=1), LstmConfig(2048, 256)),
    "original": ElmoConfig(),
}


@dataclass(frozen=True)
class HeadConfig:
    """The softmax over the vocabulary, shared by both directions."""

    kind: Literal["adaptive", "full", "sampled"] = "adaptive"
    """`adaptive` and `full` compute the exact softmax; adaptive is much cheaper for a
    large vocabulary. `sampled` trains the table of `full` on random negative samples,
    as bilm-tf does."""
    cutoffs: Annotated[tuple[Words, ...], Range(0, MOST_DEPTH)] = ()
    """Vocabulary ranks at which the tail clusters of the adaptive softmax begin; ()
    chooses them by the word counts."""
    div_value: Annotated[float, Range(1, 2**17)] = 4.0
    """Factor by which each tail cluster is narrower than the one before (Grave et al.
    2017)."""
    bias: bool = True
    """Add a bias to the logits of the shortlist, the first cluster."""
    samples: Words = 8192
    """Negative samples of a step, for each direction, where the softmax is
    `sampled`."""

    def __post_init__(self) -> None:
        check_fields(self)
        rising = all(
            a < b for a, b in zip((0, *self.cutoffs), self.cutoffs, strict=False)
        )
        _require(rising, self, "cutoffs", "above 0 and strictly increasing")

    def edges(self, vocabulary: int) -> tuple[int, ...]:
        """Ranks where the tail clusters of an adaptive softmax begin, and the end."""
        return (*(self.cutoffs if self.kind == "adaptive" else ()), vocabulary)


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients move parameters."""

    name: Literal["adagrad", "adamw", "adafactor"] = "adagrad"
    """Optimizer; the paper uses adagrad."""
    learning_rate: Positive = 0.2
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning-rate schedule after the warm-up. `cosine` decays to a tenth of the peak
    by the end of the schedule."""
    gradient_norm: Limit = 10.0
    """Clip the gradient to this global norm."""
    initial_accumulator: NonNegative = 1.0
    """Initial value of Adagrad's sum of squares."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. Rows are split over `data`, wide matrices over `model`."""

    data: Annotated[int, Range(0, 2**20)] = 0
    """Devices along the mesh axis `data`, over which the rows of a batch are split; 0
    takes all that `model` leaves."""
    model: Annotated[int, Range(1, 256)] = 1
    """Devices along the mesh axis `model`, over which wide matrices are split."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run: model, text, recipe, cadence."""

    data: Path | None = None
    """Prepared corpus to train on, which may be on gs:// or s3://. By default a sample
    text inside the package is used."""
    workdir: Path = Path("runs/mini")
    """Directory of the run, which may be on gs:// or s3://. A run that is already there
    goes on where it stopped."""
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
    """Model whose weights and shape a fresh run starts from: a run directory, HDF5
    files or an address."""
    freeze_steps: CountOrZero = 0
    """Train only the softmax for this many steps, and everything after that."""
    steps: Count | None = None
    """Train for this many steps in all, whatever `epochs` says."""
    epochs: Annotated[float, Range(1e-9, 1e9)] = 1.0
    """Train for this many passes over the text."""
    schedule_steps: Count | None = None
    """Steps over which the cosine schedule decays; after them the learning rate stays.
    By default they are all steps that the run began with."""
    rows: Annotated[int, Range(1, 2**20)] = 64
    """Global batch size: the number of continuous streams of text, each of which has
    `window` positions in a step."""
    window: Annotated[int, Range(1, 2**16)] = 20
    """Positions of each row in a step. Backpropagation through time is truncated where
    a window begins."""
    dropout: Annotated[float, Range(0, 0.999)] = 0.1
    """Dropout rate of the inputs and outputs of the LSTM layers in training."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Random seed of the initial parameters, of dropout and of the order of
    sentences."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Data type of matrix products; `auto` is float32 on a CPU and bf16 on other
    devices."""
    checkpoint_every: CountOrZero = 1000
    """Save a checkpoint every so many steps; 0 saves only the last one."""
    evaluate_every: CountOrZero = 0
    """Evaluate on `heldout` every so many steps; 0 evaluates only before and after
    training."""
    log_every: Count = 10
    """Write a line of metrics.jsonl every so many steps."""
    keep: Count = 3
    """Keep this many of the newest checkpoints, and the best one."""
    patience: CountOrZero = 0
    """Stop after this many evaluations without a better perplexity; 0 never stops
    early."""
    accumulate: Annotated[int, Range(1, 2**20)] = 1
    """Gradient accumulation: compute each step in this many microbatches, which makes
    the same step in less memory."""
    unique_words: bool = True
    """Encode each distinct word of a batch once. Turn it off only to measure what it
    saves."""
    skip_nonfinite: CountOrZero = 0
    """Skip up to this many updates whose loss or gradient is not finite; one more stops
    the run."""
    spike_guard: NonNegative = 0.0
    """Treat a loss above this many times its running mean like one that is not finite;
    0 turns it off."""
    allow_unsorted_vocabulary: bool = False
    """Accept a vocabulary that is not sorted by its counts in the training text."""

    def __post_init__(self) -> None:
        check_fields(self)
        most = MOST_POSITIONS // self.window
        wanted = f"at most {most} with a window of {self.window}"
        _require(self.rows <= most, self, "rows", wanted)
        good = self.spike_guard == 0 or self.spike_guard > 1
        _require(good, self, "spike_guard", "0 (off), or above 1")
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
    """A configuration as indented JSON, paths and addresses as strings."""
    values = dataclasses.asdict(config)
    return json.dumps(values, indent=2, default=lambda p: address(p) or str(p)) + "\n"


def from_json(
    cls: type[T],
    text: str,
    where: object,
    parse: Callable[[Any], Any] = parse_json,
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
    """Dataclasses of dictionaries; all other values are checked by their owners."""
    kinds = [
        kind
        for kind in typing.get_args(hint) or (hint,)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    if not kinds:
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{shown(value)} is no {kinds[0].__name__}")
    kind = max(kinds, key=lambda kind: len(value.keys() & field_hints(kind).keys()))
    hints = field_hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise TypeError(f"{kind.__name__} has no field {shown(unknown[0])}")
    return kind(**{name: _build(hints[name][1], v) for name, v in value.items()})
