"""Models by name: a local folder as it is, or a Hub id, whose files are fetched.

Nothing that can run code is fetched: only safetensors, JSON and tokenizer files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from cogcalib_jax.console import quiet_downloads
from cogcalib_jax.errors import UserError
from cogcalib_jax.files import refuse_external_links

DESCRIPTION_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
# Not "*.safetensors": some repositories hold the same weights again as consolidated*.safetensors.
WEIGHT_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")


def model_folder(
    name: str | Path, *, weights: bool = True, fetch: Callable[..., str] = snapshot_download
) -> Path:
    """Return the folder of a model.

    Args:
        name: a local folder, or a Hub id such as "Qwen/Qwen2.5-0.5B".
        weights: False fetches the configuration and the tokenizer alone.
        fetch: downloads the files of a Hub id and returns their folder, as `snapshot_download`.

    Raises:
        UserError: neither folder nor Hub id, a failed download, or links out of the folder.
    """
    folder = Path(name)
    if folder.is_dir():
        refuse_external_links(folder, folder.rglob("*"))
        return folder
    text = str(name)
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or folder.exists():
        raise UserError(
            f"{name}: no such folder; give a folder with config.json and safetensors files, or a"
            " Hub id (OWNER/NAME)"
        )
    patterns = DESCRIPTION_FILES + (WEIGHT_FILES if weights else ())
    quiet_downloads(huggingface_hub.utils)
    try:
        return Path(fetch(text, allow_patterns=list(patterns)))
    # The libraries below huggingface_hub raise errors of their own, which change with its version.
    except Exception as error:
        raise UserError(_why_not_fetched(text, error)) from error


def _why_not_fetched(name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, GatedRepoError):
        return (
            f"{name}: the model is gated; ask for access at https://huggingface.co/{name}, then log"
            " in with `hf auth login`"
        )
    if isinstance(error, LocalEntryNotFoundError | ConnectionError):
        return (
            f"{name}: no such folder, and the Hub cannot be reached to fetch it; go online, or"
            " download it elsewhere and give its folder"
        )
    if isinstance(error, HfHubHTTPError | HFValidationError):
        return (
            f"{name}: no such folder, and the Hub refused it ({reason}); check the name, and log"
            " in with `hf auth login` if the model is private"
        )
    return (
        f"{name}: the download from the Hub failed ({type(error).__name__}: {reason}); run the"
        " command again, files that are complete are kept"
    )


def public_name(name: str | Path) -> str:
    """Return a name that may be published: a Hub id, or the last part of a folder's path."""
    text = str(name)
    is_folder = Path(text).is_dir() or text.count("/") != 1 or text.startswith(("/", ".", "~"))
    return Path(text).name if is_folder else text
