"""Upload: a finished export to a model repository."""

import importlib
import re
from pathlib import Path
from typing import Any

from globe_stream.errors import GlobeError, InputError, option
from globe_stream.export.manifest import MANIFEST
from globe_stream.export.staging import WORK

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LATER = "The export itself is complete; the same command uploads it"


def require_repository(repository: str) -> None:
    """InputError unless `repository` is spelt owner/name; asks nobody."""
    if not _NAME.fullmatch(repository):
        raise InputError(
            f"{option('push_to_hub')} {repository}: is no repository. "
            "Give it as owner/name, such as me/model"
        )


def push_to_hub(folder: Path, repository: str, *, private: bool = True, api: Any = None) -> str:
    """Upload the finished export in `folder` to the hub repository `repository`; returns its URL.

    The repository is made if need be, private unless told otherwise; the credentials are those
    that huggingface_hub finds. Raises InputError when the name is none, the export is unfinished
    or the hub cannot be reached, GlobeError when the hub refuses; the same call again uploads only
    what is missing.
    """
    require_repository(repository)
    if not (folder / MANIFEST).exists() or (folder / WORK).exists():
        raise InputError(f"{folder}: holds no finished export. Give the export command again first")
    hub = api or importlib.import_module("huggingface_hub").HfApi()
    try:
        url = hub.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        hub.upload_folder(repo_id=repository, folder_path=str(folder), repo_type="model")
    except Exception as error:
        raise _explained(error, f"{option('push_to_hub')} {repository}") from error
    return str(url)


def _explained(error: Exception, where: str) -> Exception:
    """What went wrong in one line; `error` itself where neither hub nor network is to blame."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if _is_network(error):
        return InputError(
            f"{where}: the hub cannot be reached: {reason}. Check the network. {_LATER}"
        )
    if isinstance(error, OSError | ValueError):
        return GlobeError(f"{where}: the hub refused: {reason}. {_LATER}")
    return error


def _is_network(error: Exception) -> bool:
    """By name: huggingface_hub has changed its HTTP library, and these share no base class."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "Timeout"})
