"""--json prints exactly one JSON document on standard output, with the contract's keys."""

import json
import tomllib

import pytest

from globe_stream.cli.main import run as run_cli
from globe_stream.config import SeedConfig, SelectionConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

STATUS = {
    "format": int, "run": str, "state": str, "config": dict, "fingerprint": str,
    "peak_memory_bytes": int, "memory_budget_bytes": int, "bytes_read": int, "seconds": float,
    "families": dict,
}  # fmt: skip
FAMILY = {
    "experts": int, "p": int, "d": int, "rank": int, "bases": int, "parameter_ratio": float,
    "svd_equal_parameters_relative_error": float, "seeding_method": str,
    "explained_variance": float, "epoch": int, "passes": int, "relative_frobenius_error": float,
    "median_support": float, "temperature": float, "activation_lambda": float,
}  # fmt: skip
STAMPS = {"time", "stage", "family", "epoch", "step"}
TRAIN_METRICS = {
    "recon/relative_frobenius_error", "alpha/median_support", "alpha/temperature",
    "bank/coherence_offdiag_max", "health/cholesky_fallbacks", "io/bytes_read", "time/seconds",
    "recon/by_layer", "alpha/mean_support", "alpha/p95_support", "alpha/entropy",
    "alpha/pruned_fraction", "alpha/popularity", "alpha/support_overlap", "bank/norm_min",
    "bank/norm_max", "health/nonfinite", "health/condition_max", "schedule/lambda",
    "schedule/beta", "io/bytes_per_second", "memory/peak_bytes", "alpha/zero_fraction",
    "recon/global_relative_frobenius_error", "regularization/lambda_a_share",
    "regularization/lambda_a_condition_before", "regularization/lambda_a_condition_after",
    "regularization/lambda_b_shrinkage", "regularization/lambda_b_condition_before",
    "regularization/lambda_b_condition_after", "health/nonfinite_adapters",
    "health/nonfinite_bank", "health/nonfinite_codes",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, checkpoint):
    path = tmp_path_factory.mktemp("trained") / "run"
    assert run_cli(["seed", str(checkpoint), "--run", str(path)]) == 0
    arguments = ["--epochs", "3", "--warmup-epochs", "1"]
    assert run_cli(["train", str(path), *arguments]) == 0
    return path


def only_document(told):
    assert told.code == 0, told.err
    document = json.loads(told.out)  # refuses anything before or after
    assert told.out.count("\n") == 1
    return document


def has(document, kinds):
    assert set(kinds) <= set(document)
    for name, kind in kinds.items():
        assert isinstance(document[name], kind), name


@pytest.mark.slow
def test_seed_train_and_status_end_with_the_same_document(tmp_path, tell, checkpoint):
    run = tmp_path / "run"
    seeded = only_document(tell("seed", checkpoint, "--run", run, "--json"))
    assert only_document(tell("status", run, "--json")) == seeded
    trained = only_document(tell("train", run, "--epochs", 2, "--warmup-epochs", 1, "--json"))
    assert only_document(tell("status", run, "--json")) == trained
    assert (seeded["state"], trained["state"]) == ("seeded", "trained")
    for document, epoch in ((seeded, 0), (trained, 2)):
        has(document, STATUS)
        assert list(document["families"]) == ["up", "gate"]
        for family in document["families"].values():
            has(family, FAMILY)
            assert (family["epoch"], family["passes"]) == (epoch, 4 + epoch)
            assert (family["experts"], family["p"], family["d"]) == (24, 12, 20)
            assert (family["rank"], family["bases"]) == (9, 6)
            assert 0 < family["explained_variance"] <= 1
    assert seeded["fingerprint"] == trained["fingerprint"]
    assert trained["bytes_read"] == seeded["bytes_read"] + 2 * 2 * 24 * 12 * 20 * 2
    assert 0 < trained["peak_memory_bytes"] <= trained["memory_budget_bytes"]


def test_inspect(tell, checkpoint):
    document = only_document(tell("inspect", checkpoint, "--json"))
    has(document, {"format": int, "model": str, "model_type": str, "layout": str, "shards": int,
                   "bytes": int, "families": dict})  # fmt: skip
    assert "revision" in document
    assert document["shards"] == 3
    for family in ("up", "gate"):
        assert document["families"][family] == {
            "experts": 24, "p": 12, "d": 20, "dtype": "BF16", "bytes": 24 * 12 * 20 * 2,
            "layers": [0, 1], "experts_per_layer": 12,
        }  # fmt: skip


@pytest.mark.slow
def test_plan_prices_what_seed_and_train_do(tell, checkpoint, trained):
    arguments = ("--epochs", 3, "--warmup-epochs", 1, "--memory", "2GiB", "--json")
    document = only_document(tell("plan", checkpoint, *arguments))
    assert document["memory_budget_bytes"] == 2 << 30
    assert 0 < document["peak_memory_bytes"] <= 2 << 30
    assert 0 < document["least_memory_bytes"] <= 2 << 30
    assert document["epoch_bytes_read"] == 2 * 24 * 12 * 20 * 2
    assert document["passes"] == 4 + 3
    group = document["units"]["up"]
    assert (group["experts"], group["p"], group["d"], group["rank"], group["bases"]) == (
        24, 12, 20, 9, 6)  # fmt: skip
    assert group["svd_rank"] == (24 * 12 * 9 + 6 * 9 * 20) // (24 * 32)
    assert {stage["stage"] for stage in document["stages"]} >= {"up/train", "up/seed/measure"}
    done = json.loads(tell("status", trained, "--json").out)
    assert document["bytes_read"] == done["bytes_read"]
    shown = done["families"]["up"]["parameter_ratio"]
    assert shown <= group["parameter_ratio"] <= shown + 6 / (12 * 20)


def test_plan_makes_nothing(tmp_path, tell, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(checkpoint.iterdir())
    only_document(tell("plan", checkpoint, "--json"))
    assert list(tmp_path.iterdir()) == []
    assert sorted(checkpoint.iterdir()) == before


@pytest.mark.slow
def test_people_get_tables_on_stdout_and_progress_on_stderr(tmp_path, tell, checkpoint):
    told = tell("seed", checkpoint, "--run", tmp_path / "run")
    assert "relF" in told.out
    assert "memory of up/seed/statistics: priced" in told.err
    assert "memory of" not in told.out
    for arguments in (("inspect", checkpoint), ("status", tmp_path / "run"), ("plan", checkpoint)):
        told = tell(*arguments)
        assert told.code == 0
        assert "up" in told.out


@pytest.mark.slow
def test_metrics_have_the_published_names(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(set(row) >= STAMPS for row in rows)
    epochs = [row for row in rows if row["stage"] == "train"]
    assert [(row["family"], row["epoch"]) for row in epochs] == [
        (family, epoch) for family in ("up", "gate") for epoch in (1, 2, 3)
    ]
    for row in epochs:
        assert set(row) >= TRAIN_METRICS
        assert row["health/nonfinite"] == 0
        assert row["io/bytes_read"] == 24 * 12 * 20 * 2
        assert len(row["alpha/popularity"]) == 6
        assert set(row["recon/by_layer"]) == {"0", "1"}
    peaks = [row for row in rows if "memory/price_bytes" in row]
    assert {row["stage"] for row in peaks} >= {"seed/statistics", "seed/measure", "train/memory"}
    assert all(row["memory/price_bytes"] > 0 < row["memory/peak_bytes"] for row in peaks)


def test_the_run_directory_has_the_published_files(trained):
    names = {child.name for child in trained.iterdir()}
    assert names >= {"run.zarr", "ledger.jsonl", "metrics.jsonl", "config.toml"}
    for name in ("bank", "codes/indices", "codes/values", "codes/count"):
        assert (trained / "run.zarr" / "up" / name / "zarr.json").exists()


def test_config_toml_gives_the_configuration_back(trained, checkpoint):
    tables = tomllib.loads((trained / "config.toml").read_text())
    assert tables["model"].pop("model") == str(checkpoint)
    assert SelectionConfig.from_mapping(tables["model"], "config.toml") == SelectionConfig()
    assert SeedConfig.from_mapping(tables["seed"], "config.toml") == SeedConfig()
    expected = TrainConfig(epochs=3, warmup_epochs=1)
    assert TrainConfig.from_mapping(tables["train"], "config.toml") == expected


def test_help_shows_defaults_and_ranges(tell):
    told = tell("train", "--help")
    assert told.code == 0
    assert "--momentum" in told.out
    assert "[0 to 0.99]" in " ".join(told.out.split())
    assert tell("--version").out.startswith("globe-stream, version")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["status", "nowhere", "--json"], 2, "nowhere: not a run directory"),
    (["train", "nowhere", "--epochs", "x", "--json"], 2, "'x' is not a valid"),
    (["seed", "--json"], 2, "Missing argument 'MODEL'. See globe-stream seed --help"),
    (["verify", "nowhere", "--json"], 2, "nowhere: does not exist"),
])  # fmt: skip
def test_an_error_is_one_document_and_one_line(tell, arguments, code, words):
    told = tell(*arguments)
    assert told.code == code
    assert told.out.count("\n") == 1
    document = json.loads(told.out)
    assert document == {"format": 1, "error": document["error"]}
    assert document["error"]["exit_code"] == code
    assert words in document["error"]["message"]
    assert told.err == f"globe-stream: {document['error']['message']}\n"
    assert tell(*arguments[:-1]).out == ""


def test_an_interruption_is_a_document_too(tell, monkeypatch):
    from globe_stream.commands import status

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "status", interrupted)
    told = tell("status", "run", "--json")
    assert json.loads(told.out)["error"]["exit_code"] == told.code == 130


@pytest.mark.slow
def test_problems_that_verify_finds_are_one_document(tell, tmp_path, checkpoint):
    run = tmp_path / "run"
    assert tell("seed", checkpoint, "--run", run).code == 0
    chunk = next(path for path in (run / "run.zarr" / "up" / "bank" / "c").rglob("*")
                 if path.is_file())  # fmt: skip
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    told = tell("verify", run, "--json")
    assert told.code == 1
    assert json.loads(told.out)["ok"] is False
    assert told.err.endswith(f"globe-stream: {run}: 1 problem found\n")
