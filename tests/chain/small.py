"""Runs of the smallest size on files of ten words, written and started as a user does it."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import userfiles
import yaml
from data import wordtok

from instruct_jax.cli import main

ADAM = {"learning_rate": 1e-2}
MODEL = {
    "family": "gpt2",
    "vocab_size": len(wordtok.WORDS),
    "context": 16,
    "width": 16,
    "layers": 1,
    "heads": 2,
}
PRETRAIN = {"steps": 2, "batch": 4, "length": 16, "optimizer": ADAM}
SFT = {"epochs": 2, "batch": 4, "length": 16, "dropout": 0.0, "optimizer": ADAM}
REWARD = {"batch": 4, "optimizer": ADAM}
DPO = {"batch": 4, "optimizer": ADAM}
PPO = {
    "iterations": 2,
    "batch": 8,
    "minibatch": 4,
    "warmup_iterations": 0,
    "ema_decay": 0.0,
    "optimizer": ADAM | {"schedule": "constant"},
    "value_optimizer": ADAM | {"schedule": "constant"},
    "sampler": {"max_tokens": 6},
}
PTX = {"ptx_coef": 1.0, "ptx_batch": 4, "ptx_length": 16}
EVALUATE = {
    "temperatures": [1.0],
    "best_of": [1],
    "best_of_prompts": 4,
    "chosen_best_of": 1,
    "samples_shown": 2,
}
# config.json of a model of somebody else
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def words(rng: np.random.Generator, least: int, most: int) -> str:
    return " ".join(rng.choice(list("abcdefghij"), rng.integers(least, most + 1)))


def rankings(seed: int, count: int, sizes: Iterable[int] = (2, 3)) -> list[dict]:
    """Rankings of so many completions in turn."""
    rng, sizes = np.random.default_rng(seed), list(sizes)
    rows = []
    for number in range(count):
        k = sizes[number % len(sizes)]
        completions = []
        while len(completions) < k:
            text = words(rng, 1, 3)
            if text not in completions:
                completions.append(text)
        ranks = list(range(1, k + 1))
        rows.append({"prompt": words(rng, 1, 3), "completions": completions, "ranks": ranks})
    return rows


def demonstrations(seed: int, count: int = 12) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"prompt": words(rng, 2, 4), "completion": words(rng, 1, 4)} for _ in range(count)]


def prompts(seed: int, count: int = 16) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{"prompt": words(rng, 1, 4)} for _ in range(count)]


def make_files(folder: Path) -> Path:
    """A tokenizer and four kinds of records."""
    rng = np.random.default_rng(0)
    wordtok.words().save_pretrained(folder / "tok")
    texts = [{"text": words(rng, 3, 30)} for _ in range(20)]
    userfiles.write(folder / "texts.jsonl", texts)
    userfiles.write(folder / "demos.jsonl", demonstrations(1))
    userfiles.write(folder / "ranks.jsonl", rankings(2, 16))
    userfiles.write(folder / "prompts.jsonl", prompts(3))
    return folder


def config(out: str, stages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """The config of a run on the files; base is the pretrained model of runs/base."""
    data = {
        "demonstrations": ["demos.jsonl"],
        "rankings": ["ranks.jsonl"],
        "prompts": ["prompts.jsonl"],
        "texts": ["texts.jsonl"],
        "held_out": 0.25,
        "held_out_tokens": 32,
    }
    common = {
        "out": f"runs/{out}",
        "base": "runs/base:pretrain",
        "sample_batch": 8,
        "data": data,
        "text": {"max_prompt": 6, "max_completion": 6},
        "mesh": {"data": 1, "fsdp": 1},
    }
    return common | keys | {"stages": stages}


def command(config: dict[str, Any], *options: str, verb: str = "run") -> int:
    """The exit code of `instruct-jax run` on this config in the current folder."""
    file = Path(f"{Path(config['out']).name}.yaml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return main([verb, "--config", str(file), *options])


def run(config: dict[str, Any], *options: str) -> Path:
    """Runs all stages; not the report, which takes as long as some of them."""
    assert command(config, "--stages", ",".join(config["stages"]), *options) == 0
    return Path(config["out"])


def base_run() -> Path:
    """runs/base: a pretrained model and an SFT model, which other runs start from."""
    keys = {"base": None, "model": MODEL}
    tree = config("base", {"pretrain": PRETRAIN, "sft": SFT}, **keys)
    tree["data"]["tokenizer"] = "tok"
    return run(tree)


def note(folder: Path, stage: str, name: str = "done.json") -> dict[str, Any]:
    return json.loads((folder / stage / name).read_text())


def metrics(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = (folder / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def said_in_chat(model: str, patch: pytest.MonkeyPatch, capsys: Any, *options: str) -> str:
    """What `instruct-jax chat` prints after one message."""
    patch.setattr("sys.stdin", io.StringIO("a b\n"))
    capsys.readouterr()
    assert main(["chat", model, "--max_tokens", "3", *options]) == 0
    return capsys.readouterr().out
