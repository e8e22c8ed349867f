"""Operations of every stage against those that torch was asked for."""

import shutil

import pytest
import torch
from operation_counter import OperationCounter

from globe_stream.commands.experts import open_experts
from globe_stream.commands.operations import epoch_work, seed_work, train_work
from globe_stream.commands.seed import seed
from globe_stream.commands.session import Session
from globe_stream.commands.train import train
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine.rates import Rates, product_rate
from globe_stream.kernels import gram, polar, ridge
from globe_stream.memory import operations
from globe_stream.memory.operations import Work
from globe_stream.synthetic.checkpoints import SyntheticModel, write_synthetic

RUNTIME = RuntimeConfig(device="cpu", memory="8GiB")
UP = SelectionConfig(families="up")
SEEDING = SeedConfig(bases=4, dictionary_rounds=2)
TRAINING = {"target_support": "none", "warmup_epochs": 1}


def counted(work):
    with OperationCounter() as counter:
        work()
    return counter


@pytest.fixture(scope="module", autouse=True)
def _rates_measured():
    """The products that are timed once in a process, by whichever command is the first."""
    for dtype in (torch.float32, torch.float64):
        product_rate(torch.device("cpu"), dtype)


@pytest.fixture(scope="module")
def beginning():
    """What every command computes before its work: checks of the device, libraries warmed up."""
    return counted(lambda: Session.open(RUNTIME).resources())


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    model = SyntheticModel(layers=2, experts=24, hidden=128, intermediate=96)
    write_synthetic(folder / "model", model)
    group = open_experts(str(folder / "model"), UP, SEEDING).groups[0]
    seeded = counted(
        lambda: seed(str(folder / "model"), folder / "run", UP, SEEDING, RUNTIME, silent=True)
    )
    return folder / "run", group, seeded


@pytest.mark.slow
def test_seeding(problem, beginning):
    _, group, seeded = problem
    stages = seed_work(group, SEEDING)
    whole = sum(stages.values(), Work())
    assert whole.single == pytest.approx(seeded.single - beginning.single, rel=0.01)
    assert whole.double == pytest.approx(seeded.double - beginning.double, rel=0.1)
    assert whole.read_bytes == pytest.approx(4 * group.sizes.stored_bytes)


INITIAL = {"warmup_targets": "initial"}
BLENDED = {"warmup_epochs": 0, "blend_epochs": 1}
PINV = {"warmup_epochs": 0, "targets": "pinv"}


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "epochs"), [
    ({}, 2), (INITIAL, 1), (BLENDED, 1), (BLENDED | {"activation": "none"}, 1), (PINV, 1),
])  # fmt: skip
def test_epochs_of_every_kind(problem, beginning, tmp_path, changes, epochs):
    seeded, group, _ = problem
    run = shutil.copytree(seeded, tmp_path / "run")
    loading = 2.0 * group.bases**2 * group.rank * group.sizes.d  # Gram matrix of the loaded bank
    for epoch in range(epochs):
        options = TrainConfig(epochs=epoch + 1, **(TRAINING | changes))
        found = counted(lambda options=options: train(run, options, RUNTIME, silent=True))
        priced = epoch_work(group, options, epoch)
        single, double = found.single - beginning.single, found.double - beginning.double
        assert priced.single + loading == pytest.approx(single, rel=0.01), epoch
        assert priced.double == pytest.approx(double, abs=0.01 * single), epoch


@pytest.mark.parametrize("rows", [40, 600])
def test_kernels(rows):
    x = torch.randn(1, rows, 700)
    system = torch.eye(rows)[None]
    pairs = [
        (lambda: gram.row_gram(x), operations.row_gram(rows, 700)),
        (lambda: polar.nearly_orthonormal_rows(x), operations.rotation(rows, 700)),
        (lambda: ridge.ridge_solve(system, x.mT, 1e-3), operations.ridge_solve(rows, 700)),
    ]
    for work, expected in pairs:
        assert counted(work).single == pytest.approx(expected, rel=0.001)


def test_reading_goes_on_beside_computing_and_the_own_disk_does_not():
    rates = Rates(70e9, 7e9, 1e9)
    computing = Work(49e9, 4.9e9, 0.0, 0.0)
    assert rates.seconds(computing) == pytest.approx(2.0)
    assert rates.seconds(computing + Work(read_bytes=1e9)) == pytest.approx(2.0)
    assert rates.seconds(computing + Work(read_bytes=5e9)) == pytest.approx(5.0)
    assert rates.seconds(computing + Work(disk_bytes=1e9)) == pytest.approx(3.0)


def test_a_default_run_is_the_sum_of_its_epochs(problem):
    _, group, _ = problem
    every = train_work(group, TrainConfig(epochs=4, **TRAINING))
    assert len(every) == 4
    assert every[0] != every[1] == every[2] == every[3]
