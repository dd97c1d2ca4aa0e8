"""The exceptions of elmojax for what people can do something about."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it.

    The command line prints the message as one sentence and exits with status 2.
    Anything that is not an `InputError` is a bug of elmojax and keeps its traceback.
    """


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
