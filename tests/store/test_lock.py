"""One process at a time works on a run directory."""

import os
import time
from dataclasses import dataclass

import pytest
import support

from globe_stream.errors import InputError
from globe_stream.io.records import Record
from globe_stream.store.lock import RunLock
from globe_stream.store.run import Run


@dataclass(frozen=True)
class Header(Record):
    model: str = "m"


def hold(directory, ready):
    with RunLock(directory):
        ready.touch()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    Run.create(tmp_path / "run", Header()).close()
    process = support.start(hold, tmp_path / "run", tmp_path / "ready")
    while not (tmp_path / "ready").exists():
        assert process.exitcode is None
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_with_exit_code_2(tmp_path, holder, tell):
    for arguments in (("train", tmp_path / "run"),):
        told = tell(*arguments)
        assert told.code == 2
        assert told.out == ""
        assert f"held by another process (pid {holder.pid})" in told.err
        assert len(told.err.splitlines()) == 1


def test_the_lock_goes_with_its_holder(tmp_path, holder):
    with pytest.raises(InputError, match="held by another process"):
        Run(tmp_path / "run", writable=True)
    holder.kill()
    holder.join()
    with Run(tmp_path / "run", writable=True) as run:
        assert run.header == Header().to_json()


def test_reading_needs_no_lock(tmp_path, holder):
    del holder
    assert Run(tmp_path / "run", writable=False).header == Header().to_json()


def test_the_same_process_is_refused_too_until_release(tmp_path):
    first = RunLock(tmp_path)
    with pytest.raises(InputError, match=str(os.getpid())):
        RunLock(tmp_path)
    first.close()
    first.close()
    RunLock(tmp_path).close()
