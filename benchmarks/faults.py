"""Kills, failing disks, changed files, almost valid inputs: what is left afterwards.

    python benchmarks/faults.py --kills 200 --store-faults 400 --inputs 300 --twice

`--kills`: every trial sends SIGKILL, SIGTERM or SIGINT to seed, train or an export at a random
batch, rename or ledger row (inside commits too) or after a random time, and gives the command again
until it ends. `--store-faults`: every trial carries out a command on a disk that fails once (no
room, input/output errors, short reads and writes, crashes around renames), or on a run of which a
file was changed, cut off or deleted. Afterwards every byte of bank, codes, next state and exports
is compared with an undisturbed run. `--inputs`: so many headers, indices, configs, recipes, ledgers
and small checkpoints that are almost valid. `--twice`: seed and train again beside a competing
load and on a machine with less free memory, and print the hashes. Exit code 1 where anything is
wrong.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))


@click.command()
@click.option("--kills", "kill_trials", default=0, help="Signals to send.")
@click.option("--store-faults", "fault_trials", default=0, help="Failures and changes of files.")
@click.option("--inputs", "examples", default=0, help="Almost valid inputs of each kind.")
@click.option("--twice", is_flag=True, help="The same command under load, by hashes.")
@click.option("--seed", default=0, show_default=True, help="Seed of what is random.")
@click.option("--load", default=2, show_default=True, help="Competing processes meanwhile.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder to work in.")
def main(
    kill_trials: int,
    fault_trials: int,
    examples: int,
    twice: bool,
    seed: int,
    load: int,
    scratch: Path | None,
) -> None:
    """Disturb, continue, compare."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch, prefix="faults-") as name:
        folder = Path(name)
        if kill_trials:
            wrong += _kills(folder, kill_trials, seed, load)
        if fault_trials:
            wrong += _store_faults(folder / "disk", fault_trials, seed)
        if examples:
            wrong += _inputs(folder / "inputs", examples, seed)
        if twice:
            wrong += _twice(folder / "twice", load)
    for line in wrong:
        click.echo(line)
    sys.exit(1 if wrong else 0)


def _kills(folder: Path, count: int, seed: int, load: int) -> list[str]:
    import kills
    from trials import Outcome

    start = time.monotonic()
    reference = kills.Reference(kills.write_checkpoint(folder / "model"), folder)
    outcome = Outcome()
    with kills.competing_load(load):
        for outcome in kills.carry_out(reference, kills.plan(reference, count, seed), folder):
            if outcome.trials % 10 == 0:
                failed = len(outcome.wrong)
                click.echo(f"{outcome.trials} trials, {failed} differ", err=True)
    seconds = time.monotonic() - start
    click.echo(f"kills: {outcome.trials} trials in {seconds:.0f} s under load {load}")
    for title, counts in (("signal", outcome.faults), ("stage", outcome.stages)):
        click.echo(f"  delivered by {title}: {_listed(counts)}")
    click.echo(f"  identical after continuing: {outcome.trials - len(outcome.wrong)}")
    wrong: list[str] = outcome.wrong
    return wrong


def _store_faults(folder: Path, count: int, seed: int) -> list[str]:
    import disk_faults
    import support
    from trials import Outcome

    start = time.monotonic()
    folder.mkdir()
    support.make_quick()
    workshop = disk_faults.Workshop(folder)
    outcome = Outcome()
    for trial in disk_faults.plan(workshop, count, seed):
        disk_faults.attempt(workshop, trial, outcome)
    click.echo(f"store faults: {outcome.trials} trials in {time.monotonic() - start:.0f} s")
    click.echo(f"  by fault: {_listed(outcome.faults)}")
    click.echo(f"  ended: {_listed(outcome.endings)}")
    click.echo(f"  wrong: {len(outcome.wrong)}")
    wrong: list[str] = outcome.wrong
    return wrong


def _inputs(folder: Path, examples: int, seed: int) -> list[str]:
    import inputs
    import support

    folder.mkdir()
    support.make_quick()
    almost, wrong = inputs.Inputs(folder), []
    for kind in inputs.KINDS:
        start = time.monotonic()
        found = inputs.explore(almost, kind, examples, seed)
        click.echo(
            f"inputs: {examples} of kind {kind} in {time.monotonic() - start:.0f} s, "
            f"{len(found)} wrong"
        )
        wrong += found
    return wrong


def _twice(folder: Path, load: int) -> list[str]:
    import kills
    import support

    checkpoint = kills.write_checkpoint(folder / "model")
    found: dict[str, dict[str, str]] = {}
    for name, busy in (("idle", 0), ("again", 0), ("under load", load), ("little memory", 0)):
        run, log = folder / name.replace(" ", "-"), folder / "log"
        free = 1 << 30 if name == "little memory" else 0
        with kills.competing_load(busy):
            for arguments in (
                ["seed", str(checkpoint), "--run", str(run)],
                ["train", str(run), "--epochs", "6"],
            ):
                code = support.outcome(support.plain_command, arguments, log, free)
                if code != 0:
                    return [f"{name}: exit code {code}: {log.read_text()[-300:]}"]
        found[name] = support.results(run)
    click.echo("seed and train, hash of bank, codes, errors and next state:")
    for name, hashes in found.items():
        digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
        click.echo(f"  {name:14} {digest[:32]}")
    return [f"{name}: other bytes" for name in found if found[name] != found["idle"]]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))


if __name__ == "__main__":
    main()
