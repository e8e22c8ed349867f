"""Uploading finished exports, and fetching the small files of a hub model."""

from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from globe_stream.checkpoint.index import open_index
from globe_stream.errors import GlobeError, InputError
from globe_stream.export import auxiliary_files as companions
from globe_stream.export.dense import export_dense
from globe_stream.export.hub import push_to_hub, require_repository


class _Hub:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.uploaded: list[str] = []

    def create_repo(self, repository: str, **options: object) -> str:
        assert options == {"private": True, "exist_ok": True, "repo_type": "model"}
        return f"https://example.org/{repository}"

    def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str) -> None:
        assert (repo_id, repo_type) == ("me/model", "model")
        if self.error:
            raise self.error
        self.uploaded = sorted(path.name for path in Path(folder_path).iterdir())


def test_push(run: Path, tmp_path: Path) -> None:
    hub = _Hub()
    with pytest.raises(InputError, match="no finished export"):
        push_to_hub(tmp_path, "me/model", api=hub)
    export_dense(run, tmp_path / "out")
    assert push_to_hub(tmp_path / "out", "me/model", api=hub) == "https://example.org/me/model"
    assert {"config.json", "README.md", "model.safetensors.index.json"} <= set(hub.uploaded)
    refusing = _Hub(OSError("401 Unauthorized\nlong story"))
    with pytest.raises(GlobeError, match=r"refused: 401 Unauthorized\. The export itself is"):
        push_to_hub(tmp_path / "out", "me/model", api=refusing)


class TransportError(Exception):
    """Named as the base class of httpx's errors of the network."""


def test_a_hub_out_of_reach(run: Path, tmp_path: Path) -> None:
    export_dense(run, tmp_path / "out")
    hub = _Hub(TransportError("[Errno -2] Name or service not known"))
    said = "cannot be reached: .* not known. Check the network. The export itself is complete"
    with pytest.raises(InputError, match=said):
        push_to_hub(tmp_path / "out", "me/model", api=hub)


def test_the_real_client_out_of_reach(run: Path, tmp_path: Path) -> None:
    export_dense(run, tmp_path / "out")
    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="x")
    with pytest.raises(InputError, match="push_to_hub me/model: the hub cannot be reached: "):
        push_to_hub(tmp_path / "out", "me/model", api=nobody)


@pytest.mark.parametrize("name", ["foo", "a/b/c", "/b", "a/", "a b/c", ""])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(InputError, match=r"is no repository\. Give it as owner/name"):
        require_repository(name)


def test_companions_of_a_hub_model_are_fetched_at_its_revision(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append({"name": name, **options}),
    )
    index = open_index(str(model))
    companions.fetch_companions(index)
    assert asked == []
    companions.fetch_companions(replace(index, model="owner/name", revision="abc"))
    assert (asked[0]["name"], asked[0]["revision"]) == ("owner/name", "abc")
    assert "*.safetensors" in asked[0]["ignore_patterns"]


def test_companions_are_the_small_files_only(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in (
        "tokenizer.json",
        "LICENSE",
        "pytorch_model.bin",
        ".hidden",
        "README.md",
        "pytorch_model.bin.index.json",
        "old.gguf",
    ):
        (folder / name).write_text("x")
    (folder / "original").mkdir()
    found = [path.name for path in companions.companions(open_index(str(folder)))]
    assert found == ["LICENSE", "generation_config.json", "tokenizer.json"]
