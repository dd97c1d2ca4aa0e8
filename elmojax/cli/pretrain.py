"""`elmojax pretrain`, and flags about a run that other commands have too."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from tqdm import tqdm
from tyro.conf import UseAppendAction, arg

from elmojax.cli import common
from elmojax.cloud import address, copy_of, origin
from elmojax.config import (
    CharCnnConfig,
    Count,
    CountOrZero,
    HeadConfig,
    OptimizerConfig,
    TrainConfig,
)
from elmojax.errors import InputError
from elmojax.training.metrics import Tracker, readable
from elmojax.training.trackers import TrackerName, make_tracker

if TYPE_CHECKING:
    from elmojax.training.distributed import Stop
    from elmojax.training.loop import Result

# Other names of flags, which people know from other programs. Tyro reads them with the
# types, and configurations are to load without tyro.
for _kind, _name, *_aliases in (
    (TrainConfig, "rows", "--batch-size"),
    (TrainConfig, "window", "--unroll", "--seq-len"),
    (TrainConfig, "heldout", "--eval-data"),
    (TrainConfig, "accumulate", "--grad-accum"),
    (HeadConfig, "samples", "--num-negatives"),
    (OptimizerConfig, "gradient_norm", "--max-grad-norm"),
):
    _type = get_type_hints(_kind, include_extras=True)[_name]
    _kind.__annotations__[_name] = Annotated[_type, arg(aliases=_aliases)]


@dataclass(frozen=True)
class RecipeArguments(TrainConfig):
    """A run that is to be, as flags describe it."""

    start_from: Annotated[
        Literal["mini", "small", "medium", "original"], arg(name="preset")
    ] = "mini"
    """Model size and training recipe to start from; other flags change single
    settings."""
    config: Path | None = None
    """File with the settings to start from: TOML or JSON with fields of TrainConfig
    (such as the config.json of a run), or Python with a function `config()`."""

    def train_config(self) -> TrainConfig:
        """The run, without the flags of the command."""
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Typed:
    """Flags that choose the defaults of all others; they are read first."""

    preset: str | None = None
    config: Path | None = None
    workdir: Path | None = None
    data: Path | None = None
    steps: str | None = None
    epochs: str | None = None


Recipe = TypeVar("Recipe", bound=RecipeArguments)


def parse_recipe(
    kind: type[Recipe], command: str, argv: list[str]
) -> tuple[Recipe, Typed]:
    """Flags about a run: what is not given is as in the run that is there, else as in
    --config, else as in --preset."""
    from elmojax.initialization import read_config
    from elmojax.training.record import read_record
    from elmojax.training.remote import bring_run

    alone = {"add_help": False, "return_unknown_args": True}
    given: Typed = common.run_tyro(Typed, f"elmojax {command}", args=argv, **alone)[0]
    common.check_places(given)
    for one, other in (("preset", "config"), ("steps", "epochs")):
        if None not in (getattr(given, one), getattr(given, other)):
            raise InputError(f"Give --{one} or --{other}, not both.")
    preset = given.preset or "mini"
    if given.config is not None:
        base = read_config(given.config)
    else:
        base = TrainConfig.preset(preset)
        run = given.workdir or base.workdir
        here = bring_run(run)
        if given.preset is None and (here / "config.json").exists():
            base = dataclasses.replace(read_record(here).train, workdir=run)
    if given.epochs is not None:
        base = dataclasses.replace(base, steps=None)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    chosen: dict[str, Any] = {"start_from": preset, "config": given.config}
    return common.parse(kind, command, argv, default=kind(**values, **chosen)), given


@dataclass(frozen=True)
class PretrainArguments(RecipeArguments):
    """Trains a biLM, or goes on with the run in --workdir as it was started."""

    distributed: common.Switch = False
    """Join the other processes of a run on several hosts, all of which see the same
    directories. Slurm, GKE, Cloud TPU and Open MPI are recognised."""
    coordinator: str | None = None
    """Address of process 0 as HOST:PORT, where no cluster manager provides it."""
    process_id: CountOrZero | None = None
    """Number of this process, from 0."""
    process_count: Count | None = None
    """Number of processes of the run."""
    tensorboard: common.Switch = False
    """The same as `--tracker tensorboard`."""
    tracker: Annotated[tuple[TrackerName, ...], UseAppendAction] = ()
    """Send the metrics to another program, too: `tensorboard` (events in the run
    directory), `wandb` (Weights & Biases) or `trackio`. May be repeated. A tracker that
    fails is reported and left out; the run goes on."""
    profile: common.Switch = False
    """Write a profiler trace of ten steps into the run directory, too."""
    json: common.Json = False


def pretrain(argv: list[str]) -> None:
    """train a biLM (no arguments: a small one, on the text inside)"""
    from elmojax.training import distributed
    from elmojax.training.distributed import Stop
    from elmojax.training.memory import keep_freed_memory
    from elmojax.training.record import checkpoint_steps

    keep_freed_memory()
    asked, _ = parse_recipe(PretrainArguments, "pretrain", argv)
    shape = [flag for flag in argv if flag.startswith("--model.")]
    if (
        shape
        and asked.init_from is not None
        and not checkpoint_steps(copy_of(asked.workdir))
    ):
        raise InputError(
            f"{shape[0].partition('=')[0]} is not for a run that starts from a model: "
            f"its shape is that of {asked.init_from}. Leave it or --init-from out."
        )
    explicit = (asked.coordinator, asked.process_id, asked.process_count)
    if asked.distributed:
        distributed.join(*explicit)
    elif any(value is not None for value in explicit):
        raise InputError(
            "--coordinator, --process-id and --process-count go with --distributed."
        )
    common.keep_compiled_programs()
    with Stop() as stop, distributed.failing_together():
        with contextlib.redirect_stdout(sys.stderr):  # what trackers print
            result = _pretrain(asked, stop)
        first = distributed.is_first()
        distributed.leave()
    if first and asked.json:
        plot = result.plot and origin(result.plot)
        named = {"run": origin(result.run), "plot": plot}
        common.print_json(dataclasses.asdict(result) | named)
    elif first and result.signal is None:
        print(_farewell(result))
    if stop.signal is not None:
        sys.exit(128 + stop.signal)


def _pretrain(asked: PretrainArguments, stop: Stop) -> Result:
    """The run that is asked for, told to people by the first process."""
    from elmojax.initialization import pretrain
    from elmojax.training.distributed import is_first
    from elmojax.training.metrics import Profile

    config = asked.train_config()
    run = copy_of(config.workdir)
    if asked.config is None:  # where the defaults come from, a remote run was fetched
        config = dataclasses.replace(config, workdir=run)
    names: list[TrackerName] = [*asked.tracker]
    names += ["tensorboard"] * asked.tensorboard
    told = (make_tracker(name, run, common.say) for name in dict.fromkeys(names))
    trackers: list[Any] = [ProgressBar(), *told]
    if asked.profile:
        trackers.append(Profile(run / "profile"))
    remark = common.say if is_first() else (lambda _: None)
    return pretrain(config, trackers, stop=stop, remark=remark)


class ProgressBar(Tracker):
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
            common.say(
                f"step {step}: held-out perplexity "
                f"{readable(metrics['heldout_mean_perplexity'])} (forward "
                f"{readable(metrics['heldout_forward_perplexity'])}, backward "
                f"{readable(metrics['heldout_backward_perplexity'])}; "
                f"{metrics['heldout_seconds']:.0f} s)"
            )
            return
        rate, bar = metrics["tokens_per_second"], self._bar
        name = "loss" if "loss" in metrics else "sampled_loss"
        status = f"{name.replace('_', ' ')} {readable(metrics[name], 3)}"
        if rate:  # the first step only compiles
            left = (bar.total - step) * metrics["tokens"] / step / rate
            left = tqdm.format_interval(left)
            status += f", {rate:,.0f} tokens/s"
            if "mfu" in metrics:
                each = metrics["tokens_per_second_per_chip"]
                status += f" ({each:,.0f} a chip, MFU {metrics['mfu']:.1%})"
            status += f", {left} left"
        bar.set_postfix_str(status)
        if bar.disable and time.monotonic() - self._said > 15:
            self._said = time.monotonic()
            common.say(f"step {step}/{bar.total}: {status}")

    def note(self, text: str) -> None:
        common.say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _farewell(result: Result) -> str:
    from elmojax.training.record import read_record

    config, named = read_record(result.run).train, origin(result.run)
    run = shlex.quote(named)
    lines = [f"\n{named}: step {result.step}, checkpoint saved."]
    if result.after:
        before, now = result.before, readable(result.after["mean_perplexity"])
        was = f"{readable(before['mean_perplexity'])} before, " if before else ""
        lines.append(f"Held-out perplexity: {was}{now} after.")
    if result.plot:
        lines.append(f"Losses: {origin(result.plot)}")
    heldout = config.heldout or (None if config.data else f"{named}/sample-heldout")
    place = heldout and (address(heldout) or str(heldout))
    text = f"--data {shlex.quote(place)}" if place else "--text heldout.txt"
    use = f"params = elmojax.restore({named!r}); print("
    if isinstance(config.model.encoder, CharCnnConfig):
        gammas = [1] * (config.model.lstm.layers + 1)
        most = config.model.encoder.max_characters
        columns = "" if most == 50 else f", {most}"
        tokens = f"elmojax.batch_to_ids([['The', 'river', 'bank']]{columns})"
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
