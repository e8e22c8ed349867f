"""Plans for real units: larger budgets never choose worse, what fits is within the limit."""

import re

import pytest
import support

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import SeedConfig, TrainConfig
from globe_stream.errors import InputError
from globe_stream.factorization.groups import make_groups
from globe_stream.memory import cost_model as budget
from globe_stream.memory import planner

MIB = 1 << 20
BASE = 200 * MIB
STAGES = {"statistics", "proxies", "gram", "atoms", "measure", "baseline"}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """64 experts of 256 x 512; only headers are ever read."""
    folder = tmp_path_factory.mktemp("plan") / "model"
    support.write_checkpoint(folder, layers=2, experts=32, p=256, d=512)
    (found,) = make_groups(open_index(str(folder)), ("up",), SeedConfig(rank=200, bases=60))
    return found


def least(plan):
    """The smallest limit that `plan` accepts, from its own refusal."""
    with pytest.raises(InputError) as refusal:
        plan(BASE)
    said = re.search(r"needs at least ([\d.]+) MiB", str(refusal.value))
    return int(float(said[1]) * MIB)


@pytest.mark.parametrize("proxies", ["rows", "left_gram", "svd", "procrustes"])
def test_seed_plans_fit_and_improve_with_the_limit(group, proxies):
    before = None
    for extra in (300, 500, 1000, 4000):
        limit = BASE + extra * MIB
        plans = planner.seed_plans(group, proxies, limit, BASE)
        assert set(plans) == STAGES
        for name, plan in plans.items():
            assert BASE + plan.estimate_bytes + budget.SLACK_BYTES <= limit
            if before is not None:
                assert plan.batch_plan.batch >= before[name].batch_plan.batch
                assert plan.batch_plan.spill <= before[name].batch_plan.spill
        before = plans


def test_training_spills_its_bank_when_it_must_and_keeps_it_when_it_can(group, monkeypatch):
    monkeypatch.setattr(budget, "TILE_BYTES", MIB)
    monkeypatch.setattr(budget, "ATOM_CHUNK_BYTES", MIB)

    def plan(limit):
        return planner.train_plan(group, TrainConfig(), limit, BASE)

    small, large = plan(least(plan) + MIB), plan(BASE + 4000 * MIB)
    assert small.batch_plan.spill
    assert small.batch_plan.batch <= 2
    assert not large.batch_plan.spill
    assert large.batch_plan.batch > 1


def test_what_is_refused_by_a_hair_is_accepted_with_it(group):
    def plan(limit):
        return planner.seed_plans(group, "left_gram", limit, BASE)

    needed = least(plan) + MIB // 50
    plan(needed)
    with pytest.raises(InputError, match="bank_scope layer"):
        plan(needed - MIB)  # a smaller bank would do
    with pytest.raises(InputError, match=r"Raise memory to \d+MiB$"):
        plan(BASE)  # no bank would do


def test_the_readers_share_is_what_the_reader_says(group):
    """One more expert in a batch of the first pass costs one more in the reader, nothing else."""
    first = group.experts[0]
    estimates = [budget.statistics_bytes(
        group.sizes, budget.BatchPlan(batch), planner._reader_bytes(group), ())
        for batch in (3, 4)]  # fmt: skip
    sizes = [ExpertReader.buffer_bytes(first, batch) for batch in (3, 4)]
    assert estimates[1] - estimates[0] == sizes[1] - sizes[0] == 256 * 512 * (2 + 4)
