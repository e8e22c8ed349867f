"""Places to write that the user chose: what is wrong with them is said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from globe_stream.errors import InputError, option


@contextmanager
def unwritable_is_input_error(path: Path, field: str) -> Iterator[None]:
    """Turn an OSError inside the block into an InputError about `path`, the option `field`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: cannot be written: {reason}. Choose another {option(field)}"
        ) from error


def make_folder(path: Path, field: str) -> list[Path]:
    """Make the folder `path` and its parents; returns those made, the deepest first.

    Raises InputError when one cannot be made or written in; nothing made is then left.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    made: list[Path] = []
    with unwritable_is_input_error(path, field):
        try:
            for one in reversed(missing):
                one.mkdir()
                made.insert(0, one)
            probe = path / ".globe-probe"
            probe.touch()
            probe.unlink()
        except OSError:
            remove_empty(made)
            raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove those of `folders`, the deepest first, that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
