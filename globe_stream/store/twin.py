"""A second run that begins where another one stands, without a second copy of its arrays."""

import shutil
from pathlib import Path

from globe_stream.io import files
from globe_stream.io.links import link_tree
from globe_stream.io.system_errors import explained
from globe_stream.store.ledger import HEAD, LEDGER
from globe_stream.store.run import STORE

_TEXTS = (LEDGER, HEAD, "metrics.jsonl", "config.toml")


def make_twin(source: Path, target: Path) -> None:
    """Make `target` a run that stands where the run `source`, now at rest, stands.

    Arrays are shared on disk where the file system can: a run replaces arrays and never writes into
    them. `target` appears whole or not at all.
    """
    partial = target.with_name(target.name + files.PARTIAL)
    files.remove(partial)
    link_tree(source / STORE, partial / STORE)
    with explained(partial, "copying the run"):
        for name in _TEXTS:
            if (source / name).exists():
                shutil.copyfile(source / name, partial / name)
        files.sync_tree(partial)
        partial.rename(target)
        files.sync_parents(target, target.parent)
