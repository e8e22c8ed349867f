"""The whole pipeline on a device that is pretended, with the results of the CPU."""

import shutil
from pathlib import Path

import pytest
import support
import torch
from strict_device import strict

from globe_stream.config import METHODS
from globe_stream.store import arrays
from globe_stream.store.run import Run

KINDS = ("mps", "cuda")
DEVICES = ("cpu", *KINDS)
PROXIES = [
    ("spherical_kmeans", ("--proxies", "rows")),
    ("nn_dictionary", ("--proxies", "left_gram")),
    ("nn_dictionary", ("--proxies", "svd")),
]
CURVED = ("--warmup-epochs", "1", "--blend-epochs", "2")
TRAININGS = [
    (("--activation", "none"), 3),
    (("--activation", "tanh", *CURVED, "--targets", "pinv", "--coherence", "0.1"), 4),
    (("--activation", "silu", *CURVED, "--target-support", "3"), 4),
    (("--precision", "bf16"), 3),
]
BASES = ("--bases", "4", "--families", "up", "--memory", "2GiB")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Eight experts of 8 x 12."""
    return support.write_checkpoint(
        tmp_path_factory.mktemp("small"), layers=1, experts=8, p=8, d=12
    )


def errors(run: Path) -> torch.Tensor:
    """Squared errors of the experts of family up."""
    with Run(run, writable=False) as opened:
        return torch.from_numpy(arrays.read(opened.array("up/errors")))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """Runs that were seeded with the defaults, by device, once they are asked for."""
    return tmp_path_factory.mktemp("seeds")


def carried_out(tell, device, *commands, kind="mps"):
    """Carry out `commands` on `device`; `kind` is pretended to be there beside the CPU."""
    with strict(kind if device == "cpu" else device) as pretended:
        for command in commands:
            told = tell(*command, "--device", device)
            assert told.code == 0, told.err
    assert bool(pretended.operations) is (device != "cpu")


def seeded(tell, small, seeds, device, target):
    """`target`, a run seeded on `device` with the defaults."""
    run = seeds / device
    if not run.exists():
        carried_out(tell, device, ("seed", small, "--run", run, *BASES))
    return shutil.copytree(run, target)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_the_cpu_leaves_the_device_alone(tell, small, tmp_path, kind):
    run = tmp_path / "run"
    commands = [("seed", small, "--run", run, *BASES), ("train", run, "--epochs", 3)]
    carried_out(tell, "cpu", *commands, kind=kind)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(method, options, id=" ".join((method, *options)))
        for method, options in [*((name, ()) for name in METHODS), *PROXIES]
    ],
)
def test_seeding(tell, small, tmp_path, method, options):
    found = {}
    for device in DEVICES:
        run = tmp_path / device
        command = ("seed", small, "--run", run, *BASES, "--method", method, *options)
        carried_out(tell, device, command)
        found[device] = errors(run)
    for kind in KINDS:
        torch.testing.assert_close(found[kind], found["cpu"], rtol=1e-4, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("options", "epochs"),
    [pytest.param(*case, id=" ".join(case[0])) for case in TRAININGS],
)
def test_training(tell, small, seeds, tmp_path, options, epochs):
    tolerance, found = 2e-2 if "bf16" in options else 1e-3, {}
    for device in DEVICES:
        run = seeded(tell, small, seeds, device, tmp_path / device)
        carried_out(tell, device, ("train", run, "--epochs", epochs, *options), kind="cuda")
        found[device] = errors(run)
    for kind in KINDS:
        torch.testing.assert_close(found[kind], found["cpu"], rtol=tolerance, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_continuing_gives_the_bytes_of_one_go(tell, small, seeds, tmp_path, kind):
    def train(name: str, *epochs: int) -> Path:
        run = seeded(tell, small, seeds, kind, tmp_path / name)
        for count in epochs:
            carried_out(tell, kind, ("train", run, "--warmup-epochs", 1, "--epochs", count))
        return run

    assert support.results(train("once", 4)) == support.results(train("continued", 2, 4))
