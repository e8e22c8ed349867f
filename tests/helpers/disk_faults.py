"""Disks that fail below the store, and files that change at rest, while a small model is worked on.

A trial carries out one command in this process on a disk that fails once, or on a run whose files
were changed before. What must follow: one line that says what is wrong, and exit code 1 or 2; then,
once the disk is well (the file restored), the same command ends with the bytes of an undisturbed
run. A command that takes no notice must have the right bytes at once.
"""

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kills
import support
from trials import Outcome

from globe_stream.cli.main import run as run_command_line
from globe_stream.store.run import SPILL

WRITES, READS, NAMES, FLUSHES, OPENS = "writes", "reads", "names", "flushes", "opens"
SPILLED = "reads of spill files"

INJECTED = {
    "no room to write": (WRITES, errno.ENOSPC),
    "input/output error while writing": (WRITES, errno.EIO),
    "short write": (WRITES, 0),
    "input/output error while reading": (READS, errno.EIO),
    "short read": (READS, 0),
    "flipped bit in a spill file": (SPILLED, 0),
    "input/output error while flushing": (FLUSHES, errno.EIO),
    "no room to rename": (NAMES, errno.ENOSPC),
    "crash before a rename": (NAMES, -1),
    "crash after a rename": (NAMES, -2),
    "no room to open": (OPENS, errno.ENOSPC),
}
"""Faults of the disk: the operation that fails, and its error number or what happens instead."""

AT_REST = ("flipped bit", "cut off", "deleted file", "deleted group", "zeros")
"""What can befall the files of a run between two commands."""


class Crash(BaseException):
    """The process is gone."""


class Disk:
    """Operations on files below `root`, of which the `number`-th of a kind fails."""

    def __init__(self, root: Path, kind: str, error: int, number: int) -> None:
        self.root, self.kind, self.error, self.number = str(root), kind, error, number
        self.counts: Counter[str] = Counter()
        self.failed = self.dead = False
        self.watched: set[int] = set()
        self.spilled: set[int] = set()
        self._mutex = threading.RLock()

    def watch(self, path: Any, descriptor: int) -> None:
        """Remember whether `descriptor` is of a file below the folder, and of a spill file."""
        held = self.holds(path)
        (self.watched.add if held else self.watched.discard)(descriptor)
        spills = held and SPILL in Path(path).parts
        (self.spilled.add if spills else self.spilled.discard)(descriptor)

    def fails(self, kind: str) -> bool:
        """Count an operation; whether it is the one that fails."""
        with self._mutex:
            if self.dead:
                raise Crash
            self.counts[kind] += 1
            fails = kind == self.kind and self.counts[kind] == self.number
            self.failed |= fails
            return fails

    def die(self) -> None:
        """The process is killed here: no later change happens."""
        self.dead = True
        raise Crash

    def raise_error(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def holds(self, path: Any) -> bool:
        """Whether `path` is below the watched folder."""
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.root)


class _File:
    """An open file whose writes are those of a `Disk`."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> Any:
        if not self._disk.fails(WRITES):
            return self._file.write(data)
        part = data[: len(data) // 2]
        if self._disk.error == 0 and isinstance(self._file, io.FileIO) and len(part):
            return self._file.write(part)
        if self._disk.error == 0:
            return self._file.write(data)
        self._file.write(part)
        return self._disk.raise_error()

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *reason: Any) -> Any:
        return self._file.__exit__(*reason)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _flip(real: Any, descriptor: int, place: int) -> None:
    (byte,) = real["pread"](descriptor, 1, place)
    real["pwrite"](descriptor, bytes([byte ^ 1]), place)


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    """Inside the block, what this process does to files goes through `disk`."""
    real = {name: getattr(os, name) for name in _OPERATIONS}
    opened = io.open

    def open_file(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        writes = disk.holds(path) and set(mode) & set("wax+")
        if writes and disk.fails(OPENS):
            disk.raise_error()
        file = opened(path, mode, *arguments, **named)
        return _File(file, disk) if writes else file

    def open_descriptor(path: Any, *arguments: Any, **named: Any) -> int:
        if disk.holds(path) and arguments[0] & (os.O_WRONLY | os.O_RDWR) and disk.fails(OPENS):
            disk.raise_error()
        descriptor: int = real["open"](path, *arguments, **named)
        disk.watch(path, descriptor)
        return descriptor

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if descriptor not in disk.watched or not disk.fails(WRITES):
            return int(real["pwrite"](descriptor, data, offset))
        done = int(real["pwrite"](descriptor, data[: max(1, len(data) // 2)], offset))
        if disk.error:
            disk.raise_error()
        return done

    def preadv(descriptor: int, buffers: Any, offset: int) -> int:
        if descriptor in disk.spilled and disk.fails(SPILLED):
            _flip(real, descriptor, offset + len(buffers[0]) // 2)
        if not disk.fails(READS):
            return int(real["preadv"](descriptor, buffers, offset))
        if disk.error:
            disk.raise_error()
        part = [buffers[0][: max(1, len(buffers[0]) // 2)]]
        return int(real["preadv"](descriptor, part, offset))

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        if disk.fails(READS) and disk.error:
            disk.raise_error()
        return bytes(real["pread"](descriptor, size, offset))

    def fsync(_descriptor: int) -> None:
        if disk.fails(FLUSHES):
            disk.raise_error()

    def naming(name: str) -> Callable[..., Any]:
        def change(path: Any, *arguments: Any, **named: Any) -> Any:
            if not disk.holds(path) or not disk.fails(NAMES):
                return real[name](path, *arguments, **named)
            if disk.error == -1:
                disk.die()
            if disk.error == -2:
                real[name](path, *arguments, **named)
                disk.die()
            return disk.raise_error()

        return change

    own = {"open": open_descriptor, "pwrite": pwrite, "preadv": preadv, "pread": pread}
    own |= {"fsync": fsync, **{name: naming(name) for name in ("rename", "replace")}}
    try:
        for name, function in own.items():
            setattr(os, name, function)
        io.open = builtins.open = open_file  # type: ignore[assignment]
        yield disk
    finally:
        io.open = builtins.open = opened
        for name, function in real.items():
            setattr(os, name, function)


_OPERATIONS = ("open", "pwrite", "preadv", "pread", "fsync", "rename", "replace")


# -- commands --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or None after a crash, and its lines on stderr."""

    code: int | None
    lines: tuple[str, ...]


def carry_out(arguments: Sequence[str]) -> Ended:
    """The command line in this process, with what it prints."""
    printed = io.StringIO()
    with redirect_stderr(printed), redirect_stdout(io.StringIO()):
        try:
            code: int | None = run_command_line(list(arguments))
        except Crash:
            code = None
    return Ended(code, tuple(printed.getvalue().splitlines()))


def problem_of(ended: Ended, *, crashed: bool = False) -> str:
    """What is wrong with how a disturbed command ended; empty if nothing is."""
    if crashed and ended.code is None:
        return ""
    if ended.code not in (1, 2):
        return f"exit code {ended.code}"
    told = [line for line in ended.lines if line.startswith("globe-stream: ")]
    if len(told) != 1 or ended.lines[-1] != told[0] or any("Traceback" in x for x in ended.lines):
        return f"exit code {ended.code} with the lines {ended.lines[-3:]}"
    return ""


class Workshop:
    """A small model, and an undisturbed run and exports of it, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = kills.write_checkpoint(folder / "model")
        self.results: dict[str, dict[str, str]] = {}
        self.counts: dict[str, Counter[str]] = {}
        for stage in kills.STAGES:
            place = self.begin(stage, folder / "reference")
            with failing(Disk(place, "", 0, 0)) as disk:
                ended = carry_out(self.arguments(stage, place))
            assert ended.code == 0, ended
            self.counts[stage] = disk.counts
            self.results[stage] = self.measure(stage, place)
            shutil.move(place, folder / stage.replace(" ", "-"))

    def begin(self, stage: str, place: Path) -> Path:
        """Make `place` what the command of `stage` starts from."""
        shutil.rmtree(place, ignore_errors=True)
        if stage == "train":
            shutil.copytree(self.folder / "seed", place)
        return place

    def arguments(self, stage: str, place: Path, run: Path | None = None) -> list[str]:
        """The command line of `stage` that works in `place`; exports are of `run`."""
        if stage == "seed":
            options = ["--families", "up", "--dictionary-rounds", "4"]
            return ["seed", str(self.checkpoint), "--run", str(place), *options]
        if stage == "train":
            return ["train", str(place), "--epochs", "2", "--warmup-epochs", "1"]
        source = str(run or self.folder / "train")
        return ["export", source, "--out", str(place), "--format", stage.removeprefix("export ")]

    def measure(self, stage: str, place: Path) -> dict[str, str]:
        """Hashes of what `stage` made in `place`, but for the command that made it."""
        if stage in ("seed", "train"):
            return support.results(place)
        names = {"README.md", "globe_export.json"}  # they name the command
        return {name: value for name, value in support.tree(place).items() if name not in names}


# -- trials ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiskTrial:
    """One fault of the disk: while which stage, what, and at which operation of its kind."""

    stage: str
    fault: str
    number: int

    def __str__(self) -> str:
        return f"{self.fault} at operation {self.number} of {self.stage}"


@dataclass(frozen=True)
class RestTrial:
    """One change of a file of a run that was seeded or trained, before the next command."""

    after: str
    damage: str
    seed: int

    def __str__(self) -> str:
        return f"{self.damage} (seed {self.seed}) after {self.after}"


def plan(workshop: Workshop, count: int, seed: int) -> list[DiskTrial | RestTrial]:
    """`count` trials that go through all faults and stages in turn, at random places."""
    chance = random.Random(seed)
    trials: list[DiskTrial | RestTrial] = []
    stages = [
        (stage, fault, workshop.counts[stage][kind])
        for fault, (kind, _) in INJECTED.items()
        for stage in kills.STAGES
        if workshop.counts[stage][kind]
    ]
    rest = [(after, damage) for damage in AT_REST for after in ("seed", "train")]
    for k in range(count):
        if k % 2:
            after, damage = rest[k // 2 % len(rest)]
            trials.append(RestTrial(after, damage, chance.randrange(1 << 30)))
        else:
            stage, fault, most = stages[k // 2 % len(stages)]
            trials.append(DiskTrial(stage, fault, chance.randint(1, most)))
    return trials


def attempt(workshop: Workshop, trial: DiskTrial | RestTrial, outcome: Outcome) -> None:
    """Carry out `trial` and add it to `outcome`."""
    place = workshop.folder / "trial"
    try:
        if isinstance(trial, DiskTrial):
            ending, wrong = _on_a_failing_disk(workshop, trial, place)
            fault, stage = trial.fault, trial.stage
        else:
            ending, wrong = _on_a_changed_run(workshop, trial, place)
            fault, stage = trial.damage, trial.after
    except BaseException as error:
        error.add_note(f"in the trial: {trial}")
        raise
    outcome.faults[fault] += 1
    outcome.stages[stage] += 1
    outcome.trials += 1
    outcome.endings[ending] += 1
    outcome.wrong += [f"{trial}: {line}" for line in wrong]
    shutil.rmtree(place, ignore_errors=True)


def _on_a_failing_disk(workshop: Workshop, trial: DiskTrial, place: Path) -> tuple[str, list[str]]:
    kind, error = INJECTED[trial.fault]
    arguments = workshop.arguments(trial.stage, workshop.begin(trial.stage, place))
    with failing(Disk(place, kind, error, trial.number)) as disk:
        ended = carry_out(arguments)
    ending = "did not happen" if not disk.failed else "no harm done"
    wrong = []
    if ended.code != 0:
        ending = "crashed, then continued" if ended.code is None else "told, then continued"
        problem = problem_of(ended, crashed=error < 0)
        wrong += [problem] if problem else []
        again = carry_out(arguments)
        if again.code != 0:
            return ending, [*wrong, f"does not continue: {again.lines[-3:]}"]
    wrong += _differences(workshop, trial.stage, place)
    if list(place.rglob("*.partial")):
        wrong.append("leftovers")
    return ending, wrong


def _on_a_changed_run(workshop: Workshop, trial: RestTrial, place: Path) -> tuple[str, list[str]]:
    shutil.copytree(workshop.folder / trial.after, place)
    change = _damage(place, trial)
    if trial.after == "seed":
        stage, arguments = "train", workshop.arguments("train", place)
        target = place
    else:
        stage, target = "export factors", workshop.folder / "trial-export"
        shutil.rmtree(target, ignore_errors=True)
        arguments = workshop.arguments(stage, target, place)
    checked = carry_out(["verify", str(place)])
    ended = carry_out(arguments)
    wrong = []
    ending = "no harm done"
    if ended.code != 0:
        ending = "told, then restored"
        problem = problem_of(ended)
        wrong += [f"{change.what}: {problem}"] if problem else []
        if checked.code == 0:
            wrong.append(f"{change.what}: verify takes no notice")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target if target != place else place)
        change.restore(workshop.folder / trial.after, place)
        again = carry_out(arguments)
        if again.code != 0:
            return ending, [*wrong, f"{change.what}: does not continue: {again.lines[-1:]}"]
    wrong += [f"{change.what}: {line}" for line in _differences(workshop, stage, target)]
    return ending, wrong


def _differences(workshop: Workshop, stage: str, place: Path) -> list[str]:
    """One line that names what in `place` differs from the undisturbed results; none if nothing."""
    found, expected = workshop.measure(stage, place), workshop.results[stage]
    names = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    return [f"other results: {', '.join(names[:5])}"] if names else []


@dataclass(frozen=True)
class _Change:
    what: str

    def restore(self, source: Path, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)


def _damage(place: Path, trial: RestTrial) -> _Change:
    """Change a file that decides something: of an array, or of the ledger."""
    chance = random.Random(trial.seed)
    groups = {folder / "zarr.json" for folder in (place / "run.zarr").rglob("*")}
    groups = {file for file in groups if not (file.parent / "c").exists()}
    found = [file for file in (place / "run.zarr" / "up").rglob("*") if file.is_file()]
    files = sorted(set(found) - groups)
    record = [place / "ledger.jsonl", place / "ledger.head"]
    if trial.damage == "deleted group":
        folder = chance.choice(sorted({file.parent for file in found}))
        shutil.rmtree(folder)
        return _Change(f"deleted {folder.relative_to(place)}")
    file = chance.choice(record if chance.random() < 0.25 else files)
    content = bytearray(file.read_bytes())
    if trial.damage == "flipped bit":
        bit = chance.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    elif trial.damage == "cut off":
        del content[chance.randrange(len(content)) :]
    elif trial.damage == "zeros":
        start = chance.randrange(len(content))
        content[start:] = bytes(len(content) - start)
    if trial.damage == "deleted file":
        file.unlink()
    else:
        file.write_bytes(content)
    return _Change(f"{trial.damage} of {file.relative_to(place)}")
