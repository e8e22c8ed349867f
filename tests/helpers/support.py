"""Small checkpoints, runs and processes that several test folders need."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from globe_stream.config import SeedConfig
from globe_stream.io import files
from globe_stream.seeding.methods import SeedOptions

LAYERS, EXPERTS, HEIGHT, WIDTH = 2, 12, 12, 20
NAME = "model.layers.{layer}.mlp.experts.{expert}.{family}_proj.weight"


def slow(*values: object) -> Any:
    """A case of `parametrize` for the whole suite only."""
    return pytest.param(*values, marks=pytest.mark.slow)


def seed_options(**values: Any) -> SeedOptions:
    """Options of a seeding method: the defaults but for `values`."""
    return SeedOptions(SeedConfig(**values))


def expert_matrices(
    layers: int, experts: int, p: int, d: int, *, seed: int = 0, noise: float = 0.3
) -> dict[str, Tensor]:
    """Tensors by name: every expert mixes three of six shared matrices, plus noise and offset."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for family in ("gate", "up"):
        atoms = torch.randn(6, p, d, generator=generator)
        for layer in range(layers):
            for expert in range(experts):
                chosen = torch.randperm(6, generator=generator)[:3]
                weights = torch.rand(3, generator=generator) + 0.2
                mixed = torch.tensordot(weights, atoms[chosen], 1)
                mixed = torch.randn(p, p, generator=generator) @ mixed / p**0.5
                mixed += noise * torch.randn(p, d, generator=generator)
                name = NAME.format(layer=layer, expert=expert, family=family)
                found[name] = 0.05 * mixed + 0.003
    return found


def write_checkpoint(
    folder: Path,
    tensors: dict[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    **sizes: Any,
) -> Path:
    """A qwen2_moe folder that holds `tensors`, or those of `expert_matrices(**sizes)`."""
    if tensors is None:
        given = {"layers": LAYERS, "experts": EXPERTS, "p": HEIGHT, "d": WIDTH, **sizes}
        tensors = expert_matrices(**given)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    files = [f"model-{k + 1:05d}-of-{shards:05d}.safetensors" for k in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    places = {name: files[k * shards // len(names)] for k, name in enumerate(names)}
    for file in files:
        part = {
            name: tensors[name].to(dtype).contiguous() for name in names if places[name] == file
        }
        save_file(part, str(folder / file), metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_config(folder, tensors)
    return folder


def write_config(folder: Path, tensors: dict[str, Tensor]) -> None:
    """The config.json that goes with `tensors`."""
    layers = {int(name.split(".")[2]) for name in tensors}
    experts = {int(name.split(".")[5]) for name in tensors}
    p, d = next(iter(tensors.values())).shape
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2_moe",
                "num_hidden_layers": len(layers),
                "num_experts": len(experts),
                "moe_intermediate_size": p,
                "hidden_size": d,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
            }
        )
    )


def stored_experts(folder: Path, family: str) -> Tensor:
    """(N, p, d) float64 of one family, in position order, read by the safetensors library."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                parts = name.split(".")
                if parts[6] == f"{family}_proj":
                    found[int(parts[2]), int(parts[5])] = shard.get_tensor(name).double()
    return torch.stack([found[key] for key in sorted(found)])


def tree(path: Path) -> dict[str, str]:
    """Hash of every file below `path`, by relative name."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def ledger_rows(folder: Path) -> list[str]:
    """The rows of a ledger without their checksums, as JSON."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return ["{" + line.split(", ", 1)[1] for line in lines]


def write_ledger(folder: Path, rows: Sequence[str]) -> None:
    """Make `rows`, JSON objects, the ledger in `folder`, as if it had written them."""
    from globe_stream.store.ledger import chained

    check, lines = "0" * 16, []
    for row in rows:
        check = chained(check, row.encode())
        lines.append(f'{{"check": "{check}", {row[1:]}\n')
    (folder / "ledger.jsonl").write_text("".join(lines))
    (folder / "ledger.head").write_text(f"{len(lines)} {check}\n")


def results(run: Path) -> dict[str, str]:
    """Hashes of what a run computed: banks, codes, errors, and what training continues from."""
    wanted = {"bank", "codes", "next", "errors"}
    return {
        name: value
        for name, value in tree(run / "run.zarr").items()
        if wanted & set(Path(name).parts)
    }


# -- processes -----------------------------------------------------------------------------------

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["globe_stream.commands.run_recipe", "globe_stream.cli.main"])


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """Begin `target(*arguments)` in a process of its own, forked before any arithmetic."""
    process = _CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def outcome(target: Callable[..., None], *arguments: Any) -> int:
    """Exit code of `target(*arguments)` in a process of its own; -9 when it was killed."""
    process = start(target, *arguments)
    process.join(60)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{target.__name__}{arguments} did not end within a minute")
    code: int = process.exitcode
    return code


def make_quick(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Leave out what only costs time: flushes to the disk, and the last rounds of dictionary
    learning, which then stops at a gain of a thousandth instead of a millionth.
    """
    from globe_stream.seeding.methods import mod

    setattr(os, "fsync", lambda _: None)
    setattr(mod, "SETTLED", 1e-3)


def make_small_batches(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    """Passes in batches of at most five experts, whatever the budget allows."""
    from globe_stream.memory import cost_model as budget

    setattr(budget, "MAX_BATCH", 5)


BEGUN = "-- begun\n"
"""What `command` writes to its log before it does anything."""


def command(arguments: list[str], log: Path, event: int | None = None, number: int = 0) -> None:
    """Run the command line with its output in `log`; at the `event`-th event send signal `number`.

    Events are the batches that a pass has taken, and the files, renames and ledger rows of commits.
    """
    prepare_plain(log)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where it is begun with "&"
    make_quick()
    make_small_batches()
    from globe_stream.cli.main import run

    count = _count_events(event, number)
    with log.open("a") as file:
        file.write(BEGUN)
    code = run(arguments)
    with log.open("a") as file:
        file.write(f"\nevents {count[0]}\n")
    sys.exit(code)


def plain_command(arguments: list[str], log: Path, free: int) -> None:
    """Run the command line as it is, on a machine of which `free` bytes are free, if not 0."""
    prepare_plain(log)
    if free:
        from globe_stream.commands import session

        session.psutil = machine_with(free)  # type: ignore[assignment]
    from globe_stream.cli.main import run

    sys.exit(run(arguments))


def prepare_plain(log: Path) -> None:
    """What this process prints goes to `log`, and it computes with one thread."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)


def machine_with(free: int) -> Any:
    """Stands for psutil on this machine, of whose memory only `free` bytes are free."""
    import psutil

    found = psutil.virtual_memory()._replace(available=free)
    return SimpleNamespace(virtual_memory=lambda: found, Process=psutil.Process)


def _count_events(event: int | None, number: int) -> list[int]:
    from globe_stream.checkpoint.reader import ExpertReader
    from globe_stream.store.ledger import Ledger

    count = [0]

    def happen() -> None:
        count[0] += 1
        if count[0] == event:
            os.kill(os.getpid(), number)

    batches, append = ExpertReader.batches, Ledger.append

    def counted_batches(self: Any, skip: int = 0) -> Iterator[Any]:
        for batch in batches(self, skip):
            yield batch
            happen()

    def counted_append(self: Any, row: Any) -> None:
        happen()
        append(self, row)

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def counting(*arguments: Any, **named: Any) -> None:
            happen()
            change(*arguments, **named)

        return counting

    ExpertReader.batches = counted_batches  # type: ignore[method-assign]
    Ledger.append = counted_append  # type: ignore[method-assign]
    os.rename, os.replace = counted(os.rename), counted(os.replace)
    files.write_new = counted(files.write_new)
    return count


def events_of(arguments: list[str], log: Path) -> int:
    """Number of events in a command that is left alone."""
    assert outcome(command, arguments, log) == 0, log.read_text()[-2000:]
    return int(log.read_text().rsplit("events ", 1)[1])


KILL = signal.SIGKILL


# -- crashes -------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone."""


class CrashPoint:
    """Lets `allowed` changes of the file system happen, then fails every one, as if dead."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed
        self.dead = False

    def __call__(self) -> None:
        if self.dead or self.left == 0:
            self.dead = True
            raise Crash
        self.left -= 1


_CHANGES = ("rename", "replace", "mkdir", "unlink", "rmdir", "truncate", "utime")


@contextmanager
def crashing(allowed: int) -> Iterator[CrashPoint]:
    """Inside the block, the file system stops changing after `allowed` changes.

    Changes are those of names, and whole new files; what is written to open files stays, as after
    a kill.
    """
    point = CrashPoint(allowed)
    real = [(os, name, getattr(os, name)) for name in _CHANGES]
    real.append((files, "write_new", files.write_new))

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            point()
            return function(*arguments, **named)

        return change

    for module, name, function in real:
        setattr(module, name, guarded(function))
    try:
        yield point
    finally:
        for module, name, function in real:
            setattr(module, name, function)
