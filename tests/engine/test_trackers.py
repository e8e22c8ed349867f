"""Trackers mirror the metrics: offline without a network, the same run when resumed."""

import json
import socket
import sys

import pytest
import wandb_file

from globe_stream.config import RuntimeConfig, SeedConfig, SelectionConfig, TrainConfig
from globe_stream.engine import wandb_tracker as tracker
from globe_stream.engine.metrics import MetricRow
from globe_stream.engine.trackers import tracked

pytest.importorskip("wandb")
pytestmark = pytest.mark.usefixtures("quick", "_no_account", "_no_network")


@pytest.fixture
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("SAVE_REQUIREMENTS", "DISABLE_STATS"):  # lists of packages, sampling: not ours
        monkeypatch.setenv(f"WANDB_X_{name}", str(name.startswith("DISABLE")).lower())


@pytest.fixture
def _no_network(monkeypatch):
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def offline_ids(run):
    """Identifiers of the offline tracker runs in the run directory."""
    files = (run / "wandb").glob("offline-run-*/run-*.wandb")
    return sorted(path.stem.removeprefix("run-") for path in files)


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


def records(run):
    """Every record of the offline tracker runs below `run`, read back without the network."""
    paths = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    return [wandb_file.records(path) for path in paths]


@pytest.mark.slow
def test_an_offline_run_holds_configuration_metrics_and_pictures(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    common = ("--wandb-project", "test", "--wandb-group", "several", "--memory", "2GiB")
    told = tell(
        "seed", checkpoint, "--run", run, "--bases", 5, "--method", "svd", *common, "--json"
    )
    assert told.code == 0, told.err
    json.loads(told.out)
    options = ("--epochs", 2, "--warmup-epochs", 1, "--lambda-b", 0.002, "--target-support", 3)
    told = tell("train", run, *options, *common)
    assert told.code == 0, told.err
    assert offline_ids(run) == [(run / "wandb-id").read_text()] * 2, "a continued run keeps its id"
    seeded, trained = records(run)

    config = wandb_file.configuration(trained)
    status = json.loads(tell("status", run, "--json").out)
    assert config["seeding_method"] == "svd"
    assert config["m"] == {"up": 5, "gate": 5}
    assert config["r"] == {"up": 9, "gate": 9}
    assert (config["target_support"], config["lambda_b"]) == (3, 0.002)
    assert config["families"]["up"] == {"N": 24, "p": 12, "d": 20, "m": 5, "r": 9, "banks": 1}
    assert config["model"] == str(checkpoint)
    assert config["fingerprint"] == status["fingerprint"]
    assert config["machine"] == status["machine"]
    for section, model in (("selection", SelectionConfig), ("seed", SeedConfig),
                           ("train", TrainConfig), ("runtime", RuntimeConfig)):  # fmt: skip
        own = wandb_file.configuration(seeded) if section in ("selection", "seed") else config
        assert set(own[section]) == set(model.model_fields), section
    assert [wandb_file.group(part) for part in (seeded, trained)] == ["several"] * 2

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["stage"] == "train"]
    logged = [
        row for row in wandb_file.history(trained) if any(name.startswith("train/") for name in row)
    ]
    by_epoch = {(name.split("/")[1], row["epoch"]): row for row in logged for name in row
                if name.startswith("train/") and "epoch" in row}  # fmt: skip
    for row in epochs:
        kept, prefix = by_epoch[row["family"], row["epoch"]], f"train/{row['family']}"
        for name, value in row.items():
            if isinstance(value, (int, float)) and name not in ("time", "epoch", "step"):
                assert kept[f"{prefix}/{name}"] == pytest.approx(value), name
        for layer, error in row["recon/by_layer"].items():
            assert kept[f"{prefix}/recon/by_layer/{layer}"] == pytest.approx(error)
        histogram = kept[f"{prefix}/alpha/popularity"]
        assert histogram["_type"] == "histogram"
        assert sum(histogram["values"]) == 5
    seeds = {name for row in wandb_file.history(seeded) for name in row}
    assert {"seed/proxies/up/energy_captured", "seed/atoms/up/explained_variance",
            "seed/atoms/gate/alpha/popularity", "seed/measure/up/recon/by_layer/1",
            "seed/baseline/gate/recon/global_relative_frobenius_error"} <= seeds  # fmt: skip

    steps = [row["_step"] for row in wandb_file.history(seeded) + wandb_file.history(trained)]
    assert steps == sorted(steps), "a continued run goes on where it stood"
    assert max(steps) == len(rows) - 1
    pictures = {name: value for row in wandb_file.history(trained) for name, value in row.items()
                if name.startswith("pictures/")}  # fmt: skip
    assert "pictures/error by epoch" in pictures
    for value in pictures.values():
        assert value["_type"] == "image-file"
        assert list((run / "wandb").glob(f"offline-run-*/files/{value['path']}"))


@pytest.mark.slow
def test_the_points_of_a_sweep_are_runs_of_one_group(tmp_path, tell, checkpoint):
    command = ("sweep", checkpoint, "--families", "up", "--set", "bases=3,4", "--out",
               tmp_path / "sizes", "--wandb-project", "test", "--memory", "2GiB")  # fmt: skip
    told = tell(*command, "--epochs", 1, "--warmup-epochs", 0)
    assert told.code == 0, told.err
    runs = sorted((tmp_path / "sizes/runs").iterdir())
    assert [run.name for run in runs] == ["bases=3", "bases=4"]
    for run in runs:
        (part,) = records(run)
        assert wandb_file.group(part) == "sizes"
        names = {name for row in wandb_file.history(part) for name in row}
        assert {"seed/measure/up/recon/relative_frobenius_error",
                "train/up/recon/relative_frobenius_error"} <= names  # fmt: skip
        assert wandb_file.configuration(part)["m"] == {"up": int(run.name[-1])}
    assert tell(*command).code == 0
    assert all(len(records(run)) == 2 for run in runs), "the same runs, continued"
    assert all((run / "wandb-id").exists() for run in runs)


@pytest.mark.slow
def test_tensorboard_holds_the_same(tmp_path, tell, checkpoint):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    told = tell("seed", checkpoint, "--run", run, "--families", "up", "--tensorboard")
    assert told.code == 0, told.err
    assert tell("train", run, "--epochs", 2, "--warmup-epochs", 1, "--tensorboard").code == 0
    events = EventAccumulator(
        str(run / "tensorboard"), size_guidance={"images": 0, "histograms": 0}
    )
    events.Reload()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("recon/relative_frobenius_error", "alpha/median_support"):
        expected = [(row["epoch"], row[name]) for row in rows if row["stage"] == "train"]
        found = [(event.step, event.value) for event in events.Scalars(f"train/up/{name}")]
        assert [step for step, _ in found] == [1, 2]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert len(events.Scalars("train/up/recon/by_layer/1")) == 2
    assert len(events.Histograms("train/up/alpha/popularity")) == 2
    assert "pictures/error by epoch" in events.Tags()["images"]
    assert b"seeding_method" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("flag", "module"), [("--wandb-project=x", "wandb"), ("--tensorboard", "tensorboard")]
)
def test_a_missing_library_leaves_a_run_that_continues(
    tmp_path, tell, checkpoint, monkeypatch, flag, module
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        patch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
        told = tell("seed", checkpoint, "--run", run, "--families", "up", flag)
        assert told.code == 2
        assert len(told.err.splitlines()) == 1
        assert f"pip install 'globe-stream[{module}]'" in told.err
    assert tell("seed", checkpoint, "--run", run, "--families", "up").code == 0


def test_rows_become_numbers_series_and_distributions():
    values = {
        "recon/relative_frobenius_error": 0.5, "alpha/popularity": [1, None, 2], "x": None,
        "recon/by_layer": {"0": 0.25, "1": 0.75}, "schedule/rejected": False, "note": "text",
        "method_stats": {"seconds": {"nnls": 2}, "kind": "a"}, "empty": [],
    }  # fmt: skip
    found = tracked(MetricRow(1.0, "train", "up", 3, None, values))
    assert found.numbers == {
        "train/up/recon/relative_frobenius_error": 0.5, "train/up/recon/by_layer/0": 0.25,
        "train/up/recon/by_layer/1": 0.75, "train/up/schedule/rejected": False,
        "train/up/method_stats/seconds/nnls": 2,
    }  # fmt: skip
    assert found.distributions == {"train/up/alpha/popularity": [1, 2]}


@pytest.mark.parametrize(("variable", "expected"), [("WANDB_API_KEY", None), ("WANDB_MODE", None)])
def test_an_account_or_a_mode_is_respected(monkeypatch, variable, expected):
    assert tracker._mode() == "offline"
    monkeypatch.setenv(variable, "online")
    assert tracker._mode() is expected
