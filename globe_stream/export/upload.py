"""`--push-to-hub`: a finished export to a model repository."""

import importlib
from pathlib import Path
from typing import Any

from globe_stream.errors import GlobeError, InputError
from globe_stream.export.work import MANIFEST, WORK


def push_to_hub(folder: Path, repository: str, *, private: bool = True, api: Any = None) -> str:
    """Upload the finished export in `folder` to the hub repository `repository`; returns its URL.

    The repository is made if need be, private unless told otherwise; the credentials are those
    that huggingface_hub finds. Raises InputError when the export is unfinished, GlobeError when
    the hub refuses; the same call again uploads only what is missing.
    """
    if not (folder / MANIFEST).exists() or (folder / WORK).exists():
        raise InputError(f"{folder}: holds no finished export. Give the export command again first")
    hub = api or importlib.import_module("huggingface_hub").HfApi()
    try:
        url = hub.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        hub.upload_folder(repo_id=repository, folder_path=str(folder), repo_type="model")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GlobeError(
            f"--push-to-hub {repository}: the hub refused: {reason}. The export itself is complete"
        ) from error
    return str(url)
