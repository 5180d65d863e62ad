"""The host loops over a model on the mesh."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
from data import wordtok
from small import LLAMA

from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.networks import encode, ids_for, rows_at_a_time, unknown_ids
from instruct_jax.chain.read import build_run
from instruct_jax.commands import chat
from instruct_jax.commands.open_model import find
from instruct_jax.data.tokenize import encode_prompt


def network(parts: int, sample_batch: int = 256) -> Any:
    sampling = types.SimpleNamespace(parts=lambda axis: parts)
    models = types.SimpleNamespace(sampling=sampling)
    return types.SimpleNamespace(models=models, sample_batch=sample_batch)


def test_few_rows_share_few_programs():
    """Powers of two for each device, so that 40 and 60 prompts run the same compiled function."""
    one = network(1)
    assert [rows_at_a_time(one, n) for n in (0, 1, 2, 3, 40, 60, 64)] == [1, 1, 2, 4, 64, 64, 64]
    assert [rows_at_a_time(one, n) for n in (200, 256, 1000)] == [256] * 3
    eight = network(8)
    assert [rows_at_a_time(eight, n) for n in (1, 9, 40, 60)] == [8, 16, 64, 64]


def test_never_more_than_sample_batch():
    assert rows_at_a_time(network(1, sample_batch=48), 40) == 48


def test_the_ids_that_a_tokenizer_does_not_have():
    words = wordtok.words()
    assert unknown_ids(words, 17) == ()
    assert unknown_ids(words, 20) == (17, 18, 19)
    gap: Any = types.SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 3})
    assert unknown_ids(gap, 5) == (1, 2, 4)


# --- how a model is asked ---

TEMPLATE = "{% for m in messages %}task : {{ m.content }} {% endfor %}reply :"
ASKED = [{"prompt": "a b"}]
IN_MESSAGES = wordtok.ids("<bos> task : a b reply :")


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder `theirs` of a model whose tokenizer has a chat template."""
    monkeypatch.chdir(tmp_path)
    tok = wordtok.words.__wrapped__()
    tok.chat_template = TEMPLATE
    tok.save_pretrained("theirs")
    Path("theirs/config.json").write_text(json.dumps(LLAMA))
    return tok


def network_of(run, place):
    return run.network(run.spec(place))


def test_a_text_is_a_message_to_a_model_of_others(theirs):
    """In sample and in chat, unless the user gives a template."""
    room = ["--text.max_prompt", "8"]
    net = network_of(*find("theirs", "policy", room))
    assert encode(net, ASKED) == ([ASKED[0]], [IN_MESSAGES])
    said = [{"role": "user", "content": "a b"}]
    assert chat.conversation_ids(net.tokenizer, net.text, said) == IN_MESSAGES
    own = network_of(*find("theirs", "policy", [*room, "--text.template", "a {prompt} :"]))
    written = encode_prompt(theirs, "a b", template="a {prompt} :")
    assert encode(own, ASKED) == ([ASKED[0]], [written])
    assert chat.conversation_ids(own.tokenizer, own.text, said) == written


def test_in_a_run_others_are_asked_their_way_and_its_own_its_way(theirs):
    """The base of a run that trains is asked as what is made from it."""
    tree = {
        "out": "run",
        "base": "theirs",
        "data": {"tokenizer": "theirs"},
        "text": {"template": "a {prompt} :", "max_prompt": 8, "max_completion": 4},
        "stages": {"sft": {"epochs": 1}},
        "mesh": {"data": 1},
    }
    run = Run(build_run(tree, "test"), Path("run"))
    base = network_of(run, Place(None, None, "theirs"))
    other = network_of(run, Place(None, None, "./theirs"))
    sft = network_of(run, Place(None, "sft"))
    written = encode_prompt(theirs, "a b", template="a {prompt} :")
    for net, expected in ((base, written), (sft, written), (other, IN_MESSAGES)):
        assert encode(net, ASKED)[1] == [expected]
    assert ids_for(other, sft, ASKED, [written]) == [IN_MESSAGES]
    assert ids_for(sft, other, ASKED, [IN_MESSAGES]) == [written]
