"""`status`: where a run stands; `seed` and `train` end with the same document."""

from pathlib import Path

from globe_stream.engine.status import StatusDocument, run_status
from globe_stream.store.run import Run


def status(path: Path) -> StatusDocument:
    """Where the run at `path` stands; changes nothing."""
    return run_status(Run(path, writable=False))
