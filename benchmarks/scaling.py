"""Two processes pinned to a core each against one on one core, on experts of a real size.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --folder cache/scaling --processes 1 --experts 64 --bases 16

Writes a checkpoint of Gaussian weights, seeds it with one process and trains copies of that seed
with the environment that `torchrun` makes, every process with one thread on a core of its own.
Seconds are of the epochs after the first, if there are more, from `metrics.jsonl`. Needs two idle
cores; beside other work compare the processors' seconds, those of the whole command in the process
that took most. What is in --folder already is not made again, so that the timed part can be
repeated by itself.
"""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import click
from runs import machine_line, markdown, scratch_folder

from globe_stream.engine.metrics import read_metrics

HEADS = ["processes", "s an epoch", "times as fast", "processor's s", "relF"]


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.option("--experts", default=128, show_default=True)
@click.option("--intermediate", default=1408, show_default=True)
@click.option("--hidden", default=2048, show_default=True)
@click.option("--bases", default=16, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--memory", default="3GiB", show_default=True, help="Of each process.")
@click.option("--processes", default="1,2", show_default=True, metavar="A,B,...")
@click.option("--folder", type=click.Path(path_type=Path), help="Kept; default: a temporary one.")
def main(folder: Path | None, processes: str, **given: Any) -> None:
    with nullcontext(folder) if folder else scratch_folder(None) as place:
        _prepare(place, **given)
        counts = [int(count) for count in processes.split(",") if count]
        found = {count: _epoch(place, count, **given) for count in counts}
    lines = [
        [str(count), f"{seconds:.1f}", f"{found[counts[0]][0] / seconds:.2f}", f"{used:.1f}",
         f"{error:.6f}"]
        for count, (seconds, used, error) in found.items()
    ]  # fmt: skip
    click.echo(", ".join(f"{name} {value}" for name, value in given.items()) + "\n")
    click.echo(markdown(HEADS, lines))
    click.echo(f"\n{machine_line()}")


def _prepare(folder: Path, experts: int, intermediate: int, hidden: int, bases: int, memory: str,
             **_: Any) -> None:  # fmt: skip
    """A checkpoint and a seeded run of it in `folder`, unless they are there."""
    model, seeded = folder / "model", folder / "seeded"
    if not model.exists():
        shape = ("--experts", experts, "--hidden", hidden, "--intermediate", intermediate)
        _run(1, "synth", "--out", model, "--layers", 1, *shape)
    if not seeded.exists():
        quick = ("--method", "rpca", "--proxies", "rows", "--families", "up", "--bases", bases)
        _run(1, "seed", model, "--run", seeded, *quick, "--memory", memory)


def _epoch(folder: Path, processes: int, epochs: int, memory: str,
           **_: Any) -> tuple[float, float, float]:  # fmt: skip
    """Seconds of an epoch of so many processes, the processor's, and the error last found."""
    run = folder / f"run-{processes}"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folder / "seeded", run)
    training = ("--epochs", epochs, "--warmup-epochs", 0, "--target-support", "none")
    used = _run(processes, "train", run, *training, "--memory", memory)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row.stage == "train"]
    seconds = median(row.number("time/step_seconds") or 0.0 for row in rows[1:] or rows)
    return seconds, used, rows[-1].number("recon/measured_error") or 0.0


def _run(processes: int, *arguments: object) -> float:
    """One command of the tool, by so many processes on the first cores.

    Returns the most processor's seconds that one of them took.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "globe_stream", *map(str, arguments)]
    click.echo(" ".join(["globe-stream", *line[3:]]), err=True)
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
                 "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in world.items()}}
        pinned = ["taskset", "-c", str(cores[rank % len(cores)]), *line]
        started.append(subprocess.Popen(pinned, env=environment, stdout=subprocess.DEVNULL))
    ended = [os.wait4(process.pid, 0) for process in started]
    if any(status for _, status, _ in ended):
        raise click.ClickException("a command failed; its message is above")
    return max(usage.ru_utime + usage.ru_stime for _, _, usage in ended)


if __name__ == "__main__":
    main()
