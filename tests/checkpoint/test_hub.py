"""Hub models against a small hub on this machine: what is asked for, and how failures read."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_server import COMMIT, MODEL, Hub, serve
from huggingface_hub import constants
from tiny_files import QWEN, qwen_tensors, write_checkpoint

from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.errors import GlobeError, InputError

SHARDS = 4
FILES = "/{repo_id}/resolve/{revision}/{filename}"
pytestmark = pytest.mark.usefixtures("client")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    root = write_checkpoint(tmp_path / "remote", qwen_tensors(p=64, d=96), QWEN, SHARDS)
    with serve(root) as server:
        yield server


Turn = Callable[..., None]


@pytest.fixture
def client(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turn]:
    """Point huggingface_hub at `hub`; calling it changes the cache folder or goes offline.

    The library takes these from the environment once, so its own record of them is changed.
    """

    def turn(home: str = "home", *, offline: bool = False) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + FILES)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / home))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        huggingface_hub.close_session()

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    turn()
    yield turn
    huggingface_hub.close_session()


def _fetched() -> tuple[ExpertIndex, Path, list[Any]]:
    """One expert's shard fetched: the index, the file and the expert's weights."""
    index = open_index(MODEL).select(Selection(("up",), single_layer=1, max_experts=1))
    expert = index.experts["up"][0]
    index.fetch([expert])
    return index, expert.storage.weight.path, read_expert(expert).tolist()


def test_headers_alone_are_read(hub: Hub) -> None:
    index, local = open_index(MODEL), open_index(str(hub.root))
    assert index.summary().families == local.summary().families
    assert index.summary().revision == COMMIT
    assert index.fingerprint().files == local.fingerprint().files
    shards = sorted(hub.root.glob("*.safetensors"))
    assert len(shards) == SHARDS
    for shard in shards:
        assert 0 < hub.sent(shard.name) <= 100_000 < shard.stat().st_size
    asked = {path for _, path, _, _ in hub.log if "/resolve/" in path}
    assert {path for path in asked if f"/resolve/{COMMIT}/" not in path} == {
        f"/{MODEL}/resolve/main/config.json"
    }


def test_only_the_shards_needed_are_fetched(hub: Hub) -> None:
    index, file, weights = _fetched()
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert torch.equal(torch.tensor(weights), qwen_tensors(p=64, d=96)[name])
    assert index.revision == COMMIT
    for shard in hub.root.glob("*.safetensors"):
        whole = hub.sent(shard.name) >= shard.stat().st_size
        assert whole == (shard.name == file.name)
    before = len(hub.log)
    assert _fetched()[1:] == (file, weights)
    later = hub.log[before:]
    assert not [path for method, path, _, _ in later if method == "GET" and file.name in path]


def test_a_token_is_sent(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    open_index(MODEL)
    assert set(hub.tokens) == {"Bearer hf_mine"}


def test_a_truncated_file_in_the_cache_is_fetched_again() -> None:
    _, file, weights = _fetched()
    with file.open("r+b") as content:
        content.truncate(1000)
    assert _fetched()[1:] == (file, weights)


def test_a_download_that_comes_short_is_refused(hub: Hub, client: Turn) -> None:
    _, file, _ = _fetched()
    hub.cut[file.name] = 150_000
    client("other")
    with pytest.raises(GlobeError, match=file.name) as failed:
        _fetched()
    assert failed.value.exit_code == 1


def test_without_a_connection_the_cache_serves(client: Turn) -> None:
    _, file, weights = _fetched()
    index = open_index(MODEL)
    for family in ("up", "gate", "down"):
        index.fetch(index.experts[family])
    client(offline=True)
    assert _fetched()[1:] == (file, weights)
    client("empty", offline=True)
    with pytest.raises(InputError, match=MODEL):
        _fetched()


def test_without_a_connection_what_is_missing_is_named(client: Turn) -> None:
    _, file, _ = _fetched()
    client(offline=True)
    with pytest.raises(InputError, match="was not downloaded before") as failed:
        open_index(MODEL)
    assert file.name not in str(failed.value)


def test_a_model_that_does_not_exist() -> None:
    with pytest.raises(InputError) as failed:
        open_index("someone/else")
    said = str(failed.value)
    assert said.startswith("someone/else: no such folder, and the hub does not give it")
    assert "\n" not in said


def test_a_repository_without_safetensors(hub: Hub) -> None:
    for path in [*hub.root.glob("*.safetensors"), *hub.root.glob("*.index.json")]:
        path.unlink()
    with pytest.raises(InputError, match="has neither"):
        open_index(MODEL)


def test_a_long_header_takes_a_second_request(hub: Hub) -> None:
    shutil.rmtree(hub.root)
    tensors = qwen_tensors(layers=2, experts=300, p=2, d=2)
    write_checkpoint(hub.root, tensors, QWEN | {"num_experts": 300})
    assert open_index(MODEL).summary().families["up"].experts == 600
    ranges = [r for _, path, r, _ in hub.log if path.endswith("/model.safetensors")]
    assert len(ranges) == 2
    assert ranges[1].startswith("bytes=8-")


def test_a_forced_download_replaces_what_the_cache_has(hub: Hub) -> None:
    index, file, weights = _fetched()
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    before = hub.sent(file.name)
    assert _fetched()[1] == file
    assert hub.sent(file.name) - before < file.stat().st_size, "complete by size: not fetched"
    expert = index.experts["up"][0]
    index.fetch([expert], anew=True)
    assert hub.sent(file.name) - before >= file.stat().st_size
    assert file.read_bytes() != bytes(damaged)
    assert read_expert(expert).tolist() == weights
