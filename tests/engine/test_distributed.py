"""Two processes do what one does, the same each time, whoever dies in between."""

import json
import shutil
import signal

import jobs
import pytest
import support
import torch

pytestmark = pytest.mark.slow

SEED = ("--checkpoint-every", "0", "--seed", "3", "--families", "up", "--rank", "9")
TRAIN = ("--epochs", "3", "--warmup-epochs", "1", "--checkpoint-every", "0")


def seed_command(checkpoint, run):
    return ["seed", str(checkpoint), "--run", str(run), *SEED]


def train_command(run):
    return ["train", str(run), *TRAIN, "--json"]


def succeeded(codes, log):
    told = "".join(path.read_text()[-1500:] for path in sorted(log.parent.glob(f"{log.stem}.*")))
    assert set(codes) == {0}, told


@pytest.fixture(scope="module")
def pair(checkpoint, tmp_path_factory):
    """(seeded, trained) by two processes."""
    folder = tmp_path_factory.mktemp("pair")
    log = folder / "log"
    succeeded(jobs.job(seed_command(checkpoint, folder / "trained"), log, 2), log)
    shutil.copytree(folder / "trained", folder / "seeded")
    succeeded(jobs.job(train_command(folder / "trained"), log, 2), log)
    return folder / "seeded", folder / "trained"


def errors_of(run):
    from globe_stream.engine.status import run_status
    from globe_stream.store.run import Run

    status = run_status(Run(run, writable=False))
    return status.relative_frobenius_error, status.families["up"].median_support


def test_two_processes_find_what_one_finds(checkpoint, pair, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    for arguments in (seed_command(checkpoint, run), train_command(run)):
        assert support.outcome(support.command, arguments, log) == 0
    alone, together = errors_of(run), errors_of(pair[1])
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1] == alone[1]


def test_the_first_process_alone_prints_and_writes_metrics(pair):
    first, second = (pair[0].parent / f"log.{rank}" for rank in (0, 1))
    text = first.read_text()
    (document,) = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert document["machine"]["processes"] == 2
    assert text.count("epoch 3/3") == 1
    told = [line for line in second.read_text().splitlines() if not line.startswith(("--", "ev"))]
    assert [line for line in told if line] == []
    rows = [json.loads(line) for line in (pair[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["stage"] == "train"] == [1, 2, 3]


def test_other_commands_are_refused_once(pair, tmp_path):
    """And what `status` says of the run in one process stays as it was."""
    assert jobs.job(["status", str(pair[1])], tmp_path / "log", 2) == [2, 2]
    told = "".join((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert told.count("status: works in one process. Give it without torchrun") == 1


def test_what_one_process_finds_wrong_is_said_once(tmp_path):
    tensors = support.expert_matrices(2, 12, 12, 20)
    tensors[support.NAME.format(layer=1, expert=11, family="up")][0, 0] = torch.nan
    model = support.write_checkpoint(tmp_path / "model", tensors)
    assert jobs.job(seed_command(model, tmp_path / "run"), tmp_path / "log", 2) == [1, 2]
    told = "".join((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert told.count("globe-stream: ") == 1
    assert "up of layer 1, expert 11 has 1 elements that are NaN or Inf" in told


def test_the_same_bytes_each_time(checkpoint, pair, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    succeeded(jobs.job(seed_command(checkpoint, run), log, 2), log)
    assert support.results(run) == support.results(pair[0])
    succeeded(jobs.job(train_command(run), log, 2), log)
    assert support.results(run) == support.results(pair[1])


@pytest.mark.parametrize(("victim", "event"), [(1, 5), (0, 40)])
def test_a_process_that_dies_ends_the_job_and_the_same_command_continues(
    pair, tmp_path, victim, event
):
    run, log = shutil.copytree(pair[0], tmp_path / "run"), tmp_path / "log"
    codes = jobs.job(train_command(run), log, 2, event, victim)
    assert codes[victim] == -support.KILL
    assert codes[1 - victim] == 1
    told = (tmp_path / f"log.{1 - victim}").read_text()
    assert told.count("globe-stream: another process of this job ended") == 1
    assert "Traceback" not in told
    succeeded(jobs.job(train_command(run), log, 2), log)
    assert support.results(run) == support.results(pair[1])


def test_a_signal_to_one_process_stops_all_after_a_checkpoint(pair, tmp_path):
    run, log = shutil.copytree(pair[0], tmp_path / "run"), tmp_path / "log"
    assert jobs.job(train_command(run), log, 2, 5, number=signal.SIGTERM) == [130, 130]
    told = "".join((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))
    assert told.count("globe-stream: up epoch") == 1
    assert "stopped after" in told
    succeeded(jobs.job(train_command(run), log, 2), log)
    assert "continuing after" in (tmp_path / "log.0").read_text()
    assert support.results(run) == support.results(pair[1])


@pytest.mark.parametrize(("victim", "every"), [(0, 53), (1, 23)])
def test_seeding_survives_the_death_of_any_process_anywhere(
    checkpoint, pair, tmp_path, victim, every
):
    """At every so many events, which are more than those of one checkpoint."""
    run, log = tmp_path / "run", tmp_path / "log"
    kills = 0
    while (codes := jobs.job(seed_command(checkpoint, run), log, 2, every, victim)) != [0, 0]:
        assert codes[victim] == -support.KILL, log.with_suffix(f".{1 - victim}").read_text()[-2000:]
        kills += 1
        assert kills < 40
    assert kills
    assert support.results(run) == support.results(pair[0])
    assert not list(run.glob("*.partial"))


def test_a_run_continues_with_another_number_of_processes(pair, tmp_path):
    """In the midst of an epoch of two processes that was checkpointed."""
    run, log = shutil.copytree(pair[0], tmp_path / "run"), tmp_path / "log"
    assert jobs.job(train_command(run), log, 2, 5) != [0, 0]
    succeeded(jobs.job(train_command(run), tmp_path / "three", 3), tmp_path / "three")
    assert "worked on by 2 processes before, now by 3" in (tmp_path / "three.0").read_text()
    assert errors_of(run)[0] == pytest.approx(errors_of(pair[1])[0], rel=1e-4)
