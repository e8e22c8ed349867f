"""A planted factorisation without noise is found again from independent adapters."""

import pytest

from globe_stream.commands.seed import seed
from globe_stream.commands.train import train
from globe_stream.config import (
    RuntimeConfig,
    SeedConfig,
    SelectionConfig,
    SyntheticModel,
    TrainConfig,
)
from globe_stream.synthetic.checkpoints import write_synthetic

BASES, RANK = 12, 12
HOW = RuntimeConfig(device="cpu")
UP = SelectionConfig(families="up")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """128 experts of 16 x 64, each of four of 12 atoms and an adapter of its own."""
    folder = tmp_path_factory.mktemp("planted") / "model"
    sizes = {"layers": 4, "experts": 32, "hidden": 64, "intermediate": 16}
    model = SyntheticModel(**sizes, planted_bases=BASES, planted_rank=RANK, dtype="fp32")
    write_synthetic(folder, model)
    return str(folder)


def seeded(model, run, **options):
    seeding = SeedConfig(bases=BASES, rank=RANK, **options)
    return seed(model, run, UP, seeding, HOW, silent=True).families["up"]


@pytest.mark.slow
def test_seeding_and_training_recover_what_only_a_consensus_sees(planted, tmp_path):
    """Independent adapters leave nothing for a left basis that all experts share."""
    aligned = seeded(planted, tmp_path / "aligned").relative_frobenius_error
    shared = seeded(planted, tmp_path / "shared", proxies="left_gram").relative_frobenius_error
    assert aligned < 0.6 * shared
    training = TrainConfig(epochs=50, activation="none", target_support="none")
    found = train(tmp_path / "aligned", training, HOW, silent=True).families["up"]
    assert found.relative_frobenius_error < 1e-3
    assert found.svd_equal_parameters_relative_error > 0.4
