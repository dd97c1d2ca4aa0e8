"""The command line: the only module that parses arguments or prints.

Results go to standard output (with --json exactly one JSON object), progress and
remarks to standard error. Exit status: 0 done, 2 bad input (one clear sentence),
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

import elmojax
from elmojax.config import TrainConfig
from elmojax.errors import InputError
from elmojax.text import corpus as corpora
from elmojax.text.files import read_lines

Model = Annotated[str, tyro.conf.Positional]


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
        _say("interrupted; checkpoints that were whole stay whole.")
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
    plain = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
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
    text: tuple[str, ...] = ()
    """Files or quoted globs: one tokenised sentence a line; .gz .xz .bz2 too."""
    tfds: str | None = None
    """TensorFlow data set instead of files, for example lm1b (array_record)."""
    split: str = "train"
    data_dir: str | None = None
    """Where TFDS keeps its data sets."""
    feature: str = "text"
    """Feature of the data set that holds the text."""
    vocabulary: Path | None = None
    """Vocabulary file to use; else one is built from this text."""
    max_vocabulary: int | None = None
    """Most words of the vocabulary, `<S> </S> <UNK>` among them."""
    min_count: int = 1
    """Least occurrences of a word of the vocabulary."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8."""
    max_characters: int = 50
    """Character columns a word; words over this less 2 bytes count as truncated."""
    overwrite: bool = False
    json: bool = False


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
            patterns=asked.text,
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
    """Trains a biLM, or goes on with the run in --workdir."""

    preset: Literal["mini", "small", "medium", "original"] = "mini"
    """Model size and recipe to start from."""
    config: Path | None = None
    """Python file with `config() -> TrainConfig` to start from."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run directory."""
    json: bool = False


def _pretrain(argv: list[str]) -> None:
    """train a biLM (no arguments: a small one, on the text inside)"""
    from elmojax.loading import WordVectors
    from elmojax.text.prepared import Corpus
    from elmojax.training.loop import pretrain
    from elmojax.training.metrics import TensorBoard, has_tensorboard

    asked = _parse(PretrainArguments, "pretrain", argv, default=_defaults(argv))
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(asked, name) for name in names})
    trackers: list[Any] = [Progress()]
    if asked.tensorboard:
        if not has_tensorboard():
            raise InputError(
                "--tensorboard needs the extra: pip install 'elmojax[tensorboard]'."
            )
        trackers.append(TensorBoard(config.workdir / "tensorboard"))
    initialize = None
    fresh = not (config.workdir / "config.json").exists()
    if config.word_vectors is not None and fresh:
        if config.data is None:
            raise InputError("--word-vectors needs --data: the words to look up.")
        vectors = WordVectors(config.word_vectors, Corpus.open(config.data).vocabulary)
        _say(f"{vectors.found.sum():,} words of the vocabulary have a vector.")
        config, initialize = vectors.shape(config), vectors.fill
    result = pretrain(config, trackers, elmojax.__version__, initialize)
    if asked.json:
        _print_json(dataclasses.asdict(result))
    else:
        print(_farewell(result, config))


def _defaults(argv: list[str]) -> PretrainArguments:
    """What flags fall back to: the run that is there, else --config, else --preset."""
    given = {}
    for name in ("--preset", "--config", "--workdir"):
        for at, word in enumerate(argv):
            if word == name and at + 1 < len(argv):
                given[name] = argv[at + 1]
            elif word.startswith(name + "="):
                given[name] = word.partition("=")[2]
    chosen: dict[str, Any] = {}
    if "--config" in given:
        if "--preset" in given:
            raise InputError("Give --preset or --config, not both.")
        path = Path(given["--config"])
        base, chosen["config"] = _read_config(path), path
    else:
        name = given.get("--preset", "mini")
        base = TrainConfig.preset(name)
        chosen["preset"] = name
        run = Path(given.get("--workdir", base.workdir))
        if "--preset" not in given and (run / "config.json").exists():
            from elmojax.training.checkpoint import read_record

            base = dataclasses.replace(read_record(run).train, workdir=run)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    return PretrainArguments(**values, **chosen)


def _read_config(path: Path) -> TrainConfig:
    if not path.is_file():
        raise InputError(f"--config {path}: there is no such file.")
    try:
        config = runpy.run_path(str(path))["config"]()
    except KeyError as error:
        raise InputError(f"--config {path} defines no function config().") from error
    except SyntaxError as error:
        raise InputError(f"--config {path} is not Python: {error}.") from error
    if not isinstance(config, TrainConfig):
        raise InputError(f"config() of {path} must return an elmojax.TrainConfig.")
    return config


class Progress:
    """The tracker for people: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._said = 0.0

    def begin(self, step: int, steps: int) -> None:
        self._bar = tqdm(
            total=steps, initial=step, unit="step", desc="pretrain", disable=None
        )

    def step(self, step: int, loss: float) -> None:
        self._bar.update(step - self._bar.n if not self._bar.disable else 0)

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
        rate, loss = metrics["tokens_per_second"], metrics["loss"]
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s, loss {loss:.3f}")
        if self._bar.disable and time.monotonic() - self._said > 15:
            self._said = time.monotonic()
            total, left = self._bar.total, self._bar.total - step
            tokens = metrics["tokens"] / step
            eta = f"{left * tokens / rate:,.0f} s left" if rate else "compiled"
            _say(f"step {step}/{total}: loss {loss:.3f}, {rate:,.0f} tokens/s, {eta}")

    def note(self, text: str) -> None:
        _say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _farewell(result: Any, config: TrainConfig) -> str:
    run = result.run
    lines = [f"\n{run}: step {result.step}, checkpoint saved."]
    if result.before and result.after:
        before, after = (s["mean_perplexity"] for s in (result.before, result.after))
        lines.append(f"Held-out perplexity: {before:,.1f} before, {after:,.1f} after.")
    if result.plot:
        lines.append(f"Losses: {result.plot}")
    heldout = config.heldout or (None if config.data else run / "sample-heldout")
    text = f"--data {heldout}" if heldout else "--text heldout.txt"
    lines += [
        "\nWhat to type next:",
        f"  elmojax evaluate {run} {text}",
        f"  echo 'The river bank .' > words.txt && elmojax embed {run} "
        "--text words.txt --out vectors.hdf5",
        f'  python -c "import elmojax; params = elmojax.restore({str(run)!r}); '
        "print(elmojax.embed(params, elmojax.batch_to_ids([['The', 'river', 'bank']]), "
        '[0, 0.5, 0.5]).shape)"',
    ]
    return "\n".join(lines)


# --- evaluate ------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateArguments:
    """Exact perplexity of a model on held-out text, every token once."""

    model: Model
    """Run directory."""
    data: Path | None = None
    """Prepared corpus."""
    text: tuple[str, ...] = ()
    """Or text files: one tokenised sentence a line."""
    step: int | None = None
    """Checkpoint; default the newest."""
    json: bool = False


def _evaluate(argv: list[str]) -> None:
    """exact perplexity of a model on held-out text"""
    from elmojax.loading import open_model
    from elmojax.training.checkpoint import language_model
    from elmojax.training.evaluate import Evaluator

    asked = _parse(EvaluateArguments, "evaluate", argv)
    if (asked.data is None) == (not asked.text):
        raise InputError("Give either --data DIRECTORY or --text FILE to evaluate on.")
    model = open_model(asked.model, asked.step)
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        directory = asked.data
        if directory is None:
            directory = Path(temporary) / "text"
            corpora.prepare(directory, patterns=asked.text)
        text = corpora.Corpus.open(directory)
        evaluator = Evaluator(language_model(model.record), text, model.vocabulary)
        total = len(text.words) + len(text.offsets) - 1
        with tqdm(total=total, unit="token", desc="evaluate", disable=None) as bar:
            scores = evaluator(model.tree, bar.update)
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
    """Run directory."""
    text: Path
    """One tokenised sentence a line."""
    out: Path
    """HDF5 file to make."""
    step: int | None = None
    """Checkpoint; default the newest."""
    batch_tokens: int = 2048
    """Positions a batch, padding included: bounds memory."""
    errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8."""
    overwrite: bool = False
    json: bool = False


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

        def lines() -> Any:
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
