"""Error over seconds and over operations: `seed` and `train`, two revisions side by side.

    python benchmarks/time_to_quality.py --epochs 20
    python benchmarks/time_to_quality.py --against 34b9b13 --epochs 3 --warmup-epochs 1
    OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py --against 34b9b13 --layers 2 \
        --experts 72 --epochs 3 --warmup-epochs 1 --seeding "--bases 128 --rank-ratio 0.75" \
        --scale-to 1440
    python benchmarks/time_to_quality.py MODEL --against 34b9b13 --epochs 40 --at 20,40 \
        --seeding "--bases 60 --rank 99 --dictionary-support 60" --training "--target-support none"

Without MODEL a Gaussian checkpoint is written, at the expert sizes of Qwen1.5-MoE-A2.7B and with
N/m as there (see `--experts`). `--against` takes a revision (checked out in a temporary folder) or
a folder with another checkout. Every command is a process of its own; those of the two revisions
take turns. Operations are counted by watching what torch is asked for. Seconds of a stage are the
time from the row of metrics before it to its own, commits included; CPU seconds are those of all
threads, which with OMP_NUM_THREADS=1 hardly depend on what else the machine does. The last lines of
the first table are sums: what was run, and the seed with 5 + 15 epochs at medians of their kind.

`--scale-to N` adds the same for N experts with the bank that was run: passes grow with N (that of
the statistics until 256), the Gram matrix with N squared, and what is done between passes stays.
"""

import json
import os
import shlex
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
from runs import machine_line, markdown, scratch_folder

from globe_stream.memory.operations import MEAN_SAMPLES

HERE = Path(__file__).parent
TREE = HERE.parent
WARM, REGULAR = "warm-up epoch", "regular epoch"
NOT_WORK = ("train/memory", "machine")
"""Rows of metrics that end no work; what was spent before them is counted to the next."""
DEFAULT_RUN = {WARM: 5, REGULAR: 15}

Spent = tuple[float, float, float]
"""Seconds, CPU seconds, operations."""


@dataclass(frozen=True)
class Step:
    """One row of metrics: what ended with it, and what the process had spent before and then."""

    name: str
    epoch: int | None
    error: float | None
    seconds: float
    cpu_seconds: float
    operations: float
    waited: float
    passed: float = 0.0  # seconds of an epoch's pass

    @property
    def spent(self) -> Spent:
        """All three."""
        return (self.seconds, self.cpu_seconds, self.operations)


@dataclass(frozen=True)
class Checkout:
    """A revision's name, its tree, and the folder of its run."""

    name: str
    tree: Path
    run: Path


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.argument("model", required=False)
@click.option("--against", metavar="REV", help="A revision, or a folder with another checkout.")
@click.option("--epochs", default=20, show_default=True)
@click.option("--warmup-epochs", default=5, show_default=True)
@click.option("--at", default="20,40", show_default=True, help="Epochs whose errors are shown.")
@click.option("--layers", default=2, show_default=True, help="Of the written checkpoint.")
@click.option("--experts", default=48, show_default=True, help="A layer.")
@click.option("--hidden", default=2048, show_default=True)
@click.option("--intermediate", default=1408, show_default=True)
@click.option("--seeding", default="--bases 9 --rank-ratio 0.75", show_default=True)
@click.option("--training", default="", help="Further options of train.")
@click.option("--scale-to", type=int, metavar="N", help="Also the run for so many experts.")
@click.option("--memory", default="8GiB", show_default=True)
@click.option("--json", "record", type=click.Path(path_type=Path), help="Also write all figures.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Where runs are kept meanwhile.")
def main(model: str | None, record: Path | None, scratch: Path | None, **given: Any) -> None:
    if model and given["scale_to"]:
        raise click.UsageError("--scale-to is for the checkpoint that is written: leave MODEL out")
    with scratch_folder(scratch) as folder, ExitStack() as held:
        model = model or written(folder / "model", given)
        checkouts = [Checkout("this tree", TREE, folder / "this")]
        if given["against"]:
            tree = held.enter_context(checked_out(given["against"], folder))
            checkouts.insert(0, Checkout(given["against"], tree, folder / "other"))
        found = {one.name: steps for one, steps in _timed(checkouts, model, given).items()}
    growth = Growth(given["layers"] * given["experts"], given["scale_to"])
    click.echo(_stages(found, growth) + "\n")
    click.echo(_errors(found, [int(k) for k in given["at"].split(",")]) + f"\n\n{machine_line()}")
    if record is not None:
        rows = {name: [vars(step) for step in steps] for name, steps in found.items()}
        record.write_text(json.dumps({"given": given, "steps": rows}, indent=1))


def written(model: Path, given: dict[str, Any]) -> str:
    """A Gaussian checkpoint of the sizes that were given, in the new folder `model`."""
    sizes = [
        part
        for name in ("layers", "experts", "hidden", "intermediate")
        for part in (f"--{name}", str(given[name]))
    ]
    _python(TREE, ["-m", "globe_stream", "synth", "--out", str(model), *sizes])
    return str(model)


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    """The tree of `revision`, or the folder of that name."""
    if Path(revision).is_dir():
        yield Path(revision)
        return
    tree = folder / "tree"
    git = ["git", "-C", str(TREE), "worktree"]
    subprocess.run([*git, "add", "--detach", str(tree), revision], check=True, capture_output=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _timed(
    checkouts: list[Checkout], model: str, given: dict[str, Any]
) -> dict[Checkout, list[Step]]:
    """Seed with each of `checkouts`, then train with each."""
    found: dict[Checkout, list[Step]] = {one: [] for one in checkouts}
    for command in ("seed", "train"):
        for one in checkouts:
            found[one] += carried_out(one, command, model, given)
    return found


def carried_out(checkout: Checkout, command: str, model: str, given: dict[str, Any]) -> list[Step]:
    """The steps of `seed` or `train`, from its rows of metrics and its samples of operations."""
    if command == "seed":
        arguments = [model, "--run", str(checkout.run), "--families", "up"]
        arguments += shlex.split(given["seeding"])
    else:
        arguments = [str(checkout.run), "--epochs", str(given["epochs"])]
        arguments += ["--warmup-epochs", str(given["warmup_epochs"])]
        arguments += shlex.split(given["training"])
    metrics, samples = checkout.run / "metrics.jsonl", checkout.run.parent / "samples.json"
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    arguments = [command, *arguments, "--memory", given["memory"]]
    _python(checkout.tree, [str(HERE / "counted.py"), str(samples), *arguments])
    counted = json.loads(samples.read_text())
    times = [sample[0] for sample in counted]
    steps, last = [], counted[0]
    for line in metrics.read_text().splitlines()[before:]:
        row = json.loads(line)
        if row["stage"] in NOT_WORK:
            continue
        now = [row["time"], *counted[bisect_right(times, row["time"]) - 1][1:]]
        seconds, cpu, single, double = (
            after - before for after, before in zip(now, last, strict=True)
        )
        name = row["stage"]
        if row["epoch"] is not None:
            name = WARM if row["epoch"] <= given["warmup_epochs"] else REGULAR
        error = row.get("recon/relative_frobenius_error")
        waited, passed = row.get("io/seconds_waiting", 0.0), row.get("time/seconds", 0.0)
        spent = (seconds, cpu, single + double)
        steps.append(Step(name, row["epoch"], error, *spent, waited, passed))
        last = now
    return steps


def _python(tree: Path, arguments: list[str]) -> None:
    """Run Python on the package of `tree`; progress goes to standard error."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=tree)


@dataclass(frozen=True)
class Growth:
    """From the experts that were run to those that are asked about."""

    experts: int
    asked: int | None

    def of(self, step: Step) -> Step:
        """What `step` would have spent."""
        assert self.asked is not None
        linear = self.asked / self.experts
        if step.epoch is not None:
            share = step.passed / step.seconds
            factor = share * linear + 1 - share
        else:
            sampled = min(MEAN_SAMPLES, self.asked) / min(MEAN_SAMPLES, self.experts)
            own = {"seed/statistics": sampled, "seed/gram": linear**2, "seed/baseline": 1.0}
            factor = own.get(step.name, linear)
        seconds, cpu_seconds, operations = (factor * part for part in step.spent)
        return replace(step, seconds=seconds, cpu_seconds=cpu_seconds, operations=operations)


def _stages(found: dict[str, list[Step]], growth: Growth) -> str:
    """Seconds and operations of every stage; epochs are medians of their kind."""
    names = list(dict.fromkeys(step.name for steps in found.values() for step in steps))
    lines = [(name, [_median(steps, name) for steps in found.values()]) for name in names]
    lines.append(("all", [_total(steps) for steps in found.values()]))
    if all({WARM, REGULAR} <= {step.name for step in steps} for steps in found.values()):
        title = "seed + 5 warm-up + 15 regular epochs"
        lines.append((title, [_default_run(steps) for steps in found.values()]))
        if growth.asked is not None:
            grown = [[growth.of(step) for step in steps] for steps in found.values()]
            lines += [
                (f"{name} of {growth.asked}", [_median(s, name) for s in grown]) for name in names
            ]
            lines.append((f"{title} of {growth.asked}", [_default_run(steps) for steps in grown]))
    heads = [f"{name}: {what}" for name in found for what in ("s", "CPU s", "TFLOP")]
    heads += ["s, ratio", "CPU s, ratio"] if len(found) > 1 else []
    rows = []
    for name, spent in lines:
        cells = [cell for one in spent for cell in _cells(one)]
        if len(found) > 1:
            cells += [f"{spent[1][k] / spent[0][k]:.2f}" for k in (0, 1)]
        rows.append([name, *cells])
    return markdown(["stage", *heads], rows)


def _cells(spent: Spent) -> list[str]:
    return [f"{spent[0]:.2f}", f"{spent[1]:.2f}", f"{spent[2] / 1e12:.3f}"]


def _median(steps: list[Step], name: str) -> Spent:
    own = [step.spent for step in steps if step.name == name]
    return _each(median, own)


def _total(steps: list[Step]) -> Spent:
    return _each(sum, [step.spent for step in steps])


def _default_run(steps: list[Step]) -> Spent:
    parts = [_total([step for step in steps if step.epoch is None])]
    for name, count in DEFAULT_RUN.items():
        parts += [_median(steps, name)] * count
    return _each(sum, parts)


def _each(taken: Callable[[list[float]], float], parts: list[Spent]) -> Spent:
    """`taken` of the parts' seconds, CPU seconds and operations."""
    seconds, cpu, operations = (taken(list(values)) for values in zip(*parts, strict=True))
    return seconds, cpu, operations


def _errors(found: dict[str, list[Step]], wanted: list[int]) -> str:
    """relF, and what was spent since the start, after so many epochs."""
    rows = []
    for name, steps in found.items():
        for k, step in enumerate(steps, start=1):
            seeded = step.name == "seed/measure"
            if step.error is not None and (seeded or step.epoch in wanted):
                after = "the seed" if seeded else f"{step.epoch} epochs"
                rows.append([name, after, f"{step.error:.4f}", *_cells(_total(steps[:k]))])
    return markdown(["revision", "after", "relF", "seconds", "CPU seconds", "TFLOP"], rows)


if __name__ == "__main__":
    main()
