"""`verify`: a run or an export, read in full."""

from pathlib import Path

from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import InputError, option
from globe_stream.export.verify import is_export, verify_export
from globe_stream.factorization.records import GroupRecord, group_state, run_header
from globe_stream.store.run import Run
from globe_stream.store.verify import Verification, verify_arrays


def verify(path: Path, *, progress: ProgressCall | None = None) -> Verification:
    """Read a run directory or an export in full; checksums, sizes and completeness.

    Raises InputError when `path` is neither.
    """
    if (path / "ledger.jsonl").exists():
        run = Run(path, writable=False)
        seeded = [g for g in run_header(run).groups if group_state(run, g.key) is not None]
        shapes = {name: shape for group in seeded for name, shape in _shapes(group).items()}
        return verify_arrays(run, shapes, progress)
    if is_export(path):
        return verify_export(path, progress=progress)
    reason = "neither a run directory nor an export" if path.exists() else "does not exist"
    raise InputError(
        f"{path}: {reason}. Give the {option('run')} of a seed or the {option('out')} of an export"
    )


def _shapes(group: GroupRecord) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that every seeded group has, as far as its sizes decide them."""
    shapes = {
        "bank": (group.bases, group.rank, group.d),
        "codes/count": (group.experts,),
        "experts": (group.experts, 3),
        "digests": (group.experts, 16),
        "norms": (group.experts,),
        "errors": (group.experts,),
    }
    return {f"{group.key}/{name}": shape for name, shape in shapes.items()}
