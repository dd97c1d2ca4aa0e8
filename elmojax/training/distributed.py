"""Several processes as one run: joining, agreeing, and noticing that one is gone.

Each process has devices of its own, and all run the same program. What the processes
must know of each other (whether a batch needs larger arrays, whether somebody asked to
stop) their devices gather, between two steps. Whoever fails ends; the coordination
service of JAX, which process 0 hosts, notices within `HEARTBEAT` seconds and ends the
others, and the run goes on from its last checkpoint when it is started again.

Two things of that service have no public name: `global_state.client` is asked to wait
for others for longer than a program on the devices may take, and to keep what a process
that fails has to say.

`Stop` is how a run is asked to stop, by Ctrl-C or by a scheduler such as Slurm.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmojax.errors import AGAIN, InputError, TryAgain, one_line

T = TypeVar("T")

HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as lost."""

PATIENCE = 3600
"""Seconds to wait for the others to come to the same place: longer than they need."""

FAILURE = "elmojax/failed"
"""Key under which a process that fails leaves its status and sentence."""

FAREWELL = 10
"""Seconds that the first process waits for the others to read it."""

LOST = (
    "another process of this run ended or cannot be reached, so this one ends too. See "
    "the messages of the others, then give the same command again (with any number of "
    "processes): the run goes on from its last checkpoint."
)

CRASHED = (
    "this process crashed inside a library (SIGABRT); what that said is above. The run "
    "goes on from its last checkpoint when the same command is given again."
)


def join(
    coordinator: str | None = None,
    index: int | None = None,
    count: int | None = None,
    timeout: int = 300,
) -> None:
    """Makes this process one of a run; before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0; None = as Slurm, GKE, Cloud TPU or Open MPI
        say. index: number of this process, from 0. count: how many there are.
      timeout: seconds to wait for the others to come.

    Raises:
      InputError: for numbers that cannot be, or where nothing says what they are.
      TryAgain: where the others did not come.
    """
    explicit = (coordinator, index, count)
    known = [value for value in explicit if value is not None]
    if known and len(known) < len(explicit):
        raise InputError(
            "Give --coordinator, --process-id and --process-count together, or none of "
            "them where Slurm, GKE, Cloud TPU or Open MPI tell."
        )
    if known:
        _check_given(*explicit)
    _end_with_a_sentence()
    # SIGTERM is for us to hear: the run stops between two steps and saves.
    jax.config.update("jax_enable_preemption_service", False)
    before = _threads()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method="deactivate" if known else None,
            coordinator_bind_address=coordinator if index == 0 else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        why = one_line(error)
        if (not known and "should be defined" in why) or "must be defined" in why:
            raise InputError(
                "--distributed found no Slurm, GKE, Cloud TPU or Open MPI here; give "
                "--coordinator HOST:PORT --process-id I --process-count N."
            ) from error
        raise TryAgain(
            f"The processes of the run could not join ({why[:200]}); check that all "
            "were started, and process 0 where --coordinator says, on a free port, and "
            "try again."
        ) from error
    _service.update(_threads() - before)
    threading.Thread(target=_listen, daemon=True).start()


def _check_given(coordinator: str | None, index: int | None, count: int | None) -> None:
    assert coordinator is not None and index is not None and count is not None
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(
            f"--coordinator {coordinator} is no address; give HOST:PORT of process 0, "
            "for example 127.0.0.1:9000."
        )
    if not 0 <= index < count:
        raise InputError(
            f"--process-id {index} is not one of --process-count {count}; they are "
            f"numbered from 0 to {max(count, 1) - 1}."
        )


def _end_with_a_sentence() -> None:
    """When JAX ends this process (it aborts), say why and leave with status 75.

    JAX offers no other way to hear of a lost process: it aborts from a thread of its
    own, in which no handler of Python would run. An abort in any other thread is a
    crash of this process: it keeps its status, and the messages that came before.
    """

    def aborted(_: int) -> None:
        if not _service or threading.get_native_id() in _service:
            _tell(LOST)
            os._exit(AGAIN)
        _tell(CRASHED)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _kept.append(handler)  # C holds no reference
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_service: set[int] = set()
"""Threads of the coordination service; empty until it runs, and where the system does
not list threads."""


def _threads() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return set()


def _tell(why: str) -> None:
    with contextlib.suppress(OSError):  # whoever does not hear it does not stop it
        os.write(2, f"elmojax: {why}\n".encode())


_kept: list[Any] = []


def is_multiprocess() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return not is_multiprocess() or jax.process_index() == 0


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """What JAX raises inside because another process is gone becomes a `TryAgain`."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or not is_multiprocess() or "RESOURCE_EXHAUSTED" in str(cause):
            raise
        why = one_line(cause)
        raise TryAgain(f"{LOST} JAX says: {why}") from error


def gather(*values: int) -> Callable[[], np.ndarray]:
    """What all processes give: int32 [processes, values], when it is asked for.

    A program gathers it on the devices, after what they were given before. All
    processes come here between the same steps, in the thread that hands steps over. A
    process on its own asks nobody.
    """
    mine = np.asarray(values, np.int32)[None]
    if not is_multiprocess():
        return lambda: mine
    apart, gather = _gathering()
    shape = (jax.process_count(), len(values))
    asked = jax.make_array_from_callback(shape, apart, lambda _: mine)
    answer = gather(asked)
    return lambda: np.asarray(answer.addressable_data(0))


@cache
def _gathering() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Where rows of processes lie, and what brings them everywhere."""
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    each = np.array(devices).reshape(jax.process_count(), -1)
    mesh = Mesh(each, ("process", "device"))
    gather = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, P()))
    return NamedSharding(mesh, P("process")), gather


def in_turn(work: Callable[[], T]) -> T:
    """`work` by the first process alone, then by the others, who find it done."""
    if not is_first():
        wait_for_all()
    result = work()
    if is_first():
        wait_for_all()
    return result


def wait_for_all() -> None:
    """Nobody goes on before all have come here."""
    if is_multiprocess():
        name = f"elmojax/begin/{next(_barriers)}"
        _client().wait_at_barrier(name, PATIENCE * 1000)


_barriers = itertools.count()


def _client() -> Any:
    """Of the coordination service, in a process that has joined."""
    return global_state.client


def leave() -> None:
    """The end of a run, after which no process counts as lost."""
    if is_multiprocess():
        jax.distributed.shutdown()


@contextmanager
def failing_together() -> Iterator[None]:
    """What ends one of several processes ends them all, with its sentence and status.

    The process ends here and now: nothing that waits for the others would come back.
    """
    try:
        yield
    except BaseException as error:
        if not is_multiprocess():
            raise
        status, why = _verdict(error)
        _tell(why)
        with contextlib.suppress(Exception):  # another one may have been first
            _client().key_value_set(FAILURE, json.dumps([status, why]))
        _go(status)


def _go(status: int) -> NoReturn:
    """Ends this process; the first, which hosts what the others read, after them."""
    name, latest = "elmojax/gone/{}".format, time.monotonic() + FAREWELL
    with contextlib.suppress(Exception):  # one that crashed says nothing
        if is_first():
            for other in range(1, jax.process_count()):
                left = max(0.0, latest - time.monotonic())
                _client().blocking_key_value_get(name(other), int(1000 * left))
        else:
            _client().key_value_set(name(jax.process_index()), "")
    os._exit(status)


def _verdict(error: BaseException) -> tuple[int, str]:
    """Exit status and sentence of what ended a process."""
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, TryAgain):
        return AGAIN, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted before the first step."
    traceback.print_exception(error)
    return 1, f"process {jax.process_index()} failed: {type(error).__name__}: {error}"


def _listen() -> None:
    """Ends this process when another one says that it failed, and why."""
    client = _client()
    while True:
        try:
            answer = client.blocking_key_value_get(FAILURE, PATIENCE * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return  # the run is over
        status, why = json.loads(answer)
        _tell(why)
        _go(status)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """While this context is open, SIGINT and SIGTERM ask to stop instead of killing.

    The first sets `signal`; whoever works looks at it between two steps. The second
    ends the process at once, with status 128 + its number, also after the context;
    checkpoints are renamed into place when they are whole, so none is harmed. Outside
    the main thread signals are left alone. It may be opened again inside.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._depth = 0

    def __enter__(self) -> Stop:
        self._depth += 1
        if self._depth > 1:
            return self
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._heard) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth or self.signal is not None:
            return  # a second signal may still come before the process has ended
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number

    def hear(self, asked: int) -> None:
        """Raises `Stopped` if the processes agree to stop, for the signal `asked`.

        A process on its own asks nobody.
        """
        if is_multiprocess() and not asked:
            return
        self.signal = asked or self.signal
        self.check()

    def check(self, *_: object) -> None:
        """Raises `Stopped` if a signal was heard."""
        if self.signal is not None:
            raise Stopped(signal.Signals(self.signal).name)


class Stopped(Exception):
    """A signal asked to stop; its name is the argument."""
