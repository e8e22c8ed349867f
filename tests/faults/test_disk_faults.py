"""Failing disks and changed files; `benchmarks/faults.py --store-faults N` is the long form."""

import gc

import disk_faults
import pytest
import support
from trials import Outcome

SEED = 5


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        support.make_quick(patch.setattr)
        yield disk_faults.Workshop(tmp_path_factory.mktemp("disk"))


def carried_out(workshop, trials):
    outcome = Outcome()
    for trial in trials:
        disk_faults.attempt(workshop, trial, outcome)
    gc.collect()  # what a crash left open is closed in this test
    assert outcome.wrong == [], outcome
    return outcome


# A process that is killed in the middle leaves files open; here it goes on living.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", disk_faults.INJECTED)
def test_a_disk_that_fails_while_the_run_is_worked_on(workshop, fault):
    kind, _ = disk_faults.INJECTED[fault]
    stage = "seed" if kind == disk_faults.SPILLED else "train"
    number = max(1, workshop.counts[stage][kind] // 2)
    outcome = carried_out(workshop, [disk_faults.DiskTrial(stage, fault, number)])
    assert "did not happen" not in outcome.endings, outcome


@pytest.mark.slow
@pytest.mark.parametrize("damage", disk_faults.AT_REST)
def test_a_run_whose_files_changed(workshop, damage):
    carried_out(workshop, [disk_faults.RestTrial("seed", damage, SEED)])


@pytest.mark.parametrize(
    ("code", "lines", "problem"),
    [
        (2, ["globe-stream: x: the disk is full"], ""),
        (1, ["up epoch 1/2", "globe-stream: x: damaged"], ""),
        (0, [], "exit code 0"),
        (None, [], "exit code None"),
        (1, ["Traceback (most recent call last):", "globe-stream: x"], "exit code 1 with"),
        (2, ["globe-stream: x", "more"], "exit code 2 with"),
    ],
)
def test_what_counts_as_told(code, lines, problem):
    found = disk_faults.problem_of(disk_faults.Ended(code, tuple(lines)))
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_other_results_are_reported(workshop, monkeypatch):
    """A command that goes on with changed bytes, as if there were no checksums, is found out."""
    monkeypatch.setitem(workshop.results, "train", {})
    outcome = Outcome()
    trial = disk_faults.DiskTrial("train", "short write", 1)
    disk_faults.attempt(workshop, trial, outcome)
    (line,) = outcome.wrong
    assert line.startswith(f"{trial}: other results: up/")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_many_faults_of_every_kind(workshop):
    outcome = carried_out(workshop, disk_faults.plan(workshop, 40, SEED))
    assert outcome.trials == 40
    assert outcome.endings["told, then continued"] > 5, outcome
    assert outcome.endings["told, then restored"] > 5, outcome
