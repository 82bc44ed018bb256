"""Errors that are the user's to mend: one line each, printed without a traceback."""


class SpeqcError(Exception):
    """A mistake in the input: the message says in one line what, where, and what to do."""


class CheckFailed(Exception):
    """A check the user asked for did not hold: the message names the first difference."""
