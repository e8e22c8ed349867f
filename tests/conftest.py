"""Fixtures that several test folders share."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import support
import torch
from hypothesis import HealthCheck, settings
from sample_runs import make_run, tiny_model

from globe_stream.cli.main import run as run_command_line

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
torch.set_num_threads(1)  # fixtures of modules come before those of tests, and last bits follow it

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@dataclass(frozen=True)
class Told:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, before and after, and the GEMM precision left as it was found."""
    torch.set_num_threads(1)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch):
    """Flushes only matter when the power fails; here they only cost time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def quick(monkeypatch):
    """Leave out what only costs time; see `support.make_quick`."""
    support.make_quick(monkeypatch.setattr)


@pytest.fixture
def tell(capsys) -> Callable[..., Told]:
    """Runs the command line in this process: `tell("status", path)`."""

    def call(*arguments: object) -> Told:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return Told(code, told.out, told.err)

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A read-only checkpoint of 24 experts of 12 x 20 a family, in three shards."""
    return support.write_checkpoint(tmp_path_factory.mktemp("model"), shards=3)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A tiny transformers model with experts, as a checkpoint folder."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def run(model, tmp_path_factory) -> Path:
    """A trained run of `model`, made without training."""
    return make_run(tmp_path_factory.mktemp("run") / "run", model)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A text long enough for a few windows."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(bytes(range(32, 127)) * 60)
    return path


def pytest_collection_finish() -> None:
    """What was imported stays: no garbage collection needs to look at it again."""
    gc.collect()
    gc.freeze()
