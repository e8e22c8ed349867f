"""Hub models against a small hub on this machine: what is asked for, and how failures read.

huggingface_hub takes its settings from the environment when it is imported, so every case runs in
a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, MODEL, Hub, serve
from tiny_files import QWEN, qwen_tensors, write_checkpoint

SHARDS = 4
LOOK = """
index = open_index(MODEL)
result = {"summary": index.summary(), "fingerprint": index.fingerprint().to_json()}
"""
FETCH = """
index = open_index(MODEL).select(Selection(("up",), single_layer=1, max_experts=1))
expert = index.experts["up"][0]
index.fetch([expert])
result = {"file": expert.storage.weight.path.name, "weights": read_expert(expert).tolist(),
          "commit": index.revision}
"""
HEAD = """
import json
from globe_stream.checkpoint.index import Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.errors import GlobeError
MODEL = {model!r}
try:
{code}
except GlobeError as error:
    result = {{"error": str(error), "exit_code": error.exit_code}}
print(json.dumps(result))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    root = write_checkpoint(tmp_path / "remote", qwen_tensors(p=64, d=96), QWEN, SHARDS)
    with serve(root) as server:
        yield server


def _call(hub: Hub, home: Path, code: str, model: str = MODEL, offline: bool = False) -> dict:
    text = "\n".join(f"    {line}" for line in code.strip().splitlines())
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", HEAD.format(model=model, code=text)],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_headers_alone_are_read(hub: Hub, tmp_path: Path) -> None:
    answer = _call(hub, tmp_path / "home", LOOK)
    local = _call(hub, tmp_path / "home", LOOK, model=str(hub.root))
    assert answer["summary"]["families"] == local["summary"]["families"]
    assert answer["summary"]["revision"] == COMMIT
    assert answer["fingerprint"]["files"] == local["fingerprint"]["files"]
    shards = sorted(hub.root.glob("*.safetensors"))
    assert len(shards) == SHARDS
    for shard in shards:
        assert 0 < hub.sent(shard.name) <= 100_000 < shard.stat().st_size
    asked = {path for _, path, _, _ in hub.log if "/resolve/" in path}
    assert {path for path in asked if f"/resolve/{COMMIT}/" not in path} == {
        f"/{MODEL}/resolve/main/config.json"
    }


def test_only_the_shards_needed_are_fetched(hub: Hub, tmp_path: Path) -> None:
    answer = _call(hub, tmp_path / "home", FETCH)
    name = "model.layers.1.mlp.experts.0.up_proj.weight"
    assert torch.equal(torch.tensor(answer["weights"]), qwen_tensors(p=64, d=96)[name])
    assert answer["commit"] == COMMIT
    for shard in hub.root.glob("*.safetensors"):
        whole = hub.sent(shard.name) >= shard.stat().st_size
        assert whole == (shard.name == answer["file"])
    before = len(hub.log)
    again = _call(hub, tmp_path / "home", FETCH)
    assert again == answer
    later = hub.log[before:]
    assert not [path for method, path, _, _ in later if method == "GET" and answer["file"] in path]


def test_a_truncated_file_in_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    answer = _call(hub, tmp_path / "home", FETCH)
    (path,) = (tmp_path / "home").rglob(f"snapshots/{COMMIT}/{answer['file']}")
    with path.open("r+b") as file:
        file.truncate(1000)
    assert _call(hub, tmp_path / "home", FETCH) == answer


def test_a_download_that_comes_short_is_refused(hub: Hub, tmp_path: Path) -> None:
    answer = _call(hub, tmp_path / "home", FETCH)
    hub.cut[answer["file"]] = 150_000
    failed = _call(hub, tmp_path / "other", FETCH)
    assert answer["file"] in failed["error"]
    assert failed["exit_code"] == 1


def test_without_a_connection_the_cache_serves(hub: Hub, tmp_path: Path) -> None:
    everything = FETCH + "\nindex = open_index(MODEL)\nindex.fetch(index.experts['down'])"
    everything += "\nindex.fetch(index.experts['up'] + index.experts['gate'])"
    answer = _call(hub, tmp_path / "home", everything)
    assert _call(hub, tmp_path / "home", FETCH, offline=True) == answer
    missing = _call(hub, tmp_path / "empty", FETCH, offline=True)
    assert missing["exit_code"] == 2
    assert MODEL in missing["error"]


def test_without_a_connection_what_is_missing_is_named(hub: Hub, tmp_path: Path) -> None:
    answer = _call(hub, tmp_path / "home", FETCH)
    failed = _call(hub, tmp_path / "home", LOOK, offline=True)
    assert "was not downloaded before" in failed["error"]
    assert answer["file"] not in failed["error"]


def test_a_model_that_does_not_exist(hub: Hub, tmp_path: Path) -> None:
    failed = _call(hub, tmp_path / "home", LOOK, model="someone/else")
    assert failed["error"].startswith("someone/else: no such folder, and the hub does not give it")
    assert "\n" not in failed["error"]
    assert failed["exit_code"] == 2


def test_a_repository_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    for path in [*hub.root.glob("*.safetensors"), *hub.root.glob("*.index.json")]:
        path.unlink()
    failed = _call(hub, tmp_path / "home", LOOK)
    assert "has neither" in failed["error"]
    assert failed["exit_code"] == 2


def test_a_long_header_takes_a_second_request(tmp_path: Path) -> None:
    tensors = qwen_tensors(layers=2, experts=300, p=2, d=2)
    root = write_checkpoint(tmp_path / "remote", tensors, QWEN | {"num_experts": 300})
    with serve(root) as hub:
        answer = _call(hub, tmp_path / "home", LOOK)
        assert answer["summary"]["families"]["up"]["experts"] == 600
        ranges = [r for _, path, r, _ in hub.log if path.endswith("/model.safetensors")]
        assert len(ranges) == 2
        assert ranges[1].startswith("bytes=8-")
