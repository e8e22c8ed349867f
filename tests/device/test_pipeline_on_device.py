"""The whole pipeline on a device that is pretended, with the results of the CPU."""

from pathlib import Path

import pytest
import support
import torch
from strict_device import strict

from globe_stream.config import METHODS
from globe_stream.store import arrays
from globe_stream.store.run import Run

KINDS = ("mps", "cuda")
PROXIES = [
    ("spherical_kmeans", ("--proxies", "rows")),
    ("nn_dictionary", ("--proxies", "left_gram")),
    ("nn_dictionary", ("--proxies", "svd")),
]
TRAININGS = [
    *((("--activation", name), 4) for name in ("tanh", "silu", "none")),
    (("--targets", "pinv", "--coherence", "0.1"), 4),
    (("--target-support", "3", "--warmup-epochs", "1", "--blend-epochs", "2"), 5),
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


def compared(tell, small, tmp_path, kind, seeding, training=()):
    """Seed and train on the CPU and on `kind`; the errors of both, and what ran on the device."""
    runs = {device: tmp_path / device for device in ("cpu", kind)}
    found = {}
    for device, run in runs.items():
        commands = [("seed", small, "--run", run, *BASES, *seeding)]
        if training:
            commands.append(("train", run, *training))
        with strict(kind) as pretended:
            for command in commands:
                told = tell(*command, "--device", device)
                assert told.code == 0, told.err
        found[device] = errors(run)
        assert bool(pretended.operations) is (device != "cpu")
    return found["cpu"], found[kind], pretended


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param(method, options, id=" ".join((method, *options)))
        for method, options in [*((name, ()) for name in METHODS), *PROXIES]
    ],
)
def test_seeding(tell, small, tmp_path, kind, method, options):
    expected, found, _ = compared(tell, small, tmp_path, kind, ("--method", method, *options))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "epochs"),
    [pytest.param(*case, id=" ".join(case[0])) for case in TRAININGS],
)
def test_training(tell, small, tmp_path, kind, options, epochs):
    expected, found, _ = compared(tell, small, tmp_path, kind, (), ("--epochs", epochs, *options))
    tolerance = 2e-2 if "bf16" in options else 1e-3
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", KINDS)
def test_continuing_gives_the_bytes_of_one_go(tell, small, tmp_path, kind):
    def train(name: str, *epochs: int) -> Path:
        run = tmp_path / name
        commands = [("seed", small, "--run", run, *BASES)]
        commands += [("train", run, "--warmup-epochs", 1, "--epochs", count) for count in epochs]
        for command in commands:
            with strict(kind):
                told = tell(*command, "--device", kind)
            assert told.code == 0, told.err
        return run

    assert support.results(train("once", 4)) == support.results(train("continued", 2, 4))
