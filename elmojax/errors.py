"""The one exception of elmojax for what a user gave us and what can be done."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do about it.

    The command line prints the message as one sentence and exits with status 2.
    Anything that is not an `InputError` is a bug of elmojax and keeps its traceback.
    """
