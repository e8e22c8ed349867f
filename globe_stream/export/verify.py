"""Every byte of an export against its manifest.

Memory: one piece of a file at a time.
"""

from pathlib import Path

from globe_stream.engine.progress import ProgressCall
from globe_stream.errors import GlobeError
from globe_stream.export.content import TensorList, index_problems, tensors_in
from globe_stream.export.manifest import (
    MANIFEST,
    ExportManifest,
    read_manifest,
)
from globe_stream.export.staging import WORK
from globe_stream.io.file_digest import FileDigest
from globe_stream.io.files import sha256_of
from globe_stream.store.verify import Verification

_AGAIN = "Export again to another folder"


def is_export(path: Path) -> bool:
    """Whether `path` holds an export, finished or not."""
    return (path / MANIFEST).exists() or (path / WORK).exists()


def verify_export(path: Path, *, progress: ProgressCall | None = None) -> Verification:
    """Every file of the export at `path` against its recorded size and sha256, its tensors against
    its index and their recorded list."""
    if not (path / MANIFEST).exists():
        problem = f"{path}: the export is unfinished. Give the same export command again"
        return Verification.of(path, "export", [problem])
    manifest = read_manifest(path)
    problems: list[str] = []
    size = 0
    listed = sorted(manifest.files.items())
    for number, (name, record) in enumerate(listed, start=1):
        found = _file_problem(path / name, record)
        if found:
            problems.append(found)
        else:
            size += record.bytes
        if progress:
            progress(number, len(listed), name)
    problems += _tensor_problems(path, manifest, bool(problems))
    if (path / WORK).exists():
        problems.append(
            f"{path}: the export was not published in full. Give the same export command again"
        )
    return Verification.of(path, manifest.kind, problems, files=len(listed), size=size)


def _tensor_problems(path: Path, manifest: ExportManifest, damaged: bool) -> list[str]:
    """What is wrong with the tensors by name, going by the headers and the index.

    Of files known to be `damaged` an unreadable header is nothing new.
    """
    files = {name: path / name for name in manifest.files if (path / name).is_file()}
    try:
        held = tensors_in(files)
        problems = index_problems(files, held)
    except GlobeError as error:
        return [] if damaged else [error.message]
    if manifest.tensors not in (None, TensorList.of(held)):
        problems.append(
            f"{path}: holds {len(held):,} tensors, not the {manifest.tensors.count:,} that were "
            f"written. {_AGAIN}"
        )
    return problems


def _file_problem(file: Path, record: FileDigest) -> str | None:
    if not file.is_file():
        return f"{file}: is missing. {_AGAIN}"
    if file.stat().st_size != record.bytes:
        return f"{file}: {file.stat().st_size:,} bytes, {record.bytes:,} were written. {_AGAIN}"
    if sha256_of(file) != record.sha256:
        return f"{file}: its content changed (sha256). {_AGAIN}"
    return None
