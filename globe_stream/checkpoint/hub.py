"""Checkpoints on the Hugging Face hub: headers by range requests, shards only when needed.

Everything is asked for at one commit, so a branch that moves on meanwhile changes nothing. Shards
go through huggingface_hub's own cache, which resumes a download that broke off.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import (
    HfApi,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

from globe_stream.checkpoint.index import ExpertIndex, build_index
from globe_stream.checkpoint.json_files import INDEX_NAME, SINGLE_NAME, parse_weight_map, read_json
from globe_stream.checkpoint.layouts import ModelType
from globe_stream.errors import GlobeError, InputError
from globe_stream.io.files import require_free
from globe_stream.io.safetensors import Header, load_header, read_header

_FIRST_REQUEST = 100_000  # bytes: most headers fit, so most shards need one request
_REQUESTS_AT_ONCE = 8
_TIMEOUT = 30.0  # seconds
_LOOK = " Check the name and the network, or give a folder."


@dataclass(frozen=True, slots=True)
class _Repository:
    """A model at one commit; `sizes` of its files, None if they are known from the cache alone."""

    model: str
    commit: str
    sizes: dict[str, int] | None

    def download(self, name: str, *, force: bool = False) -> Path:
        """The file `name` in the local cache, fetched if it is not there."""
        offline = self.sizes is None
        return Path(
            hf_hub_download(
                self.model,
                name,
                revision=self.commit,
                force_download=force,
                local_files_only=offline,
            )
        )

    def fetch(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of the file `name`."""
        url = hf_hub_url(self.model, name, revision=self.commit)
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if token := get_token():
            headers["Authorization"] = f"Bearer {token}"
        response = get_session().get(url, headers=headers, timeout=_TIMEOUT)
        response.raise_for_status()
        content: bytes = response.content
        return content[start:stop] if response.status_code == 200 else content


def open_hub(
    model: str, revision: str | None, include_mtp: bool, rule: ModelType | None = None
) -> ExpertIndex:
    """The index of the hub model `model` at `revision` (branch, tag or commit; default: main).

    Raises InputError when the model, the revision or a shard does not exist or access is refused.
    """
    with _explained(f"{model}: no such folder, and the hub does not give it", InputError, _LOOK):
        repository, root = _resolve(model, revision)
        weight_map, names = _shards(repository)
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            headers = list(pool.map(lambda name: _header(repository, root, name), names))
    index = build_index(
        model,
        revision=repository.commit,
        root=root,
        config=read_json(root / "config.json"),
        headers=headers,
        weight_map=weight_map,
        include_mtp=include_mtp,
        rule=rule,
    )
    known = {header.path: header for header in headers}

    def fetch_files(paths: Sequence[Path], *, anew: bool = False) -> None:
        _fetch(repository, root, [known[path] for path in paths], anew)

    return replace(index, fetch_files=fetch_files)


def _resolve(model: str, revision: str | None) -> tuple[_Repository, Path]:
    """The commit that `revision` means now and its folder in the cache.

    Without a connection it is the commit that the cache remembers.
    """
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
    except Exception:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if not isinstance(cached, str):
            raise
        return _Repository(model, Path(cached).parent.name, None), Path(cached).parent
    # By its name and not by its commit, so that the cache remembers what the name meant.
    root = Path(hf_hub_download(model, "config.json", revision=revision)).parent
    if root.name != info.sha:  # it moved on between the two requests
        return _resolve(model, root.name)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return _Repository(model, root.name, sizes), root


def _shards(repository: _Repository) -> tuple[dict[str, str] | None, list[str]]:
    if repository.sizes is None:
        cached = try_to_load_from_cache(repository.model, INDEX_NAME, revision=repository.commit)
        sharded = isinstance(cached, str)
    else:
        sharded = INDEX_NAME in repository.sizes
    if sharded:
        weight_map = parse_weight_map(repository.download(INDEX_NAME))
        return weight_map, sorted(set(weight_map.values()))
    if repository.sizes is not None and SINGLE_NAME not in repository.sizes:
        raise InputError(
            f"{repository.model}: has neither {INDEX_NAME} nor {SINGLE_NAME}. "
            "Only safetensors checkpoints can be used."
        )
    return None, [SINGLE_NAME]


def _header(repository: _Repository, root: Path, name: str) -> Header:
    path = root / name
    if repository.sizes is None:
        if not path.is_file():
            raise InputError(
                f"{path}: was not downloaded before, and the hub cannot be reached now."
            )
        return read_header(path)
    if name not in repository.sizes:
        raise InputError(f"{repository.model}: its {INDEX_NAME} names {name}, which is missing.")
    size = repository.sizes[name]
    if path.is_file() and path.stat().st_size == size:
        return read_header(path)
    first = repository.fetch(name, 0, min(size, _FIRST_REQUEST))

    def fetch(start: int, stop: int) -> bytes:
        return first[start:stop] if stop <= len(first) else repository.fetch(name, start, stop)

    return load_header(path, size, fetch)


def _fetch(repository: _Repository, root: Path, wanted: list[Header], anew: bool) -> None:
    """Download the files of `wanted` that are not complete here, or all, and check them."""
    missing = [header for header in wanted if anew or not _complete(header)]
    if not missing:
        return
    require_free(root, sum(header.size for header in missing), "the download")
    for header in missing:
        name = header.path.relative_to(root).as_posix()
        with _explained(f"{repository.model}: {name} cannot be downloaded", GlobeError):
            repository.download(name, force=header.path.exists())
        if not _complete(header) or read_header(header.path).sha256 != header.sha256:
            raise GlobeError(
                f"{header.path}: is not the file that the hub describes ({header.size:,} bytes). "
                "Delete it and give the same command again."
            )


def _complete(header: Header) -> bool:
    return header.path.is_file() and header.path.stat().st_size == header.size


@contextmanager
def _explained(what: str, kind: type[GlobeError], advice: str = "") -> Iterator[None]:
    """Turn whatever the hub's client raises into one line of our own, ending with `advice`."""
    try:
        yield
    except GlobeError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise kind(f"{what}: {reason.rstrip('.')}.{advice}") from error
