"""The command line: the only module that parses arguments or prints.

Results go to standard output (with --json exactly one JSON object), progress and
remarks to standard error. Exit status: 0 done, 2 bad input (one clear sentence),
128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM; training saves a checkpoint).
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

import elmojax
from elmojax.config import CharCnnConfig, TrainConfig
from elmojax.errors import InputError
from elmojax.text import corpus as corpora
from elmojax.text.files import Errors, read_lines

_arg = tyro.conf.arg
Model = Annotated[
    str, tyro.conf.Positional, _arg(metavar="MODEL", help="Run directory.")
]
Files = Annotated[
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    _arg(metavar="FILE [FILE ...]", help_behavior_hint="(may be repeated)"),
]
Step = Annotated[int | None, _arg(help="Checkpoint to take; none = the newest.")]
BadBytes = Annotated[Errors, _arg(help="What to do with bytes that are not UTF-8.")]
Overwrite = Annotated[
    bool, tyro.conf.FlagCreatePairsOff, _arg(help="Replace --out if it is there.")
]
Json = Annotated[
    bool,
    tyro.conf.FlagCreatePairsOff,
    _arg(help="Print exactly one JSON object on standard output."),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `elmojax`."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"elmojax {elmojax.__version__}")
        sys.exit(0)
    if argv[0] not in COMMANDS:
        _fail(f"there is no command {argv[0]!r}; choose one of {', '.join(COMMANDS)}.")
    try:
        COMMANDS[argv[0]](argv[1:])
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _say("interrupted; what was whole stays whole, and pretraining can go on.")
        sys.exit(130)


def _fail(message: str) -> None:
    _say(message)
    sys.exit(2)


def _say(message: str) -> None:
    tqdm.write(f"elmojax: {message}", file=sys.stderr)


def _overview() -> str:
    lines = [f"  {name:9} {run.__doc__}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "ELMo in JAX: pretrain bidirectional language models, embed, evaluate.",
            "",
            "usage: elmojax COMMAND [OPTIONS]      (elmojax COMMAND --help)",
            "",
            *lines,
            "",
            "First run: `elmojax pretrain` trains a small model on a text that ships "
            "inside.",
        ]
    )


def _parse(kind: Callable[..., Any], command: str, argv: list[str], **more: Any) -> Any:
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone)
    prog = f"elmojax {command}"
    return tyro.cli(kind, prog=prog, args=argv, config=plain, **more)


def _print_json(report: Mapping[str, Any]) -> None:
    print(json.dumps(report, default=str))


# --- prepare -------------------------------------------------------------------------


@dataclass(frozen=True)
class PrepareArguments:
    """Turns text into a vocabulary and arrays of word ids."""

    out: Path
    """Directory to make."""
    text: Files = ()
    """Files or quoted globs: one tokenised sentence a line; .gz .xz .bz2 too."""
    tfds: str | None = None
    """TensorFlow data set instead of files, for example lm1b (array_record)."""
    split: str = "train"
    """Split of the data set."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets; none = where TFDS looks itself."""
    feature: str = "text"
    """Feature of the data set that holds the text."""
    vocabulary: Path | None = None
    """Vocabulary file to use; none = one is built from this text."""
    max_vocabulary: int | None = None
    """Most words of the vocabulary, `<S> </S> <UNK>` among them."""
    min_count: int = 1
    """Least occurrences of a word of the vocabulary."""
    errors: BadBytes = "strict"
    max_characters: int = 50
    """Character columns a word; words over this less 2 bytes count as truncated."""
    overwrite: Overwrite = False
    json: Json = False


def _prepare(argv: list[str]) -> None:
    """text -> vocabulary and arrays of word ids"""
    asked = _parse(PrepareArguments, "prepare", argv)
    tfds = None
    if asked.tfds is not None:
        tfds = corpora.TfdsText(asked.tfds, asked.split, asked.data_dir, asked.feature)
    with tqdm(total=100, unit="%", desc="prepare", disable=None) as bar:

        def progress(share: float, words: int) -> None:
            bar.set_postfix_str(f"{words / 1e6:.1f} M words")
            bar.update(int(100 * share) - bar.n)

        report = corpora.prepare(
            asked.out,
            patterns=sum(asked.text, ()),
            tfds=tfds,
            vocabulary=asked.vocabulary,
            max_vocabulary=asked.max_vocabulary,
            min_count=asked.min_count,
            errors=asked.errors,
            max_characters=asked.max_characters,
            overwrite=asked.overwrite,
            progress=progress,
        )
    if asked.json:
        _print_json(report)
        return
    print(
        f"{asked.out} ({report['status']}): {report['tokens']:,} words in "
        f"{report['sentences']:,} sentences, {report['types']:,} types; vocabulary of "
        f"{report['vocabulary']:,}, {report['oov_rate']:.2%} out of vocabulary; "
        f"{report['truncated_words']:,} truncated words.\n"
        f"Skipped {report['blank_lines']:,} blank lines; undecodable bytes replaced in "
        f"{report['replaced_lines']:,} lines. {report['seconds']:.1f} s, "
        f"{report['words_per_second']:,.0f} words/s."
    )


# --- pretrain ------------------------------------------------------------------------


@dataclass(frozen=True)
class PretrainArguments(TrainConfig):
    """Trains a biLM, or goes on with the run in --workdir as it was started."""

    start_from: Annotated[
        Literal["mini", "small", "medium", "original"], _arg(name="preset")
    ] = "mini"
    """Model size and recipe to start from."""
    config: Path | None = None
    """Python file with `config() -> TrainConfig` to start from."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write TensorBoard events into the run directory."""
    json: Json = False


def _pretrain(argv: list[str]) -> None:
    """train a biLM (no arguments: a small one, on the text inside)"""
    from elmojax.loading import with_model, with_word_vectors
    from elmojax.training.checkpoint import has_checkpoint
    from elmojax.training.loop import pretrain
    from elmojax.training.metrics import TensorBoard

    asked = _parse(PretrainArguments, "pretrain", argv, default=_defaults(argv))
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(asked, name) for name in names})
    trackers: list[Any] = [Progress()]
    if asked.tensorboard:
        trackers.append(TensorBoard(config.workdir / "tensorboard"))
    initialize = None
    if not has_checkpoint(config.workdir):
        if (config.workdir / "config.json").exists():
            _say(f"{config.workdir} has no checkpoint yet; it begins at step 0.")
        if config.word_vectors is not None:
            config, initialize, found = with_word_vectors(config)
            _say(f"{found:,} words of the vocabulary have a vector.")
        if config.init_from is not None:
            config, initialize, kept = with_model(config)
            softmax = "with its softmax" if kept else "with a new softmax"
            _say(f"The weights are those of {config.init_from}, {softmax}.")
    result = pretrain(config, trackers, elmojax.__version__, initialize)
    if result.signal is not None:
        sys.exit(128 + result.signal)
    if asked.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(_farewell(result, config))


def _defaults(argv: list[str]) -> PretrainArguments:
    """What flags fall back to: the run that is there, else --config, else --preset."""
    from elmojax.loading import read_config
    from elmojax.training.checkpoint import read_record

    given = _given(argv, "--preset", "--config", "--workdir", "--steps", "--epochs")
    for one, other in (("--preset", "--config"), ("--steps", "--epochs")):
        if one in given and other in given:
            raise InputError(f"Give {one} or {other}, not both.")
    chosen: dict[str, Any] = {}
    if "--config" in given:
        chosen["config"] = Path(given["--config"])
        base = read_config(chosen["config"])
    else:
        chosen["start_from"] = given.get("--preset", "mini")
        base = TrainConfig.preset(chosen["start_from"])
        run = Path(given.get("--workdir", base.workdir))
        if "--preset" not in given and (run / "config.json").exists():
            base = dataclasses.replace(read_record(run).train, workdir=run)
    if "--epochs" in given:
        base = dataclasses.replace(base, steps=None)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    return PretrainArguments(**values, **chosen)


def _given(argv: list[str], *names: str) -> dict[str, str]:
    """The values of some flags, which others fall back on: read before the rest."""
    given = {}
    for word, after in zip(argv, [*argv, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            given[name] = value if equals else after
    return given


class Progress:
    """The tracker for people: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._said = 0.0

    def begin(self, step: int, steps: int) -> None:
        self._bar = tqdm(
            total=steps,
            initial=step,
            desc="pretrain",
            disable=None,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}{postfix}]",
        )

    def step(self, step: int, loss: float) -> None:
        self._bar.update(step - self._bar.n)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "heldout_loss" in metrics:
            _say(
                f"step {step}: held-out perplexity "
                f"{metrics['heldout_mean_perplexity']:,.1f} (forward "
                f"{metrics['heldout_forward_perplexity']:,.1f}, backward "
                f"{metrics['heldout_backward_perplexity']:,.1f}; "
                f"{metrics['heldout_seconds']:.0f} s)"
            )
            return
        rate, bar = metrics["tokens_per_second"], self._bar
        status = f"loss {metrics['loss']:.3f}"
        if rate:  # the first step only compiles
            left = (bar.total - step) * metrics["tokens"] / step / rate
            left = tqdm.format_interval(left)
            status += f", {rate:,.0f} tokens/s, {left} left"
        bar.set_postfix_str(status)
        if bar.disable and time.monotonic() - self._said > 15:
            self._said = time.monotonic()
            _say(f"step {step}/{bar.total}: {status}")

    def note(self, text: str) -> None:
        _say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _farewell(result: Any, config: TrainConfig) -> str:
    run = shlex.quote(str(result.run))
    lines = [f"\n{result.run}: step {result.step}, checkpoint saved."]
    if result.after:
        was = (
            f"{result.before['mean_perplexity']:,.1f} before, " if result.before else ""
        )
        now = result.after["mean_perplexity"]
        lines.append(f"Held-out perplexity: {was}{now:,.1f} after.")
    if result.plot:
        lines.append(f"Losses: {result.plot}")
    heldout = config.heldout or (None if config.data else result.run / "sample-heldout")
    text = f"--data {shlex.quote(str(heldout))}" if heldout else "--text heldout.txt"
    use = f"params = elmojax.restore({str(result.run)!r}); print("
    if isinstance(config.model.encoder, CharCnnConfig) and config.encoder != "words":
        gammas = [1] * (config.model.lstm.layers + 1)
        tokens = "elmojax.batch_to_ids([['The', 'river', 'bank']])"
        use += f"elmojax.embed(params, {tokens}, {gammas}).shape)"
    else:
        use += "params.config)"
    lines += [
        "\nWhat to type next:",
        f"  elmojax evaluate {run} {text}",
        f"  echo 'The river bank .' > words.txt && elmojax embed {run} "
        "--text words.txt --out vectors.hdf5",
        f'  python -c "import elmojax; {use}"',
    ]
    return "\n".join(lines)


# --- evaluate ------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateArguments:
    """Exact perplexity of a model on held-out text, every token once."""

    model: Model
    data: Path | None = None
    """Prepared corpus."""
    text: Files = ()
    """Or text files: one tokenised sentence a line."""
    errors: BadBytes = "strict"
    step: Step = None
    json: Json = False


def _evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.loading import open_model
    from elmojax.training.evaluate import Evaluator

    asked = _parse(EvaluateArguments, "evaluate", argv)
    files = sum(asked.text, ())
    if (asked.data is None) == (not files):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        directory = asked.data
        if directory is None:
            directory = Path(temporary) / "text"
            corpora.prepare(directory, patterns=files, errors=asked.errors)
        text = corpora.Corpus.open(directory)
        model = open_model(asked.model, asked.step)
        lm, params, vocabulary = model.language_model()
        evaluator = Evaluator(lm, text, vocabulary)
        total = len(text.words) + len(text.offsets) - 1
        with tqdm(total=total, unit="token", desc="evaluate", disable=None) as bar:
            scores = evaluator(params, bar.update)
    if asked.json:
        _print_json(scores)
        return
    for name, value in scores.items():
        digits = ",d" if isinstance(value, int) else ",.4f"
        print(f"{name:22} {value:{digits}}")


# --- embed ---------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbedArguments:
    """Writes all layers of every line: HDF5, key = line number from 0,
    (layers + 1, words, 2 * projection); blank lines have no words."""

    model: Model
    text: Path
    """One tokenised sentence a line."""
    out: Path
    """HDF5 file to make."""
    step: Step = None
    batch_tokens: int = 2048
    """Positions a batch, padding included: bounds memory."""
    errors: BadBytes = "strict"
    overwrite: Overwrite = False
    json: Json = False


def _embed(argv: list[str]) -> None:
    """vectors of every line of a text, as HDF5"""
    from elmojax.embedding.embedder import Embedder
    from elmojax.embedding.outputs import write_hdf5
    from elmojax.loading import open_model

    asked = _parse(EmbedArguments, "embed", argv)
    started = time.perf_counter()
    model = open_model(asked.model, asked.step)
    embedder = Embedder(model.params, model.vocabulary, asked.batch_tokens)
    words = 0
    with tqdm(unit="line", desc="embed", disable=None) as bar:

        def lines() -> Iterator[list[str]]:
            nonlocal words
            for _, sentence in read_lines(asked.text, asked.errors):
                words += len(sentence)
                bar.update()
                yield sentence

        count = write_hdf5(asked.out, embedder.layers(lines()), asked.overwrite)
    seconds = time.perf_counter() - started
    report = {"out": asked.out, "lines": count, "words": words, "seconds": seconds}
    if asked.json:
        _print_json(report)
    else:
        print(f"{asked.out}: {count:,} lines, {words:,} words, {seconds:.1f} s.")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "evaluate": _evaluate,
    "embed": _embed,
}
