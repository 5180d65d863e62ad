"""`check --show-tokens`: the tables hold what the stages train on."""

import io

import pytest
import userfiles
from data.wordtok import gpt2_folder
from rich.console import Console

from instruct_jax.chain.read import load_run
from instruct_jax.cli import main
from instruct_jax.commands.show_tokens import show_tokens

CHECK = ["check", "--config", "run.yaml"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return userfiles.make(tmp_path)


def tables(shown: str) -> dict[str, list[list[str]]]:
    """title -> rows"""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in shown.splitlines():
        if line.startswith(("texts ", "demonstrations ", "rankings ", "prompts ")):
            heading = line.strip()
            found.setdefault(heading, [])
        elif line.split()[:1] and line.split()[0].isdigit():
            found[heading].append(line.split())
    return found


def test_each_token_with_what_becomes_of_it(place, capsys):
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "i"), ("assistant", "b"), ("user", "c"))
    ]
    userfiles.write(place / "demos.jsonl", [{"prompt": turns, "completion": "d"}])
    longer = ["--text.max_prompt", "9", "--model.context", "20"]
    assert main([*CHECK, *longer, "--show-tokens", "1"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown  # no colours where it is piped
    found = tables(shown.partition("dropped or cut 0")[2])
    assert list(found) == [
        "texts 1",
        "demonstrations 1",
        *(f"rankings 1, completion {k} of rank {min(k, 2)}" for k in (1, 2, 3)),
        "prompts 1",
    ]
    said = [
        ("<bos>", 1),
        ("<unk>", 3),
        ("i", 15),
        ("<unk>", 3),
        ("b", 8),
        ("<eos>", 2),
        ("<unk>", 3),
        ("c", 9),
        ("<unk>", 3),
        ("d", 10),
    ]
    learned = {"b", "<eos>", "d"}
    assert found["demonstrations 1"] == [
        [str(i), str(token), f"'{piece}'", "learned" if piece in learned else "read"]
        for i, (piece, token) in enumerate([*said, ("<eos>", 2)])
    ]
    assert [row[3] for row in found["texts 1"]] == ["read", *["learned"] * 4]
    assert found["rankings 1, completion 1 of rank 1"][-1] == ["3", "2", "'<eos>'", "reward"]
    assert {row[3] for row in found["prompts 1"]} == {"read"}


def test_colours_on_a_terminal_and_control_characters_in_sight(place):
    text = io.StringIO()
    gpt2_folder(place / "bytes")
    text_format = r"{template: '{prompt}\n', max_completion: 6, max_prompt: 8}"
    config = load_run("run.yaml", ["--data.tokenizer", "bytes", "--text", text_format])
    userfiles.write(place / "prompts.jsonl", [{"prompt": "\t[b]é"}])
    show_tokens(config, 1, Console(file=text, force_terminal=True, width=80))
    assert "\x1b[32mlearned" in text.getvalue() and "\x1b[1;35mreward" in text.getvalue()
    assert r"'\t'" in text.getvalue() and "'['" in text.getvalue() and "'Ã'" in text.getvalue()


def test_the_world_has_records_before_it_is_run(tmp_path, monkeypatch, capsys, request):
    config = request.config.rootpath / "configs/quickstart_smoke.yaml"
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", str(config), "--show-tokens"]) == 0
    found = tables(capsys.readouterr().out.partition("demonstrations, made by the run")[2])
    assert list(found) == [
        f"{kind} {n}" for kind in ("texts", "demonstrations", "prompts") for n in (1, 2, 3)
    ]
    assert not list(tmp_path.iterdir())


def test_a_number_below_one(place, capsys):
    argv = [*CHECK, "--show-tokens", "x"]
    userfiles.refused(main, argv, ("invalid int value: 'x'",), capsys)
    assert main([*CHECK, "--show-tokens", "0"]) == 2
    assert "--show-tokens 0 must be at least 1" in capsys.readouterr().err
