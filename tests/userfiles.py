"""A folder of files as a user would have them: a tokenizer, four kinds of records, and a config
over them; all tiny.
"""

import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from data import wordtok

CONFIG = """
out: runs/a
sample_batch: 8
data:
  tokenizer: tok
  texts: [texts.jsonl]
  demonstrations: [demos.jsonl]
  rankings: [ranks.jsonl]
  prompts: [prompts.jsonl]
text: {max_prompt: 6, max_completion: 6}
model: {vocab_size: 20, context: 16, width: 16, layers: 1, heads: 2}
mesh: {data: 1}
stages:
  pretrain: {steps: 1, batch: 4, length: 16}
  sft: {epochs: 1, batch: 4, length: 16}
  reward: {start: sft, batch: 4}
  select: {start: sft, reward: reward}
  ppo:
    start: select
    reward: reward
    iterations: 1
    batch: 8
    minibatch: 4
    sampler: {max_tokens: 6}
  evaluate: {models: [base, select, ppo], baseline: select, reward: reward}
"""
# of the run that tests/finished_run.py finishes
OVERRIDES = """
--data.held_out 0.25 --data.held_out_tokens 32 --text.on_long truncate_left
--reward.normalize mean_and_std --sft.epochs 2
--ppo.ptx_coef 1 --ppo.ptx_batch 4 --ppo.ptx_length 16 --ppo.start ppo_start
--evaluate.temperatures [1.0] --evaluate.best_of [1,2] --evaluate.chosen_best_of 2
--evaluate.models [base,select,ppo_start,ppo]
--stages.ppo_start.kind sft --stages.ppo_start.epochs 1 --stages.ppo_start.batch 4
--stages.ppo_start.length 16 --stages.ppo_start.pretrain_mix 0.25
""".split()
DATA = {
    "texts.jsonl": [{"text": "a b c"}] * 4,
    "demos.jsonl": [{"prompt": "a b", "completion": "c d"}] * 4,
    "ranks.jsonl": [{"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, 2, 2]}] * 4,
    "prompts.jsonl": [{"prompt": f"{x} {y}"} for x in "abc" for y in "efgh"],
}


def make(folder: Path) -> Path:
    """Fills the folder with everything that a run needs."""
    (folder / "run.yaml").write_text(CONFIG)
    wordtok.words().save_pretrained(folder / "tok")
    for name, records in DATA.items():
        write(folder / name, records)
    return folder


def write(path: Path, content: bytes | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else "".join(json.dumps(record) + "\n" for record in content).encode()
    )


def environment(devices: int = 1) -> dict[str, str]:
    """Of a process with so many CPU devices; it compiles as the suite does."""
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"{count}\d+", f"{count}{devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags}


def fake_run(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]) -> None:
    """Puts `run(config, stages)` in the place of the pipeline."""
    monkeypatch.setitem(sys.modules, "instruct_jax.chain.run", types.SimpleNamespace(run=run))


def refused(
    main: Callable[[list[str]], int],
    argv: list[str],
    message: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command ends with exit code 2 and one message that holds all parts of `message`, and
    prints nothing else.
    """
    code, shown = main(argv), capsys.readouterr()
    assert code == 2
    for part in message:
        assert part in shown.err
    assert (
        len(re.findall(r"^(?:instruct-jax[a-z -]*: )?error: ", shown.err, re.MULTILINE)) == 1
        and "Traceback" not in shown.err
        and not shown.out
    )
    assert len(shown.err) < 1000
