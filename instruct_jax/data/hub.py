"""Models and data sets of the Hugging Face hub, as local folders."""

import os
from pathlib import Path
from typing import Any

from instruct_jax.errors import DataError, shorten

CONFIG = ["*.json", "*.txt", "*.model", "*.jinja"]


def model_folder(name: str, *, weights: bool = True) -> Path:
    """A folder itself, or the one of OWNER/NAME or OWNER/NAME@REVISION of the hub, which is
    downloaded once.

    Without weights only small files are downloaded.
    """
    if os.path.isdir(name):  # False also for a name that no file system takes
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or ":" in name:
        raise DataError(
            f"{name}: no such model folder (looked in {Path.cwd()}); correct it, or give OWNER/NAME"
            " of the Hugging Face hub"
        )
    patterns = [*CONFIG, "*.safetensors"] if weights else CONFIG
    repo, _, revision = name.partition("@")
    which = f"{repo} --revision {revision}" if revision else repo
    return _download(
        repo,
        f"`hf download {which} --local-dir FOLDER`, and give that folder",
        revision=revision or None,
        allow_patterns=patterns,
    )


def dataset_folder(name: str) -> Path:
    """The folder of the hub's data set OWNER/NAME or OWNER/NAME@REVISION, which is downloaded
    once.
    """
    repo, _, revision = name.partition("@")
    which = f"{repo} --revision {revision}" if revision else repo
    return _download(
        repo,
        f"`hf download {which} --repo-type dataset` keeps it for later",
        revision=revision or None,
        repo_type="dataset",
    )


def _download(name: str, fix: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # the library raises those of its HTTP client too
        raise DataError(
            f"{name}: neither here nor to be had from the Hugging Face hub ({shorten(error, 200)});"
            f" where there is a network, {fix}"
        ) from error
