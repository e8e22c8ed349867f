"""A run that is killed or interrupted anywhere and continued is that of an undisturbed one."""

import json
import re
import shutil
import signal

import pytest
import support
from support import KILL, command, outcome

SEED = ("--checkpoint-every", "0", "--seed", "3")
TRAIN = ("--epochs", "4", "--warmup-epochs", "2", "--checkpoint-every", "0")


def seed_command(checkpoint, run, *more):
    return ["seed", str(checkpoint), "--run", str(run), *SEED, *more]


def train_command(run, *more):
    return ["train", str(run), *TRAIN, *more]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, checkpoint):
    """(seeded, trained) runs that nobody touched, and the number of events in each command."""
    folder = tmp_path_factory.mktemp("undisturbed")
    events = [support.events_of(seed_command(checkpoint, folder / "trained"), folder / "log")]
    shutil.copytree(folder / "trained", folder / "seeded")
    events.append(support.events_of(train_command(folder / "trained"), folder / "log"))
    return folder / "seeded", folder / "trained", events


def killed_and_continued(arguments, log, every):
    """Carry out a command that is killed at its `every`-th event each time; the kills it took."""
    kills = 0
    while (code := outcome(command, arguments, log, every, KILL)) != 0:
        assert code == -KILL, log.read_text()[-2000:]
        kills += 1
        assert kills < 100, "no progress between kills"
    return kills


def states(run):
    """What the ledger says of every unit, times left out."""
    from globe_stream.engine.records import PartialPass
    from globe_stream.factorization.records import GroupState, run_header
    from globe_stream.store.run import Run
    from globe_stream.training.schedule import ScheduleState

    opened = Run(run, writable=False)
    kept = {}
    kinds = {"": GroupState, ":next": ScheduleState, ":partial": PartialPass}
    for group in run_header(opened).groups:
        for suffix, kind in kinds.items():
            state = opened.state(f"{group.key}{suffix}", kind)
            values = {} if state is None else state.to_json()
            kept[f"{group.key}{suffix}"] = {name: value for name, value in values.items()
                                            if name not in ("seconds", "bytes_read")}  # fmt: skip
    return kept


def same(run, other):
    assert support.results(run) == support.results(other)
    assert states(run) == states(other)
    assert not list(run.glob("*.partial")), "leftovers are swept"


@pytest.mark.slow
@pytest.mark.parametrize("every", [59])
def test_kill_while_seeding(tmp_path, checkpoint, undisturbed, every):
    kills = killed_and_continued(
        seed_command(checkpoint, tmp_path / "run"), tmp_path / "log", every
    )
    assert kills >= undisturbed[2][0] // every - 1 > 1
    same(tmp_path / "run", undisturbed[0])


@pytest.mark.slow
@pytest.mark.parametrize("every", [149])
def test_kill_while_training(tmp_path, undisturbed, every):
    run = shutil.copytree(undisturbed[0], tmp_path / "run")
    kills = killed_and_continued(train_command(run), tmp_path / "log", every)
    assert kills >= undisturbed[2][1] // every - 1 > 1
    same(run, undisturbed[1])


@pytest.mark.slow
def test_kill_without_checkpoints_inside_passes(tmp_path, checkpoint, undisturbed):
    """Then a pass starts again; the number of commits differs, the results do not."""
    run, log = tmp_path / "run", tmp_path / "log"
    rare = ("--checkpoint-every", "1000")
    assert killed_and_continued(seed_command(checkpoint, run, *rare), log, 61) >= 2
    assert killed_and_continued(train_command(run, *rare), log, 89) >= 2
    same(run, undisturbed[1])


@pytest.mark.slow
def test_kill_with_a_bank_for_each_layer(tmp_path, checkpoint):
    fewer = ("--epochs", "2", "--warmup-epochs", "1")
    for name, every in (("whole", None), ("killed", 91)):
        run, log = tmp_path / name, tmp_path / f"{name}.log"
        arguments = seed_command(checkpoint, run, "--bank-scope", "layer", "--families", "gate")
        if every is None:
            assert outcome(command, arguments, log) == 0
            assert outcome(command, train_command(run, *fewer), log) == 0
        else:
            assert killed_and_continued(arguments, log, every) > 0
            assert killed_and_continued(train_command(run, *fewer), log, every) > 0
    same(tmp_path / "killed", tmp_path / "whole")
    assert len(states(tmp_path / "whole")) == 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_checkpoint_and_end_with_130(tmp_path, checkpoint, undisturbed, number):
    run, log = tmp_path / "run", tmp_path / "log"
    rare = ("--checkpoint-every", "1000")
    arguments = seed_command(checkpoint, run, *rare)
    assert outcome(command, arguments, log, 8, number) == 130
    told = log.read_text()
    assert f"{number.name}: saving the state of this pass" in told
    stopped = re.search(r"stopped after (\d+) of 24 experts; the same command continues", told)
    assert stopped, told
    assert "Traceback" not in told
    assert outcome(command, arguments, log) == 0
    assert f"continuing after {stopped[1]} of 24 experts" in log.read_text()
    arguments = train_command(run, *rare)
    assert outcome(command, arguments, log, 20, number) == 130
    assert json.loads(status(run))["state"] == "training"
    assert outcome(command, arguments, log) == 0
    same(run, undisturbed[1])


@pytest.mark.slow
def test_the_peak_of_memory_survives_a_kill_and_never_falls(tmp_path, checkpoint):
    run, log = tmp_path / "run", tmp_path / "log"
    arguments, peaks = seed_command(checkpoint, run), []
    while outcome(command, arguments, log, 55, KILL) != 0:
        peaks.append(json.loads(status(run))["peak_memory_bytes"])
    peaks.append(json.loads(status(run))["peak_memory_bytes"])
    assert len(peaks) > 3
    assert all(peak > 1 << 20 for peak in peaks)
    assert peaks == sorted(peaks)


def status(run):
    from globe_stream.commands.status import status as library_status

    return json.dumps(library_status(run).to_json())


@pytest.mark.slow
def test_interrupted_again_and_again(tmp_path, undisturbed):
    """Each time a little further; a pass interrupted in every batch is still the same pass."""
    run, log = shutil.copytree(undisturbed[0], tmp_path / "run"), tmp_path / "log"
    arguments = train_command(run, "--checkpoint-every", "1000")
    interrupts = 0
    while (code := outcome(command, arguments, log, 40, signal.SIGINT)) != 0:
        assert code == 130, log.read_text()[-2000:]
        interrupts += 1
        assert interrupts < 60
    assert interrupts >= 3
    same(run, undisturbed[1])


@pytest.mark.slow
def test_two_runs_are_bit_identical(tmp_path, checkpoint, undisturbed):
    run, log = tmp_path / "run", tmp_path / "log"
    assert outcome(command, seed_command(checkpoint, run), log) == 0
    assert outcome(command, train_command(run), log) == 0
    same(run, undisturbed[1])


@pytest.mark.slow
def test_another_seed_gives_another_run(tmp_path, checkpoint, undisturbed):
    arguments = [*seed_command(checkpoint, tmp_path / "run"), "--seed", "4"]
    assert outcome(command, arguments, tmp_path / "log") == 0
    assert support.results(tmp_path / "run") != support.results(undisturbed[0])
