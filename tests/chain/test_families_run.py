"""A model of torch goes in, the whole chain runs, and torch loads what comes out: one family for
each mechanism, records in every format that is read.

tests/huggingface/test_families.py has all families.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import userfiles
from data import wordtok

pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
import jax
import torch
import torch_models
import transformers

from instruct_jax.chain import parameters
from instruct_jax.chain.context import Run
from instruct_jax.chain.identity import stage_hash
from instruct_jax.chain.parameters import Model
from instruct_jax.chain.read import load_run
from instruct_jax.cli import main
from instruct_jax.models.lora import fold_adapters

CHAINS = {
    # norms of queries and keys; all weights
    "qwen3": "",
    # learned positions, and one matrix for queries, keys and values
    "gpt2 with adapters": "lora: {rank: 2, targets: [q, v, out, up], dropout: 0.1}\n",
    # rotary positions, and several heads that share keys and values
    "llama 3 with shared layers": "frozen_layers: 2\n",
}
CONFIG = """
out: run
base: ./base
sample_batch: 8
data:
  texts: [texts.jsonl, plain.txt]
  demonstrations: [demos.jsonl, chats.jsonl, tasks.jsonl]
  rankings: [ranks.jsonl, pairs.jsonl, hh.jsonl]
  prompts: [prompts.jsonl, asked.jsonl]
text: {max_prompt: 12, max_completion: 8}
model: {vocab_multiple: 8}
mesh: {data: 1}
stages:
  sft: {epochs: 1, batch: 4, length: 24, optimizer: {learning_rate: 1.0e-3}}
  reward: {start: sft, batch: 2, optimizer: {learning_rate: 1.0e-3}}
  select: {start: sft, reward: reward}
  ppo:
    start: select
    reward: reward
    iterations: 1
    batch: 8
    minibatch: 8
    warmup_iterations: 0
    ptx_coef: 1.0
    ptx_batch: 4
    ptx_length: 24
    sampler: {max_tokens: 8}
    optimizer: {learning_rate: 1.0e-2, schedule: constant}
  evaluate:
    models: [base, select, ppo]
    baseline: select
    reward: reward
    prompts: 4
    temperatures: [1.0]
    best_of: [1, 2]
    best_of_prompts: 4
    chosen_best_of: 2
    shots: 0
"""
PAIRS = [{"prompt": f"{x} b", "chosen": "c d", "rejected": "d"} for x in "abcde"]
HH = [
    {"chosen": f"\n\nHuman: {x}\n\nAssistant: b c", "rejected": f"\n\nHuman: {x}\n\nAssistant: d"}
    for x in "abcde"
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": x},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d e"},
        ]
    }
    for x in "abcde"
]
DATA = {
    "texts.jsonl": [{"text": "a b c d e f"}] * 8,
    "plain.txt": b"a b c d\ne f g h\n",
    "demos.jsonl": [{"prompt": f"{x} b", "completion": "c d"} for x in "abcdefg"],
    "chats.jsonl": CHATS,
    "tasks.jsonl": [{"instruction": f"{x} a", "input": "b", "output": "c"} for x in "abcdefg"],
    "ranks.jsonl": [
        {"prompt": f"{x} a", "completions": ["b", "c", "d"], "ranks": [1, 2, 2]} for x in "abcdefg"
    ],
    "pairs.jsonl": PAIRS,
    "hh.jsonl": HH,
    "prompts.jsonl": [{"prompt": f"{x} {y}"} for x in "abcd" for y in "efgh"],
    "asked.jsonl": [{"prompt": [{"role": "user", "content": x}]} for x in "abcd"],
}


def make(folder: Path, name: str) -> None:
    torch_models.save(torch_models.model_of(name), folder / "base")
    wordtok.words().save_pretrained(folder / "base")
    (folder / "run.yaml").write_text(CONFIG)
    for file, records in DATA.items():
        userfiles.write(folder / file, records)


@pytest.fixture(scope="module", params=CHAINS)
def chain(request, tmp_path_factory):
    """The folder of a finished chain."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make(folder, request.param.partition(" with ")[0])
        (folder / "run.yaml").write_text(CONFIG + CHAINS[request.param])
        # its programs are those of `select` and `ppo`, so one chain of the three is enough
        less = [] if request.param == "qwen3" else ["--evaluate", "null"]
        assert main(["check", "--config", "run.yaml", *less]) == 0
        assert main(["run", "--config", "run.yaml", *less]) == 0
        yield folder


def opened(folder: Path) -> Run:
    return Run(load_run(folder / "config.yaml"), folder)


def policy(run: Run, name: str) -> Model:
    return parameters.policy(run, run.place(name, "models"))


TOKENS = np.random.default_rng(0).integers(4, 20, (2, 9))
ALL = np.ones_like(TOKENS)


def logits(model: Model) -> jax.Array:
    """Of TOKENS, those of ids that the tokenizer does not have too."""
    lm = model.net.policy._replace(never=())
    hidden = lm.hidden(model.params, jax.numpy.array(TOKENS), jax.numpy.array(ALL))
    rows = lm.logits(model.params, hidden.reshape(-1, hidden.shape[-1]))
    return rows.reshape(*TOKENS.shape, -1)


def test_the_policy_goes_out(chain):
    out = chain / "policy"
    assert main(["export", "run:ppo", "--out", str(out)]) == 0
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    theirs, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model = policy(opened(chain / "run"), "ppo")
    torch_models_close(logits(model), torch_models.logits(theirs, TOKENS, ALL))
    base = transformers.AutoModelForCausalLM.from_pretrained(chain / "base")
    pairs = zip(base.parameters(), theirs.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)  # it was trained
    tok = transformers.AutoTokenizer.from_pretrained(out)
    assert tok.encode("a b") == model.net.tokenizer.encode("a b")
    card = (out / "README.md").read_text()
    assert "## Lineage" in card and re.search(r"\| ppo \| .*select \([0-9a-f]{12}\)", card)
    generation = json.loads((out / "generation_config.json").read_text())
    assert (generation["eos_token_id"],) == model.net.ends


def test_the_reward_model_goes_out_with_its_bias(chain):
    out = chain / "rewards"
    assert main(["export", "run:reward", "--out", str(out)]) == 0
    run = opened(chain / "run")
    net, params = parameters.scalar(run, run.place("reward", "reward"))
    ours = net.scalar.score(params, jax.numpy.array(TOKENS), jax.numpy.array(ALL, bool))
    bias = float(params["head"]["bias"])
    assert abs(bias) > 1e-3
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    with_bias = load(out, num_labels=1, trust_remote_code=True)
    torch_models_close(ours, torch_models.logits(with_bias, TOKENS, ALL)[:, 0])
    plain = load(out, num_labels=1, trust_remote_code=False)
    torch_models_close(np.asarray(ours) - bias, torch_models.logits(plain, TOKENS, ALL)[:, 0])


def test_adapters_are_all_that_is_kept(chain):
    if opened(chain / "run").config.lora is None:
        pytest.skip("this chain trains all weights")
    [notes] = (chain / "run" / "ppo" / "checkpoints").glob("1/_CHECKPOINT_METADATA")
    kept = json.loads(notes.read_text())["custom_metadata"]["digests"]
    weights = [
        name
        for name in kept
        if name.startswith(("params", "opt_state", "ema")) and not name.endswith("count")
    ]
    assert len(weights) > 50 and all("_lora" in name or ".head." in name for name in weights)
    first = json.loads((chain / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["ppo/kl"] == 0 and abs(first["rollout/logp_gap"]) < 1e-5


def test_shared_layers_are_those_of_the_base(chain):
    run = opened(chain / "run")
    if not run.config.frozen_layers:
        pytest.skip("this chain shares no layers")
    base, after = policy(run, "base").params, policy(run, "ppo").params
    assert base["lower_layers"]["q"]["kernel"].shape[0] == 2
    assert base["layers"]["q"]["kernel"].shape[0] == 1
    jax.tree.map(np.testing.assert_array_equal, base["lower_layers"], after["lower_layers"])
    upper = [np.asarray(params["layers"]["q"]["kernel"]) for params in (base, after)]
    assert (upper[0] != upper[1]).any()
    [notes] = (chain / "run" / "ppo" / "checkpoints").glob("1/_CHECKPOINT_METADATA")
    assert "lower_layers" not in notes.read_text().partition("digests")[2]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_adapters_go_to_peft_and_back(chain, capsys):
    peft = pytest.importorskip("peft", reason="peft is only for tests: pip install peft")
    run = opened(chain / "run")
    argv = ["export", "run:ppo", "--out", "adapter", "--adapter"]
    if run.config.lora is None:
        return userfiles.refused(main, argv, ("--adapter", "has no adapter"), capsys)
    assert main(argv) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    before = torch_models.logits(base, TOKENS, ALL)
    theirs = peft.PeftModel.from_pretrained(base, "adapter")
    model = policy(run, "ppo")
    found = torch_models.logits(theirs, TOKENS, ALL)
    torch_models_close(logits(model), found)
    assert np.abs(found - before).max() > 1e-3
    keys = ["--data.tokenizer", "base", "--model.vocab_multiple", "8"]
    assert main(["import", "adapter", "--out", "from_adapter", *keys]) == 0
    back = policy(opened(Path("from_adapter")), "import").params
    whole = fold_adapters(model.params, run.config.lora)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def torch_models_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_what_went_out_comes_in_again(chain):
    out = chain / "again"
    assert main(["export", "run:sft", "--out", str(out)]) == 0
    assert main(["import", str(out), "--out", "imported", "--model.vocab_multiple", "8"]) == 0
    run = opened(chain / "run")
    back = policy(opened(Path("imported")), "import").params
    went = fold_adapters(policy(run, "sft").params, run.config.lora)
    lower = went.pop("lower_layers", None)
    if lower:
        went["layers"] = jax.tree.map(
            lambda a, b: jax.numpy.concatenate([a, b]), lower, went["layers"]
        )
    jax.tree.map(np.testing.assert_array_equal, back, went)


def test_a_run_starts_from_what_came_in(chain):
    shared = opened(chain / "run").config.frozen_layers
    keys = ["--model.vocab_multiple", "8", "--frozen_layers", str(shared)]
    assert main(["import", "./base", "--out", "begun", *keys]) == 0
    argv = ["run", "--config", "run.yaml", "--stages", "sft", "--out", "second"]
    assert main([*argv, "--base", "begun:import"]) == 0
    ours, theirs = (
        json.loads(Path(f"{name}/sft/done.json").read_text()) for name in ("second", "run")
    )
    assert ours["inputs"]["uses.start"] == stage_hash(Path("begun/import"))
    assert (
        ours["output"] == theirs["output"]
    )  # the same weights, whichever place they are read from


def test_nothing_is_overwritten(chain, capsys):
    (chain / "there").mkdir()
    argv = ["export", "run:sft", "--out", "there"]
    userfiles.refused(main, argv, ("there exists", "--out"), capsys)
    argv = ["export", "run:dpo", "--out", "new"]
    userfiles.refused(main, argv, ("run:dpo", "one of sft, reward, select, ppo"), capsys)


def test_a_name_of_the_hub_without_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    argv = ["import", "nobody/nothing", "--out", "x"]
    userfiles.refused(main, argv, ("nobody/nothing", "hf download", "--local-dir"), capsys)


def no_network(*args, **options):
    raise OSError("no network")


def test_a_config_that_contradicts_its_base(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "gpt2")
    argv = ["check", "--config", "run.yaml", "--model.width", "64"]
    userfiles.refused(main, argv, ("model.width=64, but ./base has 30",), capsys)
