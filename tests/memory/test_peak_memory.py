"""The budget holds for whole processes, on shards several times larger than it.

Each command runs in a process of its own, whose high-water mark is read from outside.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import support
import torch
from measured import Ended, run_measured, run_stage, with_what_is_needed
from sample_runs import Recipe, larger_model, make_run

from globe_stream.io.safetensors_writer import PlannedTensor, plan_file, writing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]

MIB = 1 << 20
LAYERS, EXPERTS, HEIGHT, WIDTH = 6, 40, 256, 1024
SIZES = ("--families", "up", "--rank", "32", "--bases", "24")
ROOM = 150 * MIB
"""Above what the program itself takes; each family's experts are 240 MiB."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """480 MiB of float32 experts, written a matrix at a time."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(HEIGHT, WIDTH, generator=generator) for _ in range(16)]
    names = [
        support.NAME.format(layer=layer, expert=expert, family=family)
        for family in ("up", "gate")
        for layer in range(LAYERS)
        for expert in range(EXPERTS)
    ]
    tensors = [PlannedTensor(name, "F32", (HEIGHT, WIDTH)) for name in names]
    planned = plan_file(folder / "model.safetensors", tensors)
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        with writing(planned) as file:
            for number, entry in enumerate(planned.entries):
                one, other = parts[number % 16], parts[(5 * number + number // 16) % 16]
                file.write_tensor(entry.start, 0.02 * (one + 0.7 * other.roll(number, 0)))
    support.write_config(folder, dict.fromkeys(names, parts[0]))
    return folder


@dataclass(frozen=True)
class Measured:
    """Both commands within one budget, and what the run says about its stages."""

    limit: int
    seed: Ended
    train: Ended
    stages: dict  # name: (peak, price) in bytes


@pytest.fixture(scope="module")
def limit(large):
    """A budget that leaves ROOM above what the program itself takes."""
    return run_stage("plan", large, *SIZES).document["base_bytes"] + ROOM


def measure(model, run, layers, limit):
    common = ("--memory", limit)
    seed = run_stage("seed", model, "--run", run, *SIZES, "--layers", layers, *common)
    train = run_stage("train", run, "--epochs", 2, "--warmup-epochs", 1, *common)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages = {row["stage"]: (row["memory/peak_bytes"], row["memory/price_bytes"])
              for row in rows if "memory/price_bytes" in row}  # fmt: skip
    return Measured(limit, seed, train, stages)


@pytest.fixture(scope="module")
def whole(large, limit, tmp_path_factory):
    return measure(large, tmp_path_factory.mktemp("whole") / "run", f"0:{LAYERS}", limit)


@pytest.fixture(scope="module")
def half(large, limit, tmp_path_factory):
    return measure(large, tmp_path_factory.mktemp("half") / "run", f"0:{LAYERS // 2}", limit)


def test_the_peak_stays_within_the_budget(whole):
    assert whole.seed.peak <= whole.limit
    assert whole.train.peak <= whole.limit


def test_a_sweep_stays_within_its_budget(large, limit, tmp_path):
    """Two warm starts that share proxies, each trained twice, in one process.

    What a process keeps of one point counts as its own at the next, so it needs some more room.
    """
    limit += 64 * MIB
    points = ("--set", "method=ts_pca,nn_dictionary", "--set", "damping=0.2,0.4")
    training = ("--epochs", 1, "--warmup-epochs", 0, "--target-support", 6)
    found = run_stage(
        "sweep", large, *SIZES, "--layers", "0:2", *points, *training,
        "--out", tmp_path / "out", "--memory", limit,
    )  # fmt: skip
    assert len(found.document["points"]) == 4
    assert found.document["memory_budget_bytes"] == limit
    assert limit - ROOM - 64 * MIB < found.peak <= limit


def test_the_meter_misses_nothing(whole):
    seen = max(whole.seed.peak, whole.train.peak)
    told = whole.train.document["peak_memory_bytes"]
    assert abs(told - seen) <= 0.03 * seen
    assert whole.train.document["memory_budget_bytes"] == whole.limit


def test_prices_match_the_peaks(whole):
    """Within 15 % for the stages that decide; no stage takes a tenth more than its price."""
    assert set(whole.stages) >= {"seed/statistics", "seed/measure", "train/memory"}
    highest = max(peak for peak, _ in whole.stages.values())
    deciding = [name for name, (peak, _) in whole.stages.items() if peak > 0.9 * highest]
    assert deciding
    for name, (peak, estimate_bytes) in whole.stages.items():
        assert peak <= 1.1 * estimate_bytes, (
            f"{name}: {peak / MIB:.0f} MiB, priced {estimate_bytes / MIB:.0f} MiB"
        )
        if name in deciding:
            assert estimate_bytes == pytest.approx(peak, rel=0.15), name


def test_the_budget_is_used(whole):
    """A bounded run is not one that takes nothing: batches grow into the room there is."""
    assert whole.train.peak > whole.limit - 0.6 * ROOM


def test_twice_the_layers_need_the_same_memory(whole, half):
    assert whole.seed.peak <= 1.05 * half.seed.peak
    assert whole.train.peak <= 1.05 * half.train.peak


def test_a_frontier_stays_within_the_budget(tmp_path):
    """That of a model of 30 MiB, within no more than a refusal says that it needs."""
    larger_model(tmp_path / "model", experts=16, hidden=512, intermediate=192)
    recipe = Recipe(bases=16, rank=72, support=4, measured=False)
    run = make_run(tmp_path / "run", tmp_path / "model", recipe)
    (tmp_path / "text").write_bytes(bytes(range(256)) * 8)
    models = "original,rtn-4,model,model-8-8,svd"
    command = ["eval", run, "--text", tmp_path / "text", "--frontier", "--models", models,
               "--window-count", 2, "--window-length", 128, "--json"]  # fmt: skip
    ended = run_measured(with_what_is_needed, [str(part) for part in command], 8 * MIB)
    limit = int(re.search(r"^limit (\d+)$", ended.told, re.MULTILINE)[1])
    assert len(ended.document["comparison"]["rows"]) == 5
    assert ended.peak <= limit
    assert ended.peak > 0.6 * limit
