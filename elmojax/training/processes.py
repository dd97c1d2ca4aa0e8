"""Several processes as one run: joining, agreeing, and noticing that one is gone.

Each process has devices of its own, and all run the same program. What the devices
cannot settle between themselves (how large a table of words must be, whether somebody
asked to stop) the processes settle through JAX's coordination service, which process 0
hosts. Whoever fails ends; the service notices within `HEARTBEAT` seconds and ends the
others, and the run goes on from its last checkpoint when it is started again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax._src.distributed import global_state

from elmojax.errors import AGAIN, InputError, TryAgain

T = TypeVar("T")

HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as lost."""

PATIENCE = 3600
"""Seconds to wait for the others to come to the same place: longer than they need."""

FAILURE = "elmojax/failed"
"""Key under which a process that fails leaves its status and sentence."""

LOST = (
    "another process of this run ended or cannot be reached, so this one ends too. See "
    "the messages of the others, then give the same command again (with any number of "
    "processes): the run goes on from its last checkpoint."
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
        _check(*explicit)
    _end_with_a_sentence()
    _keep_output_apart()
    # SIGTERM is for us to hear: the run stops between two steps and saves.
    jax.config.update("jax_enable_preemption_service", False)
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
        why = " ".join(str(error).split())
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
    threading.Thread(target=_listen, daemon=True).start()


def _check(coordinator: str | None, index: int | None, count: int | None) -> None:
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
    own, in which no handler of Python would run.
    """

    def aborted(_: int) -> None:
        os.write(2, f"elmojax: {LOST}\n".encode())
        os._exit(AGAIN)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _kept.append(handler)  # C holds no reference
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)


_kept: list[Any] = []


def _keep_output_apart() -> None:
    """What libraries print to standard output (Gloo does) goes to standard error."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def joined() -> bool:
    """Whether this process is one of several."""
    return global_state.client is not None and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return not joined() or jax.process_index() == 0


@contextmanager
def together() -> Iterator[None]:
    """What goes wrong inside because another process is gone is said so."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or not joined() or "RESOURCE_EXHAUSTED" in str(cause):
            raise
        why = " ".join(str(cause).split())[:200]
        raise TryAgain(f"{LOST} JAX says: {why}") from error


class Agreement:
    """A question that all processes answer again and again, each time alike."""

    def __init__(self, name: str) -> None:
        self.name, self._round = f"elmojax/{name}", 0

    def highest(self, *values: int) -> tuple[int, ...]:
        """The largest of the values that any process gives, place by place."""
        if not joined():
            return values
        client, me = global_state.client, jax.process_index()
        assert client is not None
        here, self._round = f"{self.name}/{self._round}", self._round + 1
        patience = PATIENCE * 1000
        if me:
            client.key_value_set(f"{here}/{me}", json.dumps(values))
            return tuple(json.loads(client.blocking_key_value_get(here, patience)))
        answers = [values]
        for other in range(1, jax.process_count()):
            answer = client.blocking_key_value_get(f"{here}/{other}", patience)
            answers.append(json.loads(answer))
        best = tuple(max(column) for column in zip(*answers, strict=True))
        client.key_value_set(here, json.dumps(best))
        if self._round > 1:  # who answered this round has read the one before
            client.key_value_delete(f"{self.name}/{self._round - 2}/")
            client.key_value_delete(f"{self.name}/{self._round - 2}")
        return best


def in_turn(work: Callable[[], T]) -> T:
    """`work` by the first process alone, then by the others, who find it done."""
    if not joined():
        return work()
    if is_first():
        result = work()
        wait_for_all()
        return result
    wait_for_all()
    return work()


def wait_for_all() -> None:
    """Nobody goes on before all have come here."""
    _begun.highest()


_begun = Agreement("begin")


def leave() -> None:
    """The end of a run, after which no process counts as lost."""
    if joined():
        sys.stdout.flush()
        jax.distributed.shutdown()


@contextmanager
def failing_together() -> Iterator[None]:
    """What ends one of several processes ends them all, with its sentence and status.

    The process ends here and now: nothing that waits for the others would come back.
    """
    try:
        yield
    except BaseException as error:
        if not joined():
            raise
        status, why = _judge(error)
        os.write(2, f"elmojax: {why}\n".encode())
        client = global_state.client
        assert client is not None
        with contextlib.suppress(Exception):  # another one may have been first
            client.key_value_set(FAILURE, json.dumps([status, why]))
            time.sleep(2)  # process 0 hosts what the others read
        os._exit(status)


def _judge(error: BaseException) -> tuple[int, str]:
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
    client = global_state.client
    assert client is not None
    while True:
        try:
            answer = client.blocking_key_value_get(FAILURE, PATIENCE * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return  # the run is over
        status, why = json.loads(answer)
        os.write(2, f"elmojax: {why}\n".encode())
        os._exit(status)
