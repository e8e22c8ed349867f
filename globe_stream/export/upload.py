"""Uploading a finished export to the hub, through huggingface_hub."""

from pathlib import Path

from globe_stream.errors import InputError


def push_to_hub(folder: Path, name: str) -> str:
    """Upload everything in `folder` to the model repository `name`; returns its address.

    The repository is made, private, if it is not there. Uploading again sends only what changed.
    Raises InputError when the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        address = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"{name}: the hub did not take {folder}: {str(error).splitlines()[0]}. "
            "Check the name and `hf auth login`, then give the command again"
        ) from error
    return str(address)
