"""Plans for real units: larger budgets never choose worse, what fits is within the limit."""

import re

import pytest
import support
from support import slow

from globe_stream.checkpoint.index import open_index
from globe_stream.checkpoint.reader import ExpertReader
from globe_stream.config import SeedConfig, TrainConfig
from globe_stream.errors import InputError
from globe_stream.factorization.groups import make_groups
from globe_stream.memory import cost_model as budget
from globe_stream.memory import planner, seeding_cost
from globe_stream.memory.cost_model import BatchPlan

MIB = 1 << 20
BASE = budget.DECLARED_BASE_BYTES
STAGES = {"statistics", "proxies", "gram", "atoms", "measure", "baseline"}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """64 experts of 256 x 512; only headers are ever read."""
    folder = tmp_path_factory.mktemp("plan") / "model"
    support.write_checkpoint(folder, layers=2, experts=32, p=256, d=512)
    (found,) = make_groups(open_index(str(folder)).experts, ("up",), SeedConfig(rank=200, bases=60))
    return found


def least(plan):
    """The smallest limit that `plan` accepts, from its own refusal."""
    with pytest.raises(InputError) as refusal:
        plan(BASE)
    said = re.search(r"needs at least ([\d.]+) MiB", str(refusal.value))
    return int(float(said[1]) * MIB)


@pytest.mark.parametrize("proxies", [*map(slow, ("rows", "left_gram", "svd")), "procrustes"])
def test_seed_plans_fit_and_improve_with_the_limit(group, proxies):
    before = None
    for extra in (300, 500, 1000, 4000):
        limit = BASE + extra * MIB
        plans = planner.plans(planner.seed_stages(group, proxies), limit, BASE)
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
        return planner.plans(planner.seed_stages(group, "left_gram"), limit, BASE)

    needed = least(plan) + MIB // 50
    plan(needed)
    with pytest.raises(InputError, match="bank_scope layer"):
        plan(needed - MIB)  # a smaller bank would do
    with pytest.raises(InputError, match=r"Raise memory to \d+MiB$"):
        plan(BASE)  # no bank would do


def test_the_readers_share_is_what_the_reader_says(group):
    """One more expert in a batch of the first pass costs one more in the reader, nothing else."""
    first = group.experts[0]
    estimates = [seeding_cost.statistics_bytes(
        group.sizes, BatchPlan(batch), planner._reader_bytes(group), ())
        for batch in (3, 4)]  # fmt: skip
    sizes = [ExpertReader.buffer_bytes(first, batch) for batch in (3, 4)]
    assert estimates[1] - estimates[0] == sizes[1] - sizes[0] == 256 * 512 * (2 + 4)


# -- the choice ----------------------------------------------------------------------------------

CANDIDATES = (
    BatchPlan(4),
    BatchPlan(2),
    BatchPlan(1),
    BatchPlan(2, spill=True),
    BatchPlan(1, spill=True),
)


def cost(batch_plan):
    return (10 if batch_plan.spill else 50) * MIB + batch_plan.batch * 7 * MIB


def choose(limit, base=BASE):
    return planner.choose("train of up", CANDIDATES, cost, limit, base, "buy more")


@pytest.mark.parametrize(("room", "expected"), [
    (78, BatchPlan(4)), (77, BatchPlan(2)), (64, BatchPlan(2)), (63, BatchPlan(1)),
    (56, BatchPlan(2, True)),
    (24, BatchPlan(2, True)), (23, BatchPlan(1, True)), (17, BatchPlan(1, True)),
])  # fmt: skip
def test_the_first_that_fits_with_some_slack(room, expected):
    fixed = budget.COMPILED_BYTES + budget.SLACK_BYTES
    chosen = choose(BASE + room * MIB + fixed)
    assert chosen == (expected, cost(expected) + budget.COMPILED_BYTES)


def test_a_base_that_differs_by_a_hair_chooses_the_same():
    """At every limit from the least that one process needs, batches are those of another."""
    for limit in range(340 * MIB, 450 * MIB, MIB // 2):
        found = {choose(limit, base) for base in (270 * MIB, 271 * MIB, 273 * MIB + 12345)}
        assert len(found) == 1
    best = [choose(limit, 271 * MIB)[0] for limit in range(340 * MIB, 700 * MIB, MIB)]
    places = [CANDIDATES.index(one) for one in best]
    assert places == sorted(places, reverse=True), "more memory never chooses worse"
    assert (best[0], best[-1]) == (CANDIDATES[-1], CANDIDATES[0])


def test_a_refusal_names_stage_need_limit_and_knob():
    least = 100 * MIB + 17 * MIB + budget.COMPILED_BYTES + budget.SLACK_BYTES
    with pytest.raises(InputError) as refusal:
        choose(least - 1, 100 * MIB)
    assert choose(least, 100 * MIB)[0] == BatchPlan(1, True)
    said = str(refusal.value)
    assert "memory 165.00 MiB: stage train of up needs at least 165.00 MiB" in said
    assert "(100.00 MiB of it for the program itself)" in said
    assert said.endswith("Raise memory to 169MiB, or buy more")


def stage(name, least, smallest):
    return planner.Stage(
        name, CANDIDATES, lambda batch_plan: least * MIB + batch_plan.batch, smallest * MIB
    )


@pytest.mark.parametrize(("room", "helps"), [(40, True), (20, False)])
def test_a_refusal_names_the_stage_that_needs_most_and_advice_that_helps(room, helps):
    fixed = budget.COMPILED_BYTES + budget.SLACK_BYTES
    stages = [stage("first", 50, 10), stage("second", 90, 30), stage("third", 60, 5)]
    with pytest.raises(InputError, match="stage second needs at least") as refusal:
        planner.require(stages, 100 * MIB + fixed + room * MIB, 100 * MIB)
    assert ("or choose a smaller" in str(refusal.value)) == helps
    planner.require(stages, stages[1].least(100 * MIB), 100 * MIB)
    assert budget.safe_budget(stages[1].least(0)) >= stages[1].least(budget.BASE_SPREAD_BYTES)
