"""Banks larger than the budget train from disk, at the price and the traffic that `plan` states."""

import json

import pytest
import support
import torch
from measured import run_stage

from globe_stream.cli.main import run as command_line
from globe_stream.engine.status import run_status
from globe_stream.factorization.records import run_header
from globe_stream.factorization.sizes import GroupSizes
from globe_stream.memory import cost_model, planner
from globe_stream.memory.cost_model import BatchPlan
from globe_stream.store.run import Run
from globe_stream.store.tiles import Tiles
from globe_stream.training.metric import Metric, metric_gram

BATCH, TILE = 9, 4 * 6 * 20 * 4


@pytest.fixture
def spilling(monkeypatch):
    """Every plan has batches of nine and, where it may, its bank on disk, in tiles of four rows."""

    def choose(stage, candidates, estimate_bytes, limit, base, advice):
        del stage, limit, base, advice
        plan = BatchPlan(BATCH, any(candidate.spill for candidate in candidates))
        return plan, estimate_bytes(plan)

    monkeypatch.setattr(planner, "choose", choose)
    monkeypatch.setattr(cost_model, "TILE_BYTES", TILE)
    monkeypatch.setattr(cost_model, "ATOM_CHUNK_BYTES", 4 * 9 * 20)


@pytest.fixture
def counted(monkeypatch):
    """Bytes that spilled tiles read and wrote, so far."""
    total = [0]
    read, write = Tiles._read, Tiles._write

    def reading(self, *arguments):
        found = read(self, *arguments)
        total[0] += found.nbytes
        return found

    def writing(self, first, values, tile):
        total[0] += values.nbytes
        write(self, first, values, tile)

    monkeypatch.setattr(Tiles, "_read", reading)
    monkeypatch.setattr(Tiles, "_write", writing)
    return total


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "spilling")
def test_an_epoch_reads_and_writes_what_is_stated(tmp_path, checkpoint, counted):
    run = tmp_path / "run"
    assert command_line(["seed", str(checkpoint), "--run", str(run), "--families", "up"]) == 0
    train = ["train", str(run), "--warmup-epochs", "0", "--target-support", "none", "--guard", "1"]
    found = []
    for epochs in (2, 3, 4):
        counted[0] = 0
        assert command_line([*train, "--epochs", str(epochs)]) == 0
        found.append(counted[0])
    sizes = run_header(Run(run, writable=False)).groups[0].sizes
    stored = 3 * sizes.bank_bytes  # the momentum read, bank and momentum written, in the run itself
    loading = 2 * sizes.bank_bytes  # at the start of a command: written once, and its Gram matrix
    stated = cost_model.train_traffic(sizes, BatchPlan(BATCH, spill=True))
    assert found[1] == found[2] == stated - stored + loading


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_bank_on_disk_trains_as_one_in_memory(tmp_path, checkpoint, request):
    found = {}
    for name in ("memory", "disk"):
        if name == "disk":
            request.getfixturevalue("spilling")
            total = request.getfixturevalue("counted")
        run = tmp_path / name
        assert command_line(["seed", str(checkpoint), "--run", str(run), "--families", "up"]) == 0
        assert command_line(["train", str(run), "--epochs", "3", "--warmup-epochs", "1"]) == 0
        found[name] = run_status(Run(run, writable=False)).relative_frobenius_error
    assert total[0] > 0
    assert found["disk"] == pytest.approx(found["memory"], rel=1e-4)


@pytest.mark.parametrize("nbytes", [1, 4 * 7 * 5 * 2, 1 << 20])
def test_a_bank_on_disk_has_the_gram_matrix_of_one_in_memory(tmp_path, nbytes):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 7, 5, generator=generator)
    roots = [torch.randn(n, n, generator=generator) for n in (7, 5)]
    metric = Metric.from_moments(*(root @ root.T for root in roots), torch.device("cpu"))
    bank = Tiles((6, 7, 5), 3, path=tmp_path / "bank")
    bank.put_items(0, values)
    exact = torch.einsum("jrd,rs,kse,de->jk", values.double(), metric.left.double(),
                         values.double(), metric.right.double())  # fmt: skip
    found = metric_gram(bank, metric, nbytes=nbytes)
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_banks_on_disk_are_read_in_as_few_batches_as_fit():
    sizes = GroupSizes(experts=1440, p=1408, d=2048, rank=1056, bases=720, itemsize=2)
    tried = cost_model.spilled_batches(sizes)
    assert tried[:4] == [1440, 720, 480, 360]
    assert tried[-1] == 1
    assert tried == sorted(tried, reverse=True)
    few, many = (cost_model.train_traffic(sizes, BatchPlan(n, True)) for n in (480, 1))
    assert few < many / 50
    assert cost_model.train_traffic(sizes, BatchPlan(480)) == 0


@pytest.mark.slow
def test_a_bank_larger_than_the_budget_keeps_it(tmp_path):
    """In processes of their own, which take no more memory than was given."""
    model = support.write_checkpoint(tmp_path / "model", layers=2, experts=96, p=128, d=2048)
    sizes = ("--families", "up", "--rank", "128", "--bases", "192", "--method", "rpca")
    plan = run_stage("plan", model, *sizes).document
    base, least, bank = plan["base_bytes"], plan["least_memory_bytes"], 4 * 192 * 128 * 2048
    limit = least + (16 << 20)
    assert limit < base + 2 * bank
    plan = run_stage("plan", model, *sizes, "--memory", limit).document
    assert {stage["stage"]: stage["spill"] for stage in plan["stages"]}["up/train"]
    run = tmp_path / "run"
    seed = run_stage("seed", model, "--run", run, *sizes, "--memory", limit)
    train = run_stage("train", run, "--epochs", 1, "--warmup-epochs", 0, "--memory", limit)
    assert max(seed.peak, train.peak) <= limit
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (told,) = [row for row in rows if row["stage"] == "train/memory"]
    assert told["memory/peak_bytes"] <= 1.1 * told["memory/price_bytes"]
