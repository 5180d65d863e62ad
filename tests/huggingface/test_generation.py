"""Where a reply ends by the files of a folder."""

import json

import pytest

from instruct_jax.errors import InstructError
from instruct_jax.huggingface.generation import end_ids


def write(folder, name, **keys):
    (folder / name).write_text(json.dumps(keys))


def test_generation_config_comes_before_config(tmp_path):
    assert end_ids(tmp_path) == ()
    write(tmp_path, "config.json", eos_token_id=[3, 4])
    assert end_ids(tmp_path) == (3, 4)
    write(tmp_path, "generation_config.json", eos_token_id=7)
    assert end_ids(tmp_path) == (7,)
    write(tmp_path, "generation_config.json", temperature=0.6)
    assert end_ids(tmp_path) == ()


@pytest.mark.parametrize("value", ["<eos>", [2, "x"], True, [-1], 1.5])
def test_what_is_no_id_is_refused(value, tmp_path):
    write(tmp_path, "generation_config.json", eos_token_id=value)
    with pytest.raises(InstructError, match="generation_config.json: eos_token_id="):
        end_ids(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_named(text, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InstructError, match="generation_config.json: broken"):
        end_ids(tmp_path)
