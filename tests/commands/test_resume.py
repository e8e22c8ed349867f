"""A run that is killed or interrupted anywhere and continued is that of an undisturbed one."""

import re
import shutil
import signal

import pytest
import support
from support import KILL, command, outcome

from globe_stream.commands.status import status

SEED = ("--checkpoint-every", "0", "--seed", "3")
TRAIN = ("--epochs", "3", "--warmup-epochs", "1", "--checkpoint-every", "0")


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


def killed_and_continued(arguments, log, every, after=lambda: None):
    """Carry out a command that is killed at its `every`-th event each time; the kills it took.

    `after` is called after every process.
    """
    kills = 0
    while (code := outcome(command, arguments, log, every, KILL)) != 0:
        assert code == -KILL, log.read_text()[-2000:]
        kills += 1
        assert kills < 100, "no progress between kills"
        after()
    after()
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
def test_kill_while_seeding(tmp_path, checkpoint, undisturbed):
    """The peak of memory survives the kills and never falls."""
    run, peaks = tmp_path / "run", []
    kills = killed_and_continued(
        seed_command(checkpoint, run),
        tmp_path / "log",
        55,
        lambda: peaks.append(status(run).peak_memory_bytes),
    )
    assert kills >= undisturbed[2][0] // 55 - 1 > 1
    same(run, undisturbed[0])
    assert len(peaks) > 3
    assert all(peak > 1 << 20 for peak in peaks)
    assert peaks == sorted(peaks)


@pytest.mark.slow
def test_kill_while_training(tmp_path, undisturbed):
    run = shutil.copytree(undisturbed[0], tmp_path / "run")
    kills = killed_and_continued(train_command(run), tmp_path / "log", 149)
    assert kills >= undisturbed[2][1] // 149 - 1 > 1
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
def test_interrupts_checkpoint_and_end_with_130(tmp_path, checkpoint, undisturbed):
    """Both signals, one after the other, while seeding and while training."""
    run, log = tmp_path / "run", tmp_path / "log"
    rare = ("--checkpoint-every", "1000")
    arguments = seed_command(checkpoint, run, *rare)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert outcome(command, arguments, log, 8, number) == 130
        told = log.read_text().rsplit(support.BEGUN, 1)[1]
        assert f"{number.name}: saving the state of this pass" in told
        stopped = re.search(r"stopped after (\d+) of 24 experts; the same command continues", told)
        assert stopped, told
        assert "Traceback" not in told
    assert outcome(command, arguments, log) == 0
    assert f"continuing after {stopped[1]} of 24 experts" in log.read_text()
    arguments = train_command(run, *rare)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert outcome(command, arguments, log, 20, number) == 130
        assert status(run).state == "training"
    assert outcome(command, arguments, log) == 0
    same(run, undisturbed[1])


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
def test_another_seed_gives_another_run(tmp_path, checkpoint, undisturbed):
    arguments = [*seed_command(checkpoint, tmp_path / "run"), "--seed", "4"]
    assert outcome(command, arguments, tmp_path / "log") == 0
    assert support.results(tmp_path / "run") != support.results(undisturbed[0])
