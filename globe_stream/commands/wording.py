"""Names of options where a command is given: flags, or the keys of a recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from globe_stream.errors import GlobeError, InputError, Mismatch, Spelling, spelled


def flag(field: str) -> str:
    """The command line's spelling of an option: dashes before and within."""
    return "--" + field.replace("_", "-")


def key(field: str) -> str:
    """A recipe's spelling of an option: its field; recipes start over in another folder."""
    return "a new run folder" if field == "fresh" else field


_SPELLING: ContextVar[Spelling] = ContextVar("spelling", default=flag)


def worded(message: str) -> str:
    """`message` for the user, its options spelled as the user wrote them."""
    return spelled(message, _SPELLING.get())


@contextmanager
def in_words_of_recipes(run: str) -> Iterator[None]:
    """Inside the block options are spelled as keys of the recipe, whose run is the folder `run`.

    Advice on settings that differ from the run's speaks of the recipe.
    """
    token = _SPELLING.set(key)
    try:
        yield
    except Mismatch as error:
        raise InputError(
            f"{spelled(error.fact, key)}. Change the recipe back, name another run in it, "
            f"or delete {run} to start over"
        ) from error
    except GlobeError as error:
        error.message = worded(error.message)
        raise
    finally:
        _SPELLING.reset(token)
