"""Errors that carry the exit code the command line ends with."""


class GlobeError(Exception):
    """Something failed that no change of the user's input would have prevented (exit code 1)."""

    exit_code = 1


class InputError(GlobeError):
    """The user's input cannot be used; nothing was changed (exit code 2).

    The message is one line: what, where, why, and what to do.
    """

    exit_code = 2


class Interrupted(GlobeError):
    """A run was stopped by a signal and can be resumed by the same command (exit code 130)."""

    exit_code = 130
