"""Errors that carry the exit code the command line ends with, and options named inside messages.

A message names an option by its field, marked: `f"{option('rank')} 9: too large"`. Whoever prints
it spells the field: as a flag on a command line, as a key in a recipe. The marks are two
noncharacters, which Unicode sets aside for use inside a program and no input text contains.
"""

from collections.abc import Callable

Spelling = Callable[[str], str]
"""How the field of an option is written for the reader: by its own name, as a flag, as a key."""

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def option(field: str) -> str:
    """The option whose field is `field`, marked for `spelled`; for use inside messages."""
    return f"{_OPEN}{field}{_CLOSE}"


def spelled(message: str, spelling: Spelling = str) -> str:
    """`message` with every marked option written as `spelling` says; unmarked text stays."""
    first, *rest = message.split(_OPEN)
    parts = [first]
    for piece in rest:
        field, _, after = piece.partition(_CLOSE)
        parts += [spelling(field), after]
    return "".join(parts)


class GlobeError(Exception):
    """Something failed that no change of the user's input would have prevented (exit code 1).

    `message` has its options marked; as a string, the error names them by their fields.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return spelled(self.message)


class InputError(GlobeError):
    """The user's input cannot be used; nothing was changed (exit code 2).

    The message is one line: what, where, why, and what to do.
    """

    exit_code = 2

    def at(self, where: str) -> "InputError":
        """The same error, with the place it was found at in front."""
        return InputError(f"{where}: {self.message}")


class Mismatch(InputError):
    """A run was begun with other settings than those now given: the `fact`, and what to do."""

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}. {advice}")
        self.fact = fact


class Interrupted(GlobeError):
    """A run was stopped by a signal and can be resumed by the same command (exit code 130)."""

    exit_code = 130
