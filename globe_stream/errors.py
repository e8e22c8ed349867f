"""Errors that carry the exit code the command line ends with."""


class GlobeError(Exception):
    """Something failed that no change of the user's input would have prevented (exit code 1)."""

    exit_code = 1


class InputError(GlobeError):
    """The user's input cannot be used; nothing was changed (exit code 2).

    The message is one line: what, where, why, and what to do.
    """

    exit_code = 2


class Mismatch(InputError):
    """A run was begun with other settings than those now given: the `fact`, and what to do."""

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}. {advice}")
        self.fact = fact


class Interrupted(GlobeError):
    """A run was stopped by a signal and can be resumed by the same command (exit code 130)."""

    exit_code = 130
