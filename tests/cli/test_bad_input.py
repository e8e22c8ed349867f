"""Bad input: one clear line on standard error, exit code 2, no traceback, nothing changed."""

import errno
import json
import os
import shutil

import pytest
import support
import torch
from safetensors.torch import load_file, save_file

from globe_stream.store import arrays

pytestmark = pytest.mark.usefixtures("quick")


def refused(told, *words):
    """Exit code 2 and one line that has all `words`."""
    assert told.code == 2, told.err
    assert told.out == "" or json.loads(told.out)["error"]["exit_code"] == 2
    assert len(told.err.splitlines()) == 1, told.err
    assert told.err.startswith("globe-stream: ")
    for word in words:
        assert word in told.err
    return told


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


# -- checkpoints ---------------------------------------------------------------------------------


def missing(folder):
    shutil.rmtree(folder)
    return [str(folder)]


def empty(folder):
    for child in folder.iterdir():
        child.unlink()
    return [str(folder), "safetensors"]


def truncated(folder):
    shard = shards(folder)[1]
    size = shard.stat().st_size
    os.truncate(shard, size - 1000)
    return [shard.name, "truncated", "Download"]


def truncated_header(folder):
    shard = shards(folder)[0]
    os.truncate(shard, 100)
    return [shard.name]


def lying_header(folder):
    shard = shards(folder)[0]
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["shape"] = [header[name]["shape"][0] + 1, header[name]["shape"][1]]
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return [shard.name, name]


def missing_shard(folder):
    shards(folder)[1].unlink()
    return ["model-00002-of-00003.safetensors"]


def dense(folder):
    for child in folder.iterdir():
        child.unlink()
    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4)},
              str(folder / "model.safetensors"))  # fmt: skip
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    return ["routed experts"]


def unsupported(folder):
    for shard in shards(folder):
        save_file({name: values.to(torch.int16) for name, values in load_file(shard).items()},
                  str(shard))  # fmt: skip
    return ["I16"]


def ragged(folder):
    shard = shards(folder)[0]
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name] = torch.zeros(support.HEIGHT + 1, support.WIDTH, dtype=torch.bfloat16)
    save_file(tensors, str(shard))
    return ["shape"]


CHECKPOINTS = (missing, empty, truncated, truncated_header, lying_header, missing_shard, dense,
               unsupported, ragged)  # fmt: skip


@pytest.mark.parametrize("damage", CHECKPOINTS)
@pytest.mark.parametrize("command", ["seed", "plan"])
def test_checkpoints(tmp_path, tell, damage, command):
    folder = support.write_checkpoint(tmp_path / "model", shards=3)
    words = damage(folder)
    before = sorted(tmp_path.rglob("*"))
    run = ["--run", tmp_path / "run"] if command == "seed" else []
    refused(tell(command, folder, *run), *words)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", [d for d in CHECKPOINTS if d not in (ragged, unsupported)])
def test_inspect_refuses_them_too(tmp_path, tell, damage):
    folder = support.write_checkpoint(tmp_path / "model", shards=3)
    words = damage(folder)
    refused(tell("inspect", folder, "--json"), *words)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_expert_that_is_not_finite_is_named(tmp_path, tell, value):
    tensors = support.expert_matrices(2, 6, 12, 20)
    bad = support.NAME.format(layer=1, expert=4, family="up")
    good = tensors[bad].clone()
    tensors[bad][3, 5] = value
    folder = support.write_checkpoint(tmp_path / "model", tensors)
    arguments = ("seed", folder, "--run", tmp_path / "run")
    refused(tell(*arguments), bad, "up of layer 1, expert 4", "1 elements that are NaN or Inf")
    assert not (tmp_path / "run").exists(), "exit code 2 says that nothing was changed"
    tensors[bad] = good
    support.write_checkpoint(folder, tensors)
    assert tell(*arguments).code == 0, "the mended checkpoint is seeded"


@pytest.mark.slow
def test_a_checkpoint_that_went_away_or_changed_since_seeding(tmp_path, tell):
    folder = support.write_checkpoint(tmp_path / "model", shards=3)
    run = tmp_path / "run"
    assert tell("seed", folder, "--run", run).code == 0
    before = support.tree(run)
    (folder / "config.json").rename(tmp_path / "config.json")
    shard = shards(folder)[0]
    shard.rename(tmp_path / "kept")
    told = refused(tell("train", run, "--epochs", 1), shard.name)
    (tmp_path / "kept").rename(shard)
    (tmp_path / "config.json").rename(folder / "config.json")
    support.write_checkpoint(folder, shards=3, dtype=torch.float32)
    told = refused(tell("train", run, "--epochs", 1), "changed since", "--fresh")
    assert "model-00001-of-00003.safetensors: size or header changed" in told.err
    refused(tell("seed", folder, "--run", run), "another model or configuration", "--fresh")
    assert support.results(run) == {
        name.removeprefix("run.zarr/"): value for name, value in before.items()
        if name.removeprefix("run.zarr/") in support.results(run)
    }  # fmt: skip


# -- sizes, memory, disk -------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "words"), [
    (["--bases", 25], ["--bases 25", "24 experts", "Use at most 24"]),
    (["--bases", 13, "--bank-scope", "layer"], ["--bases 13", "12 experts", "layers-000-000"]),
    (["--rank", 13], ["--rank 13", "12 rows", "Use at most 12"]),
    (["--memory", "1MiB"], ["--memory 1.00 MiB", "stage seed/", "of up needs at least",
                            "for the program itself", "Raise --memory"]),
    (["--memory", "lots"], ["'lots'", "6GiB"]),
    (["--memory", "0"], ["'0'"]),
    (["--memory", "-1GiB"], ["'-1GiB'"]),
    (["--rank", 0], ["--rank 0", "at least 1"]),
    (["--rank-ratio", 0], ["--rank-ratio 0"]),
    (["--rank-ratio", 1.5], ["--rank-ratio 1.5", "at most 1"]),
    (["--rank-ratio", "nan"], ["--rank-ratio nan"]),
    (["--basis-ratio", 0], ["--basis-ratio 0"]),
    (["--bases", -3], ["--bases -3", "at least 1"]),
    (["--bank-scope", "layers:0"], ["--bank-scope 'layers:0'", "layers:K"]),
    (["--bank-scope", "everything"], ["--bank-scope 'everything'"]),
    (["--layers", "3:1"], ["3:1"]),
    (["--layers", "first"], ["'first'", "A:B"]),
    (["--layers", "7:9"], ["no experts", "0-1"]),
    (["--layers", "0:9"], ["--layers 0:9", "the last layer with experts is 1", "Write 0:2"]),
    (["--layers", "0:1", "--single-layer", 0], ["--single-layer and --layers", "one of them"]),
    (["--bank-scope", "layers:9"], ["--bank-scope layers:9: 2 layers are chosen", "Use global"]),
    (["--revision", "main"], ["--revision main", "is a folder, which has no revisions"]),
    (["--single-layer", 99], ["no experts", "0-1"]),
    (["--max-experts", 1], ["--max-experts 1", "at least 2"]),
    (["--method", "left_gram_pca", "--proxies", "rows"], ["--proxies rows", "left_gram"]),
    (["--include-shared"], ["shared"]),
    (["--seed", -1], ["--seed -1"]),
])  # fmt: skip
@pytest.mark.parametrize("command", ["seed", "plan"])
def test_option_values(tmp_path, tell, checkpoint, command, options, words):
    run = ["--run", tmp_path / "run"] if command == "seed" else []
    refused(tell(command, checkpoint, *run, *options), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(tmp_path, tell, checkpoint):
    told = tell("seed", checkpoint, "--run", tmp_path / "run", "--device", "cuda")
    refused(told, "--device cuda: cuda is not available", "Use --device cpu or auto")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [
    ["--rank", "many"], ["--method", "magic"], ["--row-selection", "best"], ["--no-such-option"],
    ["--sample-method", "worst"], ["--codes", "none"],
])  # fmt: skip
def test_what_click_refuses(tmp_path, tell, checkpoint, options):
    told = tell("seed", checkpoint, "--run", tmp_path / "run", *options)
    assert told.code == 2
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert options[0] in line
    assert line.startswith("globe-stream: ")
    assert line.endswith(". See globe-stream seed --help")
    assert list(tmp_path.iterdir()) == []


def test_missing_arguments(tell):
    for arguments in (["seed"], ["seed", "model"], ["train"], ["nonsense"], ["status"]):
        told = tell(*arguments)
        assert told.code == 2
        assert told.out == ""
        assert len(told.err.splitlines()) == 1
        assert told.err.strip().endswith("--help")


def test_a_run_that_is_a_file_or_another_folder(tmp_path, tell, checkpoint):
    (tmp_path / "file").write_text("mine")
    refused(tell("seed", checkpoint, "--run", tmp_path / "file"), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    for fresh in ([], ["--fresh"]):
        told = tell("seed", checkpoint, "--run", tmp_path / "folder", *fresh)
        refused(told, "not empty and not a run directory")
    assert [child.name for child in (tmp_path / "folder").iterdir()] == ["thesis.txt"]


def test_commands_on_what_is_no_run(tmp_path, tell):
    for command in ("train", "status"):
        refused(tell(command, tmp_path), "not a run directory", "globe-stream seed")
        refused(tell(command, tmp_path / "nothing"), "not a run directory (no such folder)",
                "globe-stream seed")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("options", "words"), [
    (["--epochs", 0], ["--epochs 0", "at least 1"]),
    (["--target-support", "0"], ["--target-support '0'"]),
    (["--target-support", "few"], ["--target-support 'few'", "none"]),
    (["--temperature-min", 5, "--temperature-max", 1], ["--temperature-min", "swap"]),
    (["--momentum", 1], ["--momentum 1", "at most 0.99"]),
    (["--lambda-a", -1], ["--lambda-a -1"]),
    (["--memory", "1MiB"], ["--memory 1.00 MiB", "stage train of up", "needs at least"]),
])  # fmt: skip
def test_train_options(tmp_path, tell, seeded, options, words):
    run = shutil.copytree(seeded, tmp_path / "run")
    before = support.tree(run)
    refused(tell("train", run, *options), *words)
    assert {**support.tree(run), "lock": ""} == {**before, "lock": ""}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory, checkpoint):
    from globe_stream.cli.main import run

    path = tmp_path_factory.mktemp("seeded") / "run"
    assert run(["seed", str(checkpoint), "--run", str(path)]) == 0
    return path


def test_training_before_seeding_is_done(tmp_path, tell, checkpoint, monkeypatch):
    write = arrays.write

    def full(path, source):
        if path.name == "bank":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, source)

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "write", full)
        assert tell("seed", checkpoint, "--run", tmp_path / "run").code == 2
    refused(tell("train", tmp_path / "run"), "seeding is not finished")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_a_disk_that_fills_up_while_seeding(tmp_path, tell, checkpoint, monkeypatch, call):
    """In a commit, and in the spilled proxies; with room again the same command ends as ever."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(*((arrays, "write", full) if call == "write" else (os, "pwrite", full)))
        refused(tell("seed", checkpoint, "--run", run), str(run), "the disk is full")
    assert tell("seed", checkpoint, "--run", run).code == 0
    assert tell("seed", checkpoint, "--run", tmp_path / "other").code == 0
    assert support.results(run) == support.results(tmp_path / "other")


@pytest.mark.slow
def test_a_disk_that_is_too_full_is_seen_in_advance(tmp_path, tell, checkpoint, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused(tell("seed", checkpoint, "--run", run), "the disk is too full", "1000 B are free")
    assert tell("seed", checkpoint, "--run", run).code == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training(tmp_path, tell, seeded, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, other = (shutil.copytree(seeded, tmp_path / name) for name in ("run", "other"))
    arguments = ("--epochs", 3, "--warmup-epochs", 1, "--target-support", 4)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "write", full)
        refused(tell("train", run, *arguments), str(run), "the disk is full")
    assert tell("train", run, *arguments).code == 0
    assert tell("train", other, *arguments).code == 0
    assert support.results(run) == support.results(other)


@pytest.mark.parametrize("command", ["status", "train", "seed"])
def test_a_damaged_run_is_a_failure_that_says_what_to_do(
    tmp_path, tell, seeded, checkpoint, command
):
    run = shutil.copytree(seeded, tmp_path / "run")
    text = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join([text[0], "damaged\n", *text[2:]]))
    arguments = [checkpoint, "--run", run] if command == "seed" else [run]
    told = tell(command, *arguments)
    assert told.code == 1
    assert len(told.err.splitlines()) == 1
    assert "ledger.jsonl: line 2" in told.err
    assert "--fresh" in told.err
    if command == "seed":
        assert tell("seed", *arguments, "--fresh").code == 0


def test_a_run_whose_record_is_empty(tmp_path, tell, seeded, checkpoint):
    run = shutil.copytree(seeded, tmp_path / "run")
    (run / "ledger.jsonl").write_text("")
    arguments = ("seed", checkpoint, "--run", run)
    refused(tell(*arguments), "ledger.jsonl: empty", "--fresh")
    told = tell(*arguments, "--fresh", "--json")
    assert (told.code, json.loads(told.out)["state"]) == (0, "seeded")


@pytest.mark.parametrize("section", ["seed", "train"])
def test_a_run_of_another_version_is_named_as_such(tmp_path, tell, seeded, checkpoint, section):
    run = shutil.copytree(seeded, tmp_path / "run")
    assert tell("train", run, "--epochs", 1).code == 0
    text = "\n".join(support.ledger_rows(run))
    option = {"seed": '"dictionary_rounds": 300, ', "train": '"guard": 0.003, '}[section]
    assert option in text
    support.write_ledger(run, text.replace(option, "").splitlines())
    again = {"seed": ("seed", checkpoint, "--run", run), "train": ("train", run, "--epochs", 1)}
    refused(tell(*again[section]), "begun by another version of globe-stream", "--fresh", "--run")


def test_settings_that_do_not_do_what_they_seem_to_are_told(tmp_path, tell, seeded):
    run = shutil.copytree(seeded, tmp_path / "run")
    options = ("--target-support", 100, "--support-cap", 3, "--warmup-epochs", 2)
    told = tell("train", run, "--epochs", 1, *options)
    assert told.code == 0
    for words in ("--target-support 100 is above the 6 atoms", "--support-cap 3 is below",
                  "--warmup-epochs 2 is above --epochs 1"):  # fmt: skip
        assert told.err.count(words) == 1
    told = tell("train", run, "--epochs", 1, *options)
    assert "nothing is left to do: --epochs 1 counts from the start, 1 are done" in told.err
    assert "--warmup-epochs" not in told.err


def test_an_unknown_method_of_a_sweep_is_named_by_its_option(tell, checkpoint):
    refused(tell("sweep", checkpoint, "--methods", "foo"), "--methods 'foo' is not known")


@pytest.mark.parametrize("option", [("--frontier",), ("--models", "original")])
def test_models_are_scored_on_a_text(tell, tmp_path, option):
    refused(tell("eval", tmp_path, *option), f"{option[0]} needs --text")
