"""Weights & Biases as an optional mirror: offline without a network, the same run when resumed."""

import json
import socket
import sys

import pytest

from globe_stream.engine import trackers as tracker
from globe_stream.engine.metrics import MetricRow

pytest.importorskip("wandb")
pytestmark = pytest.mark.usefixtures("quick", "_no_account", "_no_network")


@pytest.fixture
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def _no_network(monkeypatch):
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def tracked(run):
    """Identifiers of the offline tracker runs in the run directory."""
    files = (run / "wandb").glob("offline-run-*/run-*.wandb")
    return sorted(path.stem.removeprefix("run-") for path in files)


@pytest.mark.slow
def test_offline_works_and_a_continued_run_keeps_its_id(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    common = ("--wandb-project", "test")
    told = tell("seed", checkpoint, "--run", run, "--families", "up", *common, "--json")
    assert told.code == 0, told.err
    json.loads(told.out)
    for epochs in (1, 2):
        arguments = ("--epochs", epochs, "--warmup-epochs", 1)
        assert tell("train", run, *arguments, *common).code == 0
    name = (run / "wandb-id").read_text()
    assert tracked(run) == [name] * 3


def test_without_a_project_nothing_is_tracked_or_imported(tmp_path, tell, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run, "--families", "up").code == 0
    assert not (run / "wandb").exists()
    told = tell("train", run, "--epochs", 1, "--wandb-project", "x", "--no-wandb")
    assert told.code == 0
    assert not (run / "wandb-id").exists()


def test_a_missing_package_is_said_in_one_line(tmp_path, tell, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    told = tell("seed", checkpoint, "--run", tmp_path / "run", "--wandb-project", "x")
    assert told.code == 2
    assert len(told.err.splitlines()) == 1
    assert "pip install 'globe-stream[wandb]'" in told.err


def test_rows_become_numbers_under_stage_and_family(tmp_path, monkeypatch):
    logged = []

    class Fake:
        @staticmethod
        def init(**given):
            logged.append(given)
            return Fake

        @staticmethod
        def log(numbers):
            logged.append(numbers)

        @staticmethod
        def finish():
            logged.append("finished")

    monkeypatch.setattr(tracker.importlib, "import_module", lambda _: Fake)
    sink = tracker.WandbSink(tmp_path, "project", {"a": 1})
    values = {"recon/relative_frobenius_error": 0.5, "alpha/popularity": [1], "x": None}
    sink.write(MetricRow(1.0, "train", "up", 3, None, values))
    sink.close()
    assert logged[0]["mode"] == "offline"
    assert logged[0]["id"] == (tmp_path / "wandb-id").read_text()
    assert logged[1:] == [{"train/up/recon/relative_frobenius_error": 0.5, "epoch": 3}, "finished"]


@pytest.mark.parametrize(("variable", "expected"), [("WANDB_API_KEY", None), ("WANDB_MODE", None)])
def test_an_account_or_a_mode_is_respected(monkeypatch, variable, expected):
    assert tracker._mode() == "offline"
    monkeypatch.setenv(variable, "online")
    assert tracker._mode() is expected
