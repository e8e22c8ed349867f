"""What `plan` says of a model that is too large to have here, and of several processes."""

from dataclasses import replace

import pytest

from globe_stream.commands.plan import plan
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.synthetic.stand_in import STAND_INS, write_stand_in

LAYERS, EXPERTS, P, D, R = 2, 384, 2048, 7168, 1536


@pytest.fixture(scope="module")
def kimi(tmp_path_factory):
    """The first two layers with experts of Kimi-K2, as headers."""
    model = STAND_INS["kimi-k2"]
    model = replace(model, layers=model.dense + LAYERS)
    return str(write_stand_in(tmp_path_factory.mktemp("stand-in") / "kimi", model))


def planned(path, memory, scope="layer", processes=1):
    return plan(
        path,
        SelectionConfig(families="up"),
        SeedConfig(bank_scope=scope),
        TrainConfig(),
        RuntimeConfig(memory=memory, device="cpu"),
        processes,
    )


@pytest.mark.slow
def test_a_bank_a_layer_of_kimi_k2(kimi):
    found = planned(kimi, "24GiB")
    assert list(found.units) == ["up/layers-001-001", "up/layers-002-002"]
    assert all((u.bases, u.rank) == (EXPERTS // 4, R) for u in found.units.values())
    weights = LAYERS * EXPERTS * P * D
    scales = LAYERS * EXPERTS * 4 * (P // 128) * (D // 128)
    assert found.epoch_bytes_read == pytest.approx(weights + scales, rel=1e-3)
    assert found.spilled_epoch_bytes == 0
    assert not any(stage.spill for stage in found.stages)


@pytest.mark.slow
def test_processes_share_the_reading_and_each_pays_for_what_it_is_sent(kimi):
    """With the bank on disk: each has all of it, and reads it for its own batches alone."""
    alone, two = (planned(kimi, "8GiB", "global", processes) for processes in (1, 2))
    assert alone.processes == 1
    assert two.processes == 2
    priced = [found.least_memory_bytes - found.base_bytes for found in (alone, two)]
    assert priced[1] > priced[0] + (30 << 20)
    assert two.epoch_bytes_read == alone.epoch_bytes_read
    assert 0.5 < two.spilled_epoch_bytes / alone.spilled_epoch_bytes < 0.95
