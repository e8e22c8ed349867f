"""Kills at random moments of seed, train and export, on a loaded machine, and what is left.

    python benchmarks/faults.py --kills 200

Every trial sends SIGKILL, SIGTERM or SIGINT to a command at a random batch, rename or ledger row
(inside commits too) or after a random time, gives the command again until it ends, and compares
every byte of bank, codes, next state and exports with those of an undisturbed run. Exit code 1
where anything differs.
"""

import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))


@click.command()
@click.option("--kills", "count", default=200, show_default=True, help="Trials.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
@click.option("--load", default=2, show_default=True, help="Competing processes meanwhile.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder to work in.")
def main(count: int, seed: int, load: int, scratch: Path | None) -> None:
    """Kill, continue, compare."""
    import kills

    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="faults-") as name:
        folder = Path(name)
        checkpoint = kills.write_checkpoint(folder / "model")
        reference = kills.Reference(checkpoint, folder)
        trials = kills.plan(reference, count, seed)
        outcome = kills.Outcome()
        with kills.competing_load(load):
            for outcome in kills.carry_out(reference, trials, folder):
                failed = len(outcome.differences)
                if outcome.trials % 10 == 0:
                    click.echo(f"{outcome.trials} trials, {failed} differ", err=True)
    click.echo(f"{outcome.trials} trials in {time.monotonic() - start:.0f} s under load {load}")
    for title, counts in (("signal", outcome.signals), ("stage", outcome.stages)):
        line = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))
        click.echo(f"delivered by {title}: {line}")
    click.echo(f"identical after continuing: {outcome.trials - len(outcome.differences)}")
    for line in outcome.differences:
        click.echo(line)
    sys.exit(1 if outcome.differences else 0)


if __name__ == "__main__":
    main()
