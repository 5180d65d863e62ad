"""What an export of a run says about how its model is asked."""

import logging

import pytest
import transformers
import userfiles

from instruct_jax.cli import main
from instruct_jax.data.tokenize import DEFAULT_TEMPLATE

ARGV = "export runs/a:sft --out {} --model.family gpt2"


@pytest.fixture
def export(finished, monkeypatch, tmp_path):
    """export(arguments) -> the tokenizer of an export of the finished run, which has messages."""
    monkeypatch.chdir(finished.parents[1])

    def run(*more: str):
        out = tmp_path / "exported"
        assert main([*ARGV.format(out).split(), *more]) == 0
        return transformers.AutoTokenizer.from_pretrained(out)

    return run


def test_a_model_of_messages_carries_the_template_that_it_learned(export):
    tok = export()
    assert tok.chat_template == DEFAULT_TEMPLATE
    told = tok.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    assert told == "Human: a\n\nAssistant:"


def test_a_model_of_texts_has_none(export, tmp_path):
    path = tmp_path / "texts.jsonl"
    userfiles.write(path, [{"prompt": "a b"}] * 4)
    assert export("--data.prompts", f"[{path}]").chat_template is None


def test_records_that_are_gone_are_said(export, caplog):
    with caplog.at_level(logging.WARNING):
        assert export("--data.prompts", "[gone.jsonl]").chat_template is None
    assert "no chat template is exported" in caplog.text and "gone.jsonl" in caplog.text
