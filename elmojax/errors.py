"""The exceptions of elmojax for what people can do something about."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

_END = r"(?=['\"`<>(){}\[\],;:.]*(?:\s|$))"
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-z][\w+.-]*:/+)"
    # USER@, and passwords with a /, ? or # that should have been percent-encoded.
    r"(?:[^/?#\s]*@|[^/\s:\[]*:(?!\d*(?:[/?#\s]|$))\S*@)?"
    r"(?P<path>[^?#\s]*)"
    rf"(?:\?\S*?(?=#sha256=|{_END}))?"
    r"(?P<sha256>#sha256=[0-9a-f]{64})?"
    rf"(?:[?#]\S*?{_END})?",
    re.IGNORECASE,
)


def showable(text: str) -> str:
    """A text whose addresses are without what may be a password, token or key.

    Of each address (`https://USER:WORD@HOST/PATH?QUERY#FRAGMENT`) scheme, host and path
    stay, and `#sha256=...`. Whatever is printed, raised or stored goes through this.
    """
    return _ADDRESS.sub(lambda m: m["scheme"] + m["path"] + (m["sha256"] or ""), text)


def one_line(error: object, most: int = 200) -> str:
    """What an error says, on one line, or its beginning."""
    return " ".join(str(error).split())[:most]


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it.

    Addresses in it are `showable`. The command line prints the message as one sentence
    and exits with status 2. Anything that is not an `InputError` is a bug of elmojax
    and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(showable(message))


@contextmanager
def writing(what: object, advice: str) -> Iterator[None]:
    """What a file system refuses in the block is an `InputError`: that `what` cannot be
    written, why, and the advice."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{what} cannot be written: {why}. {advice}") from error


@contextmanager
def reading(path: object) -> Iterator[None]:
    """What a file system refuses in the block is an `InputError` with the path."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be read: {why}.") from error


class Remark(UserWarning):
    """Something that people should know, in a sentence; the work goes on.

    The command line prints it on standard error.
    """


AGAIN = 75
"""Exit status of `TryAgain`: EX_TEMPFAIL of sysexits.h."""


class TryAgain(Exception):
    """Nothing is wrong with the input: the same command, given again, goes on.

    The command line prints the message as one sentence and exits with status 75.
    """
