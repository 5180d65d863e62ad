"""How a model of Hugging Face is asked to generate: which ids end a reply."""

import json
from pathlib import Path

from instruct_jax.errors import DataError, require, shorten

NAME = "generation_config.json"


def end_ids(folder: Path) -> tuple[int, ...]:
    """eos_token_id of generation_config.json, or of config.json where there is none; () where
    neither says.
    """
    for name in (NAME, "config.json"):
        path = folder / name
        if path.is_file():
            return _ends(path)
    return ()


def _ends(path: Path) -> tuple[int, ...]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: broken ({error}); download or copy it again") from error
    if found is None:
        return ()
    ids = found if isinstance(found, list) else [found]
    require(
        all(type(i) is int and i >= 0 for i in ids),
        f"{path}: eos_token_id={shorten(found)} is no token id and no list of them; correct it",
    )
    return tuple(ids)
