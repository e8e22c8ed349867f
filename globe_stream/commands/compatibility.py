"""Whether the run in a folder is the one that is asked for, and what to say when it is not."""

from collections.abc import Sequence
from pathlib import Path

from globe_stream.checkpoint.fingerprint import CheckpointFingerprint
from globe_stream.config import differences
from globe_stream.errors import InputError, Mismatch, option
from globe_stream.factorization.records import RunHeader, run_header
from globe_stream.io.records import JsonObject
from globe_stream.io.world import World
from globe_stream.store.ledger import LEDGER_FILES
from globe_stream.store.lock import LOCK_FILES
from globe_stream.store.run import Run

_BEGUN = (*LOCK_FILES, *LEDGER_FILES)
"""Files of a run whose making was cut off before its first record."""


def matching_run(path: Path, header: RunHeader, fresh: bool, world: World) -> Run | None:
    """The run at `path` to continue, of the same model and configuration; None to begin one."""
    if not world.of_first(Run.exists(path)):
        if world.leads:
            _require_no_other_files(path, fresh)
        return None
    if fresh:
        return None
    run = Run(path, writable=True, world=world)
    try:
        recorded = run_header(run)
    except InputError:
        run.close()
        raise
    changed = _changes(recorded, header)
    if changed:
        run.close()
        old, new = recorded.config, header.config
        raise mismatch(
            f"{path}: holds a run of another model or configuration",
            changed,
            [foreign_options(old.selection, new.selection), foreign_options(old.seed, new.seed)],
            f"Choose another {option('run')}, or start over with {option('fresh')}",
        )
    return run


def mismatch(
    fact: str, changed: Sequence[str], foreign: Sequence[Sequence[str]], advice: str
) -> Mismatch:
    """The error for settings that `changed`; `foreign` options only one of the versions has."""
    names = [name for group in foreign for name in group]
    if not names:
        return Mismatch(f"{fact}: {'; '.join(changed)}", advice)
    return Mismatch(
        f"{fact}: it was begun by another version of globe-stream, "
        f"which differs in {', '.join(names)}",
        advice,
    )


def foreign_options(old: JsonObject, new: JsonObject) -> list[str]:
    """Options that only one of two versions has."""
    return sorted(set(old) ^ set(new))


def source_changes(old: CheckpointFingerprint, new: CheckpointFingerprint) -> list[str]:
    """What differs between two fingerprints of a checkpoint, spelled out."""
    phrases = differences({"revision": old.revision}, {"revision": new.revision})
    before, after = old.files, new.files
    phrases += [f"{name}: no longer there" for name in sorted(set(before) - set(after))]
    phrases += [f"{name}: was not there" for name in sorted(set(after) - set(before))]
    return phrases + [
        f"{name}: size or header changed"
        for name in sorted(set(before) & set(after))
        if before[name] != after[name]
    ]


def _changes(old: RunHeader, new: RunHeader) -> list[str]:
    """What differs between two run headers, spelled out."""
    before, after = old.config, new.config
    phrases = [
        *(f"selection {phrase}" for phrase in differences(before.selection, after.selection)),
        *(f"seed {phrase}" for phrase in differences(before.seed, after.seed)),
        *differences({"device": before.device}, {"device": after.device}),
    ]
    return phrases + source_changes(old.fingerprint, new.fingerprint)


def _require_no_other_files(path: Path, fresh: bool) -> None:
    """Raise InputError when `path`, which is no run, has files that are not to be touched."""
    if not path.is_dir() or all(c.name in _BEGUN for c in path.iterdir()):
        return
    if not Run.lost_its_record(path):
        raise InputError(
            f"{path}: not empty and not a run directory. Choose another {option('run')}"
        )
    if not fresh:
        raise InputError(
            f"{path}/ledger.jsonl: empty, so the run beside it cannot be continued. "
            f"Start over with {option('fresh')}, or choose another {option('run')}"
        )
