"""Signals at random moments of seed, train and export, and whether what follows is the same.

A trial carries out one command in a process of its own, sends it a signal at a random event (a
batch, a rename, a ledger row; so inside commits too) or after a random time, gives the command
again until it ends, and compares every byte of the results with an undisturbed run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import support
from trials import Outcome

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STAGES = ("seed", "train", "export factors", "export dense", "export model")
ENDINGS = (0, 130, *(-number for number in SIGNALS))
"""Exit codes that a command may have when a signal reached it, or came too late."""


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint that every kind of export takes: up, gate and down matrices in three shards."""
    tensors = support.expert_matrices(
        support.LAYERS, support.EXPERTS, support.HEIGHT, support.WIDTH
    )
    down = {
        name.replace("up_proj", "down_proj"): values.T.contiguous()
        for name, values in tensors.items()
        if "up_proj" in name
    }
    return support.write_checkpoint(folder, {**tensors, **down}, shards=3)


@dataclass(frozen=True)
class Trial:
    """One signal: its stage and number, and the event or the share of the time it comes at."""

    stage: str
    number: signal.Signals
    event: int | None
    share: float
    again: int
    """Further signals, at the same event, while the command is continued."""

    def __str__(self) -> str:
        moment = f"event {self.event}" if self.event else f"{self.share:.0%} of the time"
        return f"{self.number.name} in {self.stage} at {moment}, {1 + self.again} times at most"


class Reference:
    """Undisturbed runs and exports in `folder`, with the events and seconds of every stage."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.events: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.results: dict[str, dict[str, str]] = {}
        for stage in STAGES:
            place = self.begin(stage, folder / "reference")
            start = time.monotonic()
            log = folder / "reference.log"
            self.events[stage] = support.events_of(self.arguments(stage, place), log)
            self.seconds[stage] = time.monotonic() - start
            self.results[stage] = self.measure(stage, place)
            shutil.move(place, folder / stage.replace(" ", "-"))

    def begin(self, stage: str, place: Path) -> Path:
        """Make `place` what the command of `stage` starts from."""
        shutil.rmtree(place, ignore_errors=True)
        if stage == "train":
            shutil.copytree(self.folder / "seed", place)
        return place

    def arguments(self, stage: str, place: Path) -> list[str]:
        """The command line of `stage` that works in `place`."""
        if stage == "seed":
            options = ["--run", str(place), "--families", "up", "--checkpoint-every", "0"]
            return ["seed", str(self.checkpoint), *options]
        if stage == "train":
            options = ["--epochs", "4", "--warmup-epochs", "2", "--checkpoint-every", "0"]
            return ["train", str(place), *options]
        kind = stage.removeprefix("export ")
        return ["export", str(self.folder / "train"), "--out", str(place), "--format", kind]

    def measure(self, stage: str, place: Path) -> dict[str, str]:
        """Hashes of what `stage` made in `place`."""
        if stage in ("seed", "train"):
            return support.results(place)
        return support.tree(place)


def plan(reference: Reference, count: int, seed: int) -> list[Trial]:
    """`count` trials that go through all stages and signals in turn, at random moments."""
    chance = random.Random(seed)
    trials = []
    for k in range(count):
        stage = STAGES[k % len(STAGES)]
        number = SIGNALS[k // len(STAGES) % len(SIGNALS)]
        event = chance.randint(1, reference.events[stage]) if chance.random() < 0.6 else None
        trials.append(Trial(stage, number, event, chance.random(), chance.randint(0, 2)))
    return trials


def carry_out(reference: Reference, trials: Sequence[Trial], scratch: Path) -> Iterator[Outcome]:
    """Every trial in turn; yields the outcome of all so far, which grows."""
    outcome = Outcome()
    for k, trial in enumerate(trials):
        place, log = scratch / f"trial-{k}", scratch / f"trial-{k}.log"
        reference.begin(trial.stage, place)
        arguments = reference.arguments(trial.stage, place)
        code: int | None = None
        for _ in range(1 + trial.again):
            code = _disturbed(trial, arguments, log, reference.seconds[trial.stage])
            if code not in ENDINGS:
                outcome.wrong.append(f"{trial}: exit code {code}: {_tail(log)}")
            if code == 0:
                break
            outcome.faults[trial.number.name] += 1
            outcome.stages[trial.stage] += 1
        if code != 0 and support.outcome(support.command, arguments, log) != 0:
            outcome.wrong.append(f"{trial}: does not continue: {_tail(log)}")
        elif reference.measure(trial.stage, place) != reference.results[trial.stage]:
            outcome.wrong.append(f"{trial}: other results")
        elif list(place.glob("*.partial")):
            outcome.wrong.append(f"{trial}: leftovers")
        outcome.trials += 1
        shutil.rmtree(place, ignore_errors=True)
        log.unlink(missing_ok=True)
        yield outcome


def _disturbed(trial: Trial, arguments: list[str], log: Path, seconds: float) -> int:
    """The exit code of the command, signalled at the event or the time of `trial`."""
    if trial.event is not None:
        return support.outcome(support.command, arguments, log, trial.event, trial.number)
    before = _begun(log)
    process = support.start(support.command, arguments, log)
    while _begun(log) == before and process.is_alive():
        time.sleep(0.01)
    time.sleep(trial.share * seconds)
    if process.is_alive():
        _send(process.pid, trial.number)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{trial}: did not end within two minutes: {_tail(log)}")
    code: int = process.exitcode
    return code


def _begun(log: Path) -> int:
    return log.read_text(errors="replace").count(support.BEGUN) if log.exists() else 0


def _send(process: int, number: signal.Signals) -> None:
    """Send `number` to a process that this program began, unless it is gone."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace")[-400:].split()) if log.exists() else ""


@contextmanager
def competing_load(processes: int) -> Iterator[None]:
    """Keep as many processes busy with products of matrices meanwhile."""
    program = "import torch\na = torch.randn(600, 600)\nwhile True: a @ a"
    busy = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()
