"""The same command again, more epochs, changed options, --fresh, and other budgets."""

import itertools
import json
import shutil

import pytest
import support

from globe_stream.cli.main import run as run_command_line
from globe_stream.engine import context
from globe_stream.engine.metrics import read_metrics
from globe_stream.engine.rates import Rates
from globe_stream.factorization.records import seeded_state
from globe_stream.memory import cost_model as budget
from globe_stream.memory import planner
from globe_stream.store.run import Run

pytestmark = pytest.mark.usefixtures("quick", "small_batches")

TRAIN = ("--warmup-epochs", 2)


@pytest.fixture
def small_batches(monkeypatch):
    support.make_small_batches(monkeypatch.setattr)


@pytest.fixture(scope="module")
def seeded_once(tmp_path_factory, checkpoint):
    run = tmp_path_factory.mktemp("seeded") / "run"
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        support.make_small_batches(patch.setattr)
        assert run_command_line(["seed", str(checkpoint), "--run", str(run)]) == 0
    return run


@pytest.fixture
def seeded(tmp_path, seeded_once):
    """A seeded run of this test's own."""
    return shutil.copytree(seeded_once, tmp_path / "run")


def trained_from(seeds, name, *options):
    """A run of that name beside `seeds`, trained from them with `options`."""
    run = copied(seeds, name)
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        support.make_small_batches(patch.setattr)
        assert run_command_line(["train", str(run), *map(str, options)]) == 0
    return run


@pytest.fixture(scope="module")
def trained_once(seeded_once):
    return trained_from(seeded_once, "three", "--epochs", 3, *TRAIN)


@pytest.fixture
def trained(tmp_path, trained_once):
    """A run of this test's own after three epochs."""
    return shutil.copytree(trained_once, tmp_path / "trained")


def copied(run, name):
    return shutil.copytree(run, run.parent / name)


def without_lock(run):
    return {name: value for name, value in support.tree(run).items() if not name.startswith("lock")}


def test_rates_of_the_machine_are_kept_and_decide_nothing(tell, seeded, monkeypatch):
    slow = copied(seeded, "slow")
    assert tell("train", seeded, "--epochs", 2, *TRAIN).code == 0
    monkeypatch.setattr(context, "measured_rates", lambda *_: Rates(1.0, 2.0, None))
    assert tell("train", slow, "--epochs", 2, *TRAIN).code == 0
    assert support.results(slow) == support.results(seeded)
    for run, known in ((seeded, False), (slow, True)):
        rows = read_metrics(run / "metrics.jsonl")
        machine = [row.values for row in rows if row.stage == "machine"]
        assert len(machine) == 2, "one of seed, one of train"
        assert (machine[1]["machine/operations_per_second"] == 1.0) is known
        assert machine[0]["machine/bytes_per_second"] > 0
        for row in rows:
            if row.stage == "train" or row.stage in ("seed/measure", "seed/atoms"):
                rate = row.values["compute/operations_per_second"]
                seconds = row.number("time/step_seconds") or row.number("time/seconds")
                assert row.values["compute/operations"] == pytest.approx(rate * seconds, rel=0.1)


def test_the_same_command_again_does_nothing(tell, checkpoint, seeded):
    before = without_lock(seeded)
    told = tell("seed", checkpoint, "--run", seeded, "--json")
    assert told.code == 0
    assert without_lock(seeded) == before


def test_no_more_epochs_than_were_done_do_nothing(tell, trained):
    whole, computed = without_lock(trained), support.results(trained)
    for epochs in (3, 2):
        told = tell("train", trained, "--epochs", epochs, *TRAIN, "--json")
        assert told.code == 0
        assert without_lock(trained) == whole or epochs < 3, "the same command"
        assert support.results(trained) == computed
        assert json.loads(told.out)["families"]["up"]["epoch"] == 3


@pytest.mark.slow
def test_seeding_again_after_training_leaves_the_training(tell, checkpoint, trained):
    before = support.results(trained)
    told = tell("seed", checkpoint, "--run", trained, "--json")
    assert (told.code, json.loads(told.out)["state"]) == (0, "trained")
    assert support.results(trained) == before


@pytest.mark.slow
def test_more_epochs_continue_to_the_same_bits(tell, seeded):
    other = copied(seeded, "other")
    for epochs in (1, 3, 2, 5):
        told = tell("train", seeded, "--epochs", epochs, *TRAIN, "--json")
        assert told.code == 0
    assert tell("train", other, "--epochs", 5, *TRAIN).code == 0
    assert support.results(seeded) == support.results(other)
    document = json.loads(told.out)
    assert document["state"] == "trained"
    assert document["families"]["up"]["epoch"] == 5
    assert document["families"]["up"]["passes"] == 4 + 5


@pytest.mark.slow
def test_options_that_are_not_given_are_those_of_the_run(tell, seeded):
    other = copied(seeded, "other")
    options = (*TRAIN, "--momentum", 0.9, "--target-support", 4)
    assert tell("train", seeded, "--epochs", 2, *options).code == 0
    told = tell("train", seeded, "--epochs", 4, "--json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["config"]["train"]["momentum"] == 0.9
    assert document["families"]["up"]["epoch"] == 4
    assert tell("train", other, "--epochs", 4, *options).code == 0
    assert support.results(seeded) == support.results(other)
    told = tell("train", seeded, "--epochs", 5, "--momentum", 0.8)
    assert told.code == 2
    assert "momentum: was 0.9, now 0.8" in told.err


@pytest.mark.parametrize(("options", "difference"), [
    (("--rank", 5), "seed rank: was not set, now 5"),
    (("--method", "ts_pca"), "seed method: was 'nn_dictionary', now 'ts_pca'"),
    (("--families", "up"), "selection families: was 'both', now 'up'"),
    (("--layers", "0:1"), "selection layers: was not set, now '0:1'"),
    (("--seed", 7), "seed seed: was 0, now 7"),
])  # fmt: skip
def test_a_changed_seed_option_is_refused_with_the_difference(
    tell, checkpoint, seeded, options, difference
):
    before = without_lock(seeded)
    told = tell("seed", checkpoint, "--run", seeded, *options)
    assert told.code == 2
    assert difference in told.err
    assert "--fresh" in told.err
    assert len(told.err.splitlines()) == 1
    assert without_lock(seeded) == before


@pytest.mark.slow
def test_runtime_options_may_change(tell, checkpoint, seeded):
    told = tell("seed", checkpoint, "--run", seeded, "--memory", "3GiB", "--checkpoint-every", 1)
    assert told.code == 0
    assert tell("train", seeded, "--epochs", 1, *TRAIN).code == 0
    assert tell("train", seeded, "--epochs", 2, *TRAIN, "--memory", "2GiB").code == 0


def test_a_changed_train_option_is_refused_with_the_difference(tell, trained):
    before = without_lock(trained)
    told = tell("train", trained, "--epochs", 4, *TRAIN, "--momentum", 0.5, "--gain", 1.5)
    assert told.code == 2
    assert "momentum: was " in told.err
    assert ", now 0.5" in told.err
    assert "gain: was " in told.err
    assert "--fresh" in told.err
    assert without_lock(trained) == before


@pytest.mark.slow
def test_fresh_seeds_again(tell, checkpoint, trained):
    other = trained.parent / "other"
    told = tell("seed", checkpoint, "--run", trained, "--rank", 5, "--fresh", "--json")
    assert told.code == 0
    assert json.loads(told.out)["families"]["up"]["rank"] == 5
    assert tell("seed", checkpoint, "--run", other, "--rank", 5).code == 0
    assert support.results(trained) == support.results(other)


def test_fresh_that_is_refused_deletes_nothing(tell, checkpoint, seeded):
    before = without_lock(seeded)
    for options in (("--memory", "1MiB"), ("--rank", 99), ("--layers", "5:9")):
        assert tell("seed", checkpoint, "--run", seeded, "--fresh", *options).code == 2
        assert without_lock(seeded) == before


AGAIN = ("--epochs", 3, *TRAIN, "--momentum", 0.5, "--lambda-a", 1e-3)


@pytest.fixture(scope="module")
def trained_otherwise(seeded_once):
    """The results of training with AGAIN from the seeds."""
    return support.results(trained_from(seeded_once, "trained", *AGAIN))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_fresh_trains_again_from_the_seeds(tell, seeded, trained, trained_otherwise, epochs):
    """After as many epochs: within the warm-up, at its end and behind it."""
    run = trained if epochs > 3 else seeded
    assert tell("train", run, "--epochs", epochs, *TRAIN).code == 0
    assert tell("train", run, *AGAIN, "--fresh").code == 0
    found = support.results(run)
    expected = {k: value for k, value in trained_otherwise.items() if "/seed/" not in k}
    assert {name: found[name] for name in expected} == expected
    assert seeded_state(Run(run, writable=False), "up").passes == 4 + 3


def forced(monkeypatch, batch, spill):
    """Whatever the budget, take these knobs."""

    def choose(stage, candidates, estimate_bytes, limit, base, advice):
        del stage, limit, base, advice
        spilling = any(batch_plan.spill for batch_plan in candidates)
        batch_plan = budget.BatchPlan(batch, spill and spilling)
        return batch_plan, estimate_bytes(batch_plan)

    monkeypatch.setattr(planner, "choose", choose)


@pytest.mark.slow
def test_batches_and_spilling_change_the_error_by_less_than_a_ten_thousandth(
    tmp_path, tell, checkpoint, monkeypatch
):
    """With all atoms and with four of them wanted."""
    found = {"none": [], "4": []}
    for batch, spill in ((24, False), (7, False), (24, True), (1, True)):
        forced(monkeypatch, batch, spill)
        monkeypatch.setattr(budget, "TILE_BYTES", 4 * 6 * 20 * (4 if spill else 9))
        seeds = tmp_path / f"run-{batch}-{spill}"
        assert tell("seed", checkpoint, "--run", seeds, "--families", "up").code == 0
        for wanted, errors in found.items():
            run = copied(seeds, f"{seeds.name}-{wanted}")
            told = tell("train", run, "--epochs", 5, *TRAIN, "--target-support", wanted, "--json")
            assert told.code == 0, told.err
            errors.append(json.loads(told.out)["families"]["up"]["relative_frobenius_error"])
    for errors in found.values():
        assert max(errors) - min(errors) < 1e-4 * min(errors), found


@pytest.mark.slow
def test_the_error_curve_rises_by_no_more_than_a_hundredth(tmp_path, tell, checkpoint):
    """Of the saved state, with default settings but codes unconstrained."""
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, "--families", "up").code == 0
    assert tell("train", run, "--epochs", 20, "--target-support", "none").code == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = [row["recon/relative_frobenius_error"] for row in rows if row["stage"] == "train"]
    assert len(errors) == 20
    assert all(new <= 1.01 * old for old, new in itertools.pairwise(errors))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.slow
def test_a_target_that_is_missed_is_in_the_status_and_on_stderr(tell, seeded):
    stuck = ("--target-support", 1, "--temperature-min", 50, "--temperature-max", 50)
    told = tell("train", seeded, "--epochs", 2, *stuck, "--json")
    assert told.code == 0, told.err
    document = json.loads(told.out)
    assert document["state"] == "trained"
    (line,) = [one for one in document["warnings"] if one.startswith("up: ")]
    assert "target_support 1 was not reached: the median support is" in line
    assert "target_support 1 was not reached" in told.err
    assert json.loads(tell("status", seeded, "--json").out)["warnings"] == document["warnings"]


@pytest.mark.slow
def test_patience_may_be_raised_on_a_run_that_stopped(tell, seeded):
    still = ("--target-support", "none", "--activation", "none", "--tolerance", 0.99)
    still = (*still, "--warmup-epochs", 1)
    assert tell("train", seeded, "--epochs", 30, *still, "--patience", 2).code == 0
    done = json.loads(tell("status", seeded, "--json").out)["families"]["up"]["epoch"]
    assert done < 30
    told = tell("train", seeded, "--epochs", done + 3, *still, "--patience", 0)
    assert told.code == 0, told.err
    assert json.loads(tell("status", seeded, "--json").out)["families"]["up"]["epoch"] == done + 3


@pytest.mark.slow
def test_targets_of_the_warm_start_need_its_mean(tell, checkpoint, tmp_path):
    for proxies, code in (("left_gram", 2), ("procrustes", 0)):
        run = tmp_path / proxies
        common = ("--families", "up", "--bases", 4, "--memory", "2GiB")
        assert tell("seed", checkpoint, "--run", run, "--proxies", proxies, *common).code == 0
        ledger = (run / "ledger.jsonl").read_bytes()
        told = tell("train", run, "--epochs", 2, "--warmup-targets", "initial")
        assert told.code == code, told.err
        if code:
            assert "--warmup-targets initial needs the mean" in told.err
            assert (run / "ledger.jsonl").read_bytes() == ledger
