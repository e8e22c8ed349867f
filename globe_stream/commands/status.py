"""`status`: where a run stands; `seed` and `train` end with the same document."""

from pathlib import Path

from globe_stream.engine.status import run_status
from globe_stream.io.records import Json
from globe_stream.store.run import Run


def status(path: Path) -> Json:
    """Where the run at `path` stands; changes nothing."""
    return status_document(Run(path, writable=False))


def status_document(run: Run) -> Json:
    """Where `run` stands, as one JSON document."""
    return run_status(run).to_json()
