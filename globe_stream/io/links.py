"""The same bytes under two names: hard links where the file system has them, copies elsewhere."""

import os
import shutil
from pathlib import Path

from globe_stream.io.system_errors import explained


def link_file(source: Path, target: Path) -> None:
    """Make `target` the file `source`, which nobody may change in place from now on."""
    with explained(target, "copying"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`, each as by `link_file`."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            link_file(path, target / path.relative_to(source))
