"""Where a model's files are: the embedded one, a folder, or the hub; and its config.json."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aird_mlx.errors import ModelError

DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "model"

DOWNLOAD_PATTERNS = ["*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "*.py"]


def find_folder(model: str, *, revision: str | None = None) -> Path:
    """The local folder of ``demo``, of a path, or of a hub id (downloaded when it is not in the cache).

    Raises:
        ModelError: nothing is there.
    """
    if model == "demo":
        return DEMO_FOLDER
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model: {model} is a file; a folder with config.json and weights is needed. Give its folder.")
    if folder.is_symlink():
        raise ModelError(
            f"model: {model} is a link to {folder.readlink()}, where nothing is; a folder is needed. Mend the link."
        )
    if _looks_like_a_path(model):
        raise ModelError(
            f"model: there is no folder {model}; a local folder, a hub id or `demo` is needed. Check the spelling."
        )
    return _download(model, revision)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") != 1 or "\\" in model


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=DOWNLOAD_PATTERNS))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"model: {hub_id} is neither a local folder nor found on the hub ({type(error).__name__}); an existing "
            "id and revision are needed (a private model needs `hf auth login`). Check the spelling."
        ) from error
    except (HfHubHTTPError, OSError, network_error()) as error:
        raise ModelError(
            f"model: {hub_id} is no local folder, and the hub cannot be reached ({type(error).__name__}); a local "
            "folder, a cached model or a connection is needed. Check the spelling, or go online."
        ) from error
    except HFValidationError as error:
        raise ModelError(
            f"model: {hub_id!r} is neither a local folder nor a valid hub id; something like `org/name` is needed. "
            "Check the spelling."
        ) from error


def network_error() -> type[Exception]:
    """What the hub's HTTP client raises when a connection breaks; which client it is depends on the hub's version."""
    client = "httpx2" if find_spec("httpx2") else "httpx"
    error: type[Exception] = import_module(client).HTTPError
    return error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of ``folder``. Raises ModelError when it is missing, malformed, or names no model type."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"model: {folder} has no config.json; a Hugging Face or MLX model folder is needed. Check the path."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"model: {path} is not JSON ({error}); an intact one is needed. Download it again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"model: {path} names no model_type; a model's config is needed. Download it again.")
    return config
