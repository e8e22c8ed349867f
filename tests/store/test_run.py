"""A run directory changes atomically: a crash anywhere leaves the old or the new state."""

import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import support
from support import Crash, crashing

from globe_stream.errors import GlobeError, InputError
from globe_stream.io import files
from globe_stream.io.records import Record
from globe_stream.store import arrays
from globe_stream.store import run as run_module
from globe_stream.store.run import FORMAT, Run

NAMES = (
    "up/bank",
    "up/codes/count",
    "up/next/bank",
    "up/next/codes/count",
    "up/next/momentum",
    "up/partial/forces",
    "up/seed/bank",
    "up/seed/codes/count",
    "up/errors",
)
KEYS = ("up", "up:next", "up:partial")


@dataclass(frozen=True)
class Header(Record):
    model: str = "m"


@dataclass(frozen=True)
class Epoch(Record):
    epoch: int


def values(number):
    return np.full((4, 3), float(number))


def prepared(path):
    """A run after its first epoch, with a pass in progress."""
    run = Run.create(path, Header())
    run.commit(
        {"up": Epoch(1), "up:next": Epoch(1)},
        {
            "up/bank": values(1),
            "up/codes/count": values(2),
            "up/next/bank": values(3),
            "up/next/codes/count": values(4),
            "up/next/momentum": values(5),
            "up/errors": values(6),
        },
    )
    run.commit({"up:partial": Epoch(2)}, {"up/partial/forces": values(7)})
    run.close()
    return path


def second_epoch(run):
    """What training commits: moves in a chain, replaced arrays, and a dropped group."""
    run.commit(
        {"up": Epoch(2), "up:next": Epoch(2), "up:partial": None},
        {
            "up/next/bank": values(13),
            "up/next/codes/count": values(14),
            "up/next/momentum": values(15),
            "up/errors": values(16),
        },
        move=[
            ("up/bank", "up/seed/bank"),
            ("up/codes", "up/seed/codes"),
            ("up/next/bank", "up/bank"),
            ("up/next/codes", "up/codes"),
        ],
        drop=["up/partial"],
    )


def replaced_group(run):
    """A move onto something that is there, as training again from the seeds does."""
    run.commit(
        {"up": Epoch(0), "up:next": None, "up:partial": None},
        move=[("up/next/bank", "up/bank"), ("up/next/codes", "up/codes")],
        drop=["up/next", "up/partial"],
    )


def partial_again(run):
    """A checkpoint inside a pass that replaces the one before."""
    run.commit({"up:partial": Epoch(4)}, {"up/partial/forces": values(17)})


def seen(run):
    """Everything a reader of the run could see."""
    found = {name: float(arrays.read(run.array(name))[0, 0]) for name in NAMES if run.has(name)}
    return {**found, **{key: run.state(key, Epoch) for key in KEYS}}


def seen_at(path):
    with Run(path, writable=True) as run:
        return seen(run)


def crash_while(path, change, allowed):
    """Whether `change` ran to its end although only `allowed` file changes were possible."""
    run = Run(path, writable=True)
    try:
        with crashing(allowed):
            change(run)
    except Crash:
        return False
    finally:
        run.close()
    return True


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        second_epoch,
        replaced_group,
        partial_again,
    ],
)
def test_a_crash_at_any_step_leaves_the_old_or_the_new_state(tmp_path, change):
    start = prepared(tmp_path / "start")
    old = seen_at(start)
    with Run(shutil.copytree(start, tmp_path / "done"), writable=True) as run:
        change(run)
        new = seen(run)
    assert new != old
    met = []
    for allowed in range(1000):
        path = shutil.copytree(start, tmp_path / "crashed")
        finished = crash_while(path, change, allowed)
        found = seen_at(path)
        assert found in (old, new), f"after {allowed} changes: {found}"
        met.append(found == new)
        assert not list(path.glob("*.partial"))
        shutil.rmtree(path)
        if finished:
            break
    assert met == sorted(met), "a later crash must not undo what an earlier one kept"
    assert met[0] is False
    assert met[-1] is True
    assert 3 < sum(met) < len(met) - 3, "crashes must fall on both sides of the ledger row"


@pytest.mark.slow
@pytest.mark.parametrize("change", [second_epoch])
def test_a_crash_while_recovering_from_a_crash(tmp_path, change):
    start = prepared(tmp_path / "start")
    old = seen_at(start)
    with Run(shutil.copytree(start, tmp_path / "done"), writable=True) as run:
        change(run)
        new = seen(run)
    crashed_twice = 0
    for allowed in range(0, 1000, 9):
        path = shutil.copytree(start, tmp_path / "crashed")
        finished = crash_while(path, change, allowed)
        for again in (0, 1, 2, 3, 5, 8, 13, 21):
            try:
                with crashing(again):
                    Run(path, writable=True).close()
            except Crash:
                crashed_twice += 1
        assert seen_at(path) in (old, new)
        shutil.rmtree(path)
        if finished:
            break
    assert crashed_twice > 10


def test_create_that_crashed_can_be_given_again(tmp_path, checkpoint, tell):
    """Only the ledger makes a directory a run; what a crash left before it is no obstacle."""
    for allowed in range(1000):
        path = tmp_path / f"run{allowed}"
        try:
            with crashing(allowed):
                Run.create(path, Header()).close()
        except Crash:
            pass
        else:
            break
        if (path / "ledger.jsonl").exists() and (path / "ledger.jsonl").stat().st_size:
            assert Run(path, writable=True).header == Header().to_json()
            continue
        told = tell("seed", checkpoint, "--run", path, "--memory", "1MiB")
        assert "--memory" in told.err, f"after {allowed} changes: {told.err}"
    assert allowed > 3


def test_states_are_those_of_the_last_commit(tmp_path):
    with Run.create(tmp_path / "run", Header("m")) as run:
        run.commit({"a": Epoch(1), "b": Epoch(2)})
        run.commit({"a": None})
        assert tuple(run.state(key, Epoch) for key in "abc") == (None, Epoch(2), None)
    again = Run(tmp_path / "run", writable=False)
    assert (again.state("a", Epoch), again.state("b", Epoch)) == (None, Epoch(2))
    assert again.header == {"model": "m"}
    assert again.format == FORMAT


def test_the_store_is_one_zarr_hierarchy(tmp_path):
    import zarr

    path = prepared(tmp_path / "run")
    with Run(path, writable=True) as run:
        second_epoch(run)
    group = zarr.open_group(str(path / "run.zarr"), mode="r")
    assert group["up/next/bank"].shape == (4, 3)
    assert sorted(group["up"].group_keys()) == ["codes", "next", "seed"]
    assert sorted(group["up"].array_keys()) == ["bank", "errors"]


def test_a_commit_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = prepared(tmp_path / "run")
    before = support.tree(path)
    real = arrays.write

    def failing(target, source):
        if target.name == "momentum":
            raise OSError(28, "No space left on device")
        real(target, source)

    with Run(path, writable=True) as run:
        monkeypatch.setattr(arrays, "write", failing)
        with pytest.raises(InputError, match="the disk is full while writing the run's state"):
            second_epoch(run)
        monkeypatch.undo()
        assert support.tree(path) == {**before, "lock.pid": support.tree(path)["lock.pid"]}
        second_epoch(run)
        assert run.state("up", Epoch) == Epoch(2)


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    path = prepared(tmp_path / "run")
    usage = shutil.disk_usage(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 19))
    with Run(path, writable=True) as run:
        with pytest.raises(InputError, match=r"the disk is too full: .* needs .* are free"):
            second_epoch(run)
        assert run.state("up", Epoch) == Epoch(1)
        run.commit({"up": Epoch(9)})  # a row alone is small enough to try


def test_require_free_accepts_exactly_enough(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000 + 2**20))
    files.require_free(tmp_path, 1000, "it")
    with pytest.raises(InputError, match=r"it needs 1001 B, 1\.00 MiB are free"):
        files.require_free(tmp_path, 1001, "it")


def test_replaced_text_is_the_old_or_the_new(tmp_path):
    path = tmp_path / "config.toml"
    files.write_text(path, "old")
    for allowed in range(10):
        try:
            with crashing(allowed):
                files.write_text(path, "new")
        except Crash:
            assert path.read_text() in ("old", "new")
        else:
            break
    assert path.read_text() == "new"
    assert allowed == 1, "one rename makes the difference"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        Run(tmp_path / "nothing", writable=False)
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(GlobeError, match="empty"):
        Run(tmp_path, writable=False)
    (tmp_path / "ledger.jsonl").write_text('{"kind": "created", "format": 99}\n')
    with pytest.raises(InputError, match="run format 99"):
        Run(tmp_path, writable=True)


def test_erase_leaves_nothing_but_the_lock(tmp_path):
    path = prepared(tmp_path / "run")
    (path / "ledger.jsonl").write_text("damaged\n")
    with (
        Run.create(tmp_path / "other", Header()) as other,
        pytest.raises(InputError, match="held by"),
    ):
        Run.erase(other.path)
    Run.erase(path)
    assert sorted(child.name for child in path.iterdir()) == ["lock", "lock.pid"]
    assert not Run.exists(path)
    Run.create(path, Header()).close()
    assert Run.exists(path)


@pytest.mark.slow
def test_erase_can_be_repeated_after_a_crash(tmp_path):
    start = prepared(tmp_path / "start")
    for allowed in range(1000):
        path = shutil.copytree(start, tmp_path / f"run{allowed}")
        try:
            with crashing(allowed):
                Run.erase(path)
        except Crash:
            assert Run.exists(path)
            Run.erase(path)
        else:
            break
    assert allowed > 5


def test_a_run_that_cannot_be_opened_is_let_go(tmp_path):
    path = prepared(tmp_path / "run")
    (path / "ledger.jsonl").write_text("damaged\n")
    for _ in range(2):
        with pytest.raises(GlobeError, match="line 1 does not have its checksum"):
            Run(path, writable=True)


def test_spills_are_cleared(tmp_path):
    with Run.create(tmp_path / "run", Header()) as run:
        run.spill("a").write_text("b")
        run.clear_spill()
        run.clear_spill()
        assert not list(run.path.glob("spill*"))


def test_a_state_of_another_form_is_refused_in_one_line(tmp_path):
    @dataclass(frozen=True)
    class Longer(Record):
        epoch: int
        error: float

    with Run.create(tmp_path / "run", Header()) as run:
        run.commit({"up": Epoch(1), "gate": Longer(1, 0.5)})
        with pytest.raises(InputError, match=r"ledger\.jsonl: state 'up': error is missing\. \w"):
            run.state("up", Longer)
        with pytest.raises(InputError, match=r"state 'gate': error is not known\. \w"):
            run.state("gate", Epoch)
        assert run.state("gate", Longer) == Longer(1, 0.5)


FORMAT_1 = """\
{"config": {"device": "cpu", "seed": {"method": "svd"}, "selection": {"families": "up"}}, \
"fingerprint": {"files": {}, "revision": null}, "format": 1, "kind": "created", "model": "m", \
"model_type": "qwen2_moe", "revision": null, "units": [{"bases": 6, "d": 8, "experts": 12, \
"family": "up", "key": "up", "p": 6, "rank": 4}]}
{"drop": [], "kind": "commit", "move": [], "put": [], "sequence": 1, \
"states": {"budget": {"bytes": 1073741824}, "machine": {"device": "cpu"}}}
{"kind": "applied", "sequence": 1}
"""


@pytest.mark.parametrize("command", ["status", "train", "report", "verify"])
def test_a_run_of_the_version_before_is_refused_in_one_line(tmp_path, tell, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / "ledger.jsonl").write_text(FORMAT_1)
    before = support.tree(run)
    told = tell(command, run)
    assert told.code == 2
    assert told.err.splitlines()[-1].endswith(
        f"{run}: written in run format 1, this version reads {FORMAT}. "
        "Use the version that made it, or start over with --fresh"
    )
    assert len(told.err.splitlines()) == 1
    kept = {name: data for name, data in support.tree(run).items() if not name.startswith("lock")}
    assert kept == before


def test_what_another_process_is_writing_is_not_flushed(tmp_path, monkeypatch):
    """It may be renamed between being listed and being opened."""
    beside = tmp_path / "staging" / "up" / "partial" / "rank-001" / "codes"
    beside.mkdir(parents=True)
    (beside / "0.partial").touch()
    flushed = []
    monkeypatch.setattr(files, "_sync", flushed.append)
    run_module._write_below(tmp_path / "staging", {"up/partial/rank-002/codes": values(1)})
    own = tmp_path / "staging" / "up" / "partial" / "rank-002"
    assert {own / "codes" / "zarr.json", own, own.parent, tmp_path / "staging"} <= set(flushed)
    assert not any(path.is_relative_to(beside) for path in flushed)
