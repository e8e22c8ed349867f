"""`doctor`: what the machine can do, as a table and as a document."""

import json

import pytest
import torch
from strict_device import strict

from globe_stream.commands import doctor
from globe_stream.commands.plan import plan
from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine import rates


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(rates, "SIDES", (64,))
    monkeypatch.setattr(doctor, "WRITTEN", 1 << 20)


def test_the_document_names_machine_devices_and_rates(tell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = json.loads(tell("doctor", "--json").out)
    assert document["torch"] == torch.__version__
    assert document["memory_bytes"] > document["memory_available_bytes"] > 0
    cpu = document["devices"]["cpu"]
    assert cpu["usable"]
    assert set(cpu["operations"].values()) == {"cpu"}
    assert cpu["gemm_flops"] > 1e6
    assert document["disk"]["folder"] == str(tmp_path)
    assert "run" not in document
    assert list(tmp_path.iterdir()) == []


def test_operations_that_a_device_lacks_are_said_to_run_on_the_cpu(tell):
    with strict("mps"):
        document = json.loads(tell("doctor", "--json").out)
        told = tell("doctor").out
    assert document["device"] == "mps"
    mps = document["devices"]["mps"]
    assert (mps["operations"]["cholesky"], mps["operations"]["eigh"]) == ("mps", "cpu")
    assert "not currently implemented" in mps["faults"]["eigh"]
    assert "is not available" in document["devices"]["cuda"]["reason"]
    line = next(line for line in told.splitlines() if line.startswith("eigh"))
    assert line.split() == ["eigh", "cpu", "cpu"]


@pytest.mark.slow
def test_with_a_model_it_says_what_a_run_would_take(tell, checkpoint):
    document = json.loads(tell("doctor", checkpoint, "--bases", "4", "--json").out)
    run, planned = (
        document["run"],
        json.loads(tell("plan", checkpoint, "--bases", "4", "--json").out),
    )
    assert run["epoch_flops"] == planned["epoch_flops"]
    rate = document["devices"]["cpu"]["gemm_flops"]
    assert run["computing_seconds"] == pytest.approx(planned["flops"] / rate / 0.7)
    assert run["seconds"] >= max(run["computing_seconds"], run["reading_seconds"])
    assert "seeding and" in tell("doctor", checkpoint, "--bases", "4").out


def test_the_time_of_a_run_is_that_of_its_plan(checkpoint):
    options = (SelectionConfig(), SeedConfig(bases=4), TrainConfig(epochs=7), RuntimeConfig())
    planned = plan(str(checkpoint), *options)
    assert doctor.run_time(planned, 7).seconds == planned.seconds
