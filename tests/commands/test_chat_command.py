"""The chat command as a user types into it: on the finished run, and on folders of torch models."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import userfiles
from data import wordtok

from instruct_jax.chain import networks
from instruct_jax.cli import main
from instruct_jax.commands import chat
from instruct_jax.commands.open_model import Opened, open_policy, open_reward
from instruct_jax.data.encode import TextFormat
from instruct_jax.data.packing import pad_prompts
from instruct_jax.data.readers import read_samples
from instruct_jax.data.tokenize import MESSAGES, encode_prompt, load_tokenizer
from instruct_jax.errors import DataError
from instruct_jax.records import PromptBatch
from instruct_jax.stages.rollout import SamplerConfig

WORDS = wordtok.words()
OWN = TextFormat(template="task : {prompt} reply :")
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
    {"role": "user", "content": "f"},
]


@pytest.fixture
def say(finished, place, monkeypatch, capsys):
    """say(arguments, *lines typed) -> what is shown behind the greeting, line by line, without what
    a clock measured.
    """
    monkeypatch.chdir(place)

    def run(args: str, *lines: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", *args.split()]) == 0
        shown = capsys.readouterr().out.partition("/help lists the commands\n")[2]
        return re.sub(r", \d+ tokens/s", "", shown).splitlines()

    return run


# --- what is asked ---


def test_a_conversation_in_the_template_of_the_run():
    told = "<bos> task : a reply : b c <eos> task : d reply : e <eos> task : f reply :"
    assert chat.conversation_ids(WORDS, OWN, TALK) == wordtok.ids(told)
    assert chat.conversation_ids(WORDS, OWN, TALK[:1]) == encode_prompt(
        WORDS, "a", template=OWN.template
    )


def test_a_conversation_as_messages(tmp_path):
    letters, form = load_tokenizer(wordtok.gpt2_folder(tmp_path)), TextFormat(template=MESSAGES)
    assert chat.conversation_ids(letters, form, TALK) == encode_prompt(letters, TALK)
    assert chat.conversation_ids(letters, form, TALK[:1]) == encode_prompt(
        letters, "a", template=MESSAGES
    )
    tok = wordtok.words.__wrapped__()
    tok.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }} : {%"
        " endfor %}"
    )
    assert (
        chat.conversation_ids(tok, TextFormat(), TALK)
        == encode_prompt(tok, TALK)
        == wordtok.ids("<bos> a : b c <eos> : d : e <eos> : f :")
    )


def test_the_oldest_exchanges_go_first():
    whole = chat.conversation_ids(WORDS, OWN, TALK)
    assert chat.fit(WORDS, OWN, TALK, len(whole)) == (TALK, whole)
    assert chat.fit(WORDS, OWN, TALK, len(whole) - 1)[0] == TALK[2:]
    assert chat.fit(WORDS, OWN, TALK, 6) == (TALK[4:], wordtok.ids("<bos> task : f reply :"))
    with pytest.raises(DataError, match="message='f' makes 6 tokens, 5 fit"):
        chat.fit(WORDS, OWN, TALK, 5)


# --- what is answered ---


def sampled(model: Opened, ids, width: int, sampler: SamplerConfig, key) -> list[int]:
    """The reply of the sampler."""
    batch = PromptBatch(*pad_prompts([ids], width, pad=0))
    rollout = model.net.rollout(sampler)(model.params, batch, key)
    return np.asarray(rollout.tokens[0])[np.asarray(rollout.mask[0])].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_tokens_are_those_of_the_sampler(temperature, finished, place, monkeypatch):
    monkeypatch.chdir(place)
    model = open_policy("runs/a")
    sampler = SamplerConfig(max_tokens=6, temperature=temperature)
    speaker = chat.ChatModel(model, 16, 6)
    for number, prompt in enumerate(("<bos> a", "<bos> a b c d e f g h i")):
        ids = wordtok.ids(prompt)
        reply = list(speaker.reply(ids, sampler, jax.random.key(number)))
        assert reply == sampled(model, ids, 12, sampler, jax.random.key(number))


def test_characters_are_shown_once_they_are_whole(tmp_path):
    tok: Any = load_tokenizer(wordtok.gpt2_folder(tmp_path))
    text = " né€, \U0001f600"
    ids, said = tok.encode(text), []
    shown = list(chat.pieces(tok.decode, iter(ids), said))
    assert "".join(shown) == text.lstrip() and said == ids and len(shown) == len(ids) + 1
    assert [piece for piece in shown if piece] == ["n", "é", "€", ",", " ", "\U0001f600"]
    # it ended in the middle
    assert list(chat.pieces(tok.decode, iter(ids[:3]), [])) == ["", "n", "", "\ufffd"]


def test_no_reply_commands_the_terminal():
    assert (
        chat.visible("a\x1b[2J\r\x9b\x07\u202eb\n\t é\U0001f600")
        == "a\\x1b[2J\\r\\x9b\\x07\\u202eb\n\t é\U0001f600"
    )


# --- the loop ---


def test_a_conversation(say):
    """A reply has the same words whoever asks for it; the reward is that of the run's
    reward model.
    """
    first = say("runs/a --temperature 0 --reward runs/a", "a b")
    assert first == say(
        "runs/a:ppo --reward runs/a:reward", "/temperature 0", "", "a b", "/quit", "c d"
    )
    model, judge = open_policy("runs/a:ppo"), open_reward("runs/a")
    prompt = encode_prompt(WORDS, "a b")
    reply = sampled(model, prompt, 8, SamplerConfig(8, 0.0), jax.random.key(0))
    [reward] = networks.rewards(judge.net, judge.params, [[*prompt, *reply]])
    assert first == [
        " ".join(WORDS.convert_ids_to_tokens(reply)),
        f"cut off by --max_tokens, 8 tokens, reward {reward:.3f}",
    ]


def test_the_seed_and_the_temperature_choose_the_words(say):
    drawn = [
        say(f"runs/a --temperature 1.5 --seed {seed}", "a b", "/reset", "a b") for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][:2] != drawn[0][2:]
    assert say("runs/a", "/temperature x", "/temperature -1", "/temperature") == [
        f"error: /temperature {value} must be followed by a number that is not negative; 0 is"
        " greedy decoding"
        for value in ("x", "-1", "")
    ]


def test_the_conversation_stays_within_the_context(say):
    shown = say("runs/a --max_tokens 4 --temperature 0", "a b", "c d e", "f", "/reset", "f")
    assert [line for line in shown if "forgotten" in line] == [
        "the context is full: 1 exchange forgotten, the oldest first"
    ]
    assert shown[-2:] == say("runs/a --max_tokens 4 --temperature 0", "f")
    [error, *reply] = say("runs/a --max_tokens 4 --temperature 0", "a " * 12, "f")
    assert (
        "makes 13 tokens, 12 fit beside a reply; shorten it, or lower --max_tokens" in error
        and reply == shown[-2:]
    )


def test_two_models_side_by_side(say, monkeypatch):
    def another(name, overrides):
        model = open_policy(name, overrides)
        if name.endswith("pretrain"):
            return model._replace(params=jax.tree.map(lambda x: -x, model.params))
        return model

    monkeypatch.setattr(chat, "open_policy", another)  # after one step the two would say the same
    a, b = (
        say(f"runs/a:{stage} --temperature 0 --max_tokens 3", "a", "b")
        for stage in ("ppo", "pretrain")
    )
    assert a != b
    both = say("runs/a:ppo runs/a:pretrain --temperature 0 --max_tokens 3", "a", "b")
    assert both == [
        "a  runs/a:ppo",
        *a[:2],
        "b  runs/a:pretrain",
        *b[:2],
        "a  runs/a:ppo",
        *a[2:],
        "b  runs/a:pretrain",
        *b[2:],
    ]
    apart = say(
        "runs/a:ppo runs/a:pretrain --temperature 0 --max_tokens 3",
        "/b",
        "a",
        "/a",
        "a",
        "/both",
        "b",
    )
    # each remembers its own exchanges
    assert apart == [both[3], *b[:2], both[0], *a[:2], *both[6:]]
    assert say("runs/a --temperature 0 --max_tokens 3 --mesh.tensor 2", "a", "b") == a
    assert say("runs/a", "/b") == [
        "error: /b needs two models; start again with instruct-jax chat MODEL MODEL"
    ]


def test_ctrl_c_stops_a_reply_and_keeps_what_was_said(say, monkeypatch):
    asked, reply = [], chat.ChatModel.reply
    after = iter([2, 0])

    def stopped(self, ids, sampler, key):
        asked.append(ids)
        stop = next(after, None)
        for number, token in enumerate(reply(self, ids, sampler, key)):
            if number == stop:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(chat.ChatModel, "reply", stopped)
    shown = say("runs/a --temperature 0 --max_tokens 5", "a b", "c", "d")
    assert (
        shown[1:4] == ["stopped by Ctrl-C, 2 tokens", "", "stopped by Ctrl-C"] and len(shown) == 6
    )
    # what was not answered is forgotten
    assert asked[2] == wordtok.ids(f"<bos> a b {shown[0]} <eos> d")


def test_commands(say):
    assert say("runs/a", "/help") == chat.HELP.splitlines()
    assert say("runs/a", "/nothing") == ["error: /nothing is no command; /help lists them"]


def test_input_that_is_no_text(finished, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a \xff\n"), encoding="utf-8"))
    assert main(["chat", "runs/a"]) == 2 and "not UTF-8" in capsys.readouterr().err


BAD = {
    "./nowhere": ("nowhere: no such run or model folder", "OWNER/NAME"),
    "tok": ("tok has no config.yaml of a run and no config.json of a model",),
    "nowhere:ppo": ("nowhere is no run folder", "give RUN:STAGE"),
    "runs/a:reward": ("reward is no stage of this run that leaves a policy; use one of", "ppo"),
    "begun": ("begun has no finished stage that leaves a policy; run it first",),
    "begun:sft": ("begun has not finished the stage sft; run it first",),
    "runs/a --reward runs/a:sft": (
        "sft is no stage of this run that leaves a reward model; use one of reward",
    ),
    "runs/a --reward begun": ("begun has no finished stage that leaves a reward model",),
    "runs/a --temperature -1": ("temperature=-1.0 must not be negative",),
    "runs/a --temperature much": ("--temperature", "much"),
    "runs/a --max_tokens 16": (
        "--max_tokens 16 must be at least 1, and less than the context of 16",
    ),
    "runs/a --context 17": ("--context 17 must lie in [2, 16], which is what runs/a:ppo reads",),
    "runs/a --mesh.fsdp 2": ("only mesh.tensor can split",),
    "runs/a --seed -1": ("--seed -1 must lie in",),
    "runs/a --text.templat x": ("text.templat", "did you mean text.template?"),
    "runs/a runs/a runs/a": ("'runs/a' is not expected here",),
}


@pytest.mark.parametrize("args, message", BAD.items(), ids=BAD)
def test_mistakes(args, message, finished, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    Path("begun").mkdir(exist_ok=True)
    shutil.copy("runs/a/config.yaml", "begun")
    userfiles.refused(main, ["chat", *args.split()], message, capsys)


# --- folders ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model and two reward models of torch; the last one has another tokenizer."""
    pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
    import torch_models

    place = tmp_path_factory.mktemp("folders")
    models = {}
    tokenizers = {"policy": WORDS, "judge": WORDS, "other": wordtok.words(eos_token="j")}
    for name, tok in tokenizers.items():
        models[name] = torch_models.model_of("qwen3", seed=3, head=name != "policy")
        torch_models.save(models[name], place / name)
        tok.save_pretrained(place / name)
    return place, models


def test_folders(folders, say, monkeypatch):
    """Greedy replies are torch's, and so is the reward; a conversation is one of messages."""
    import torch_models

    place, models = folders
    monkeypatch.chdir(place)
    ids = encode_prompt(WORDS, [{"role": "user", "content": "a b"}])
    said = list(ids)
    while said[-1] != wordtok.EOS and len(said) < len(ids) + 6:
        logits = torch_models.logits(models["policy"], np.array([said]), np.ones((1, len(said))))
        said.append(int(logits[0, -1, : len(WORDS)].argmax()))  # what the tokenizer can say
    reward = torch_models.logits(models["judge"], np.array([said]), np.ones((1, len(said))))[0, 0]
    shown = say("policy --reward judge --temperature 0 --max_tokens 6", "a b")
    assert shown[-1].endswith(f"{len(said) - len(ids)} tokens, reward {reward:.3f}")


def test_every_listed_end_ends_a_reply(folders, say, monkeypatch, tmp_path):
    """In chat, in samples and in the export of a run that starts from the folder."""
    place, _ = folders
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "policy", "policy")
    [said, _] = say("policy --temperature 0 --max_tokens 6", "a b")
    listed = [wordtok.ids(said)[0], wordtok.EOS]
    Path("policy/generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert say("policy --temperature 0 --max_tokens 6", "a b") == ["", "1 token"]
    userfiles.write(Path("prompts.jsonl"), [{"prompt": [{"role": "user", "content": "a b"}]}])
    args = "sample policy --prompts prompts.jsonl --out s.jsonl --temperature 0 --max_tokens 6"
    assert main(args.split()) == 0
    [record] = read_samples("s.jsonl")
    assert set(record["completions"]) == {""} and all(record["ended"])
    assert main(["import", "policy", "--out", "run"]) == 0
    assert main(["export", "run:import", "--out", "exported"]) == 0
    written = json.loads(Path("exported/generation_config.json").read_text())
    assert written["eos_token_id"] == listed


def test_another_tokenizer(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders[0])
    message = (
        "--reward other has another tokenizer than policy (16 ids with eos 16 there, 16 with eos 2"
        " here)",
        "the same one",
    )
    userfiles.refused(main, ["chat", "policy", "--reward", "other"], message, capsys)


def test_a_language_model_gives_no_reward(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders[0])
    userfiles.refused(
        main, ["chat", "policy", "--reward", "policy"], ("policy: score.weight is missing",), capsys
    )
