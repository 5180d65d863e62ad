"""A model of torch goes in, the whole chain runs, and torch loads what comes out: four families,
records in every format that is read.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import userfiles
from data import wordtok

pytest.importorskip("torch", reason="torch is only for tests: pip install torch")
import jax
import torch
import torch_models
import transformers
from instruct_jax.chain.base_model import load_run
from instruct_jax.chain.workspace import Workspace

from instruct_jax.chain.task import tokenizer_only
from instruct_jax.cli import main
from instruct_jax.models.lora import fold_adapters

CHAINS = {
    "gpt2": "",
    "gpt_neox": "",
    "llama 3": "",
    "qwen3": "",
    "qwen3 with adapters": "lora: {rank: 2, dropout: 0.1}\n",
    "gpt2 with adapters": "lora: {rank: 2, targets: [q, v, out, up]}\n",
    "llama 3 with shared layers": "frozen_layers: 2\n",
}
CONFIG = """
out: run
base: base
sample_batch: 8
files:
  texts: [texts.jsonl, plain.txt]
  demonstrations: [demos.jsonl, chats.jsonl, tasks.jsonl]
  rankings: [ranks.jsonl, pairs.jsonl, hh.jsonl]
  prompts: [prompts.jsonl, asked.jsonl]
text: {max_prompt: 12, max_completion: 8}
model: {vocab_multiple: 8}
mesh: {data: 1}
pretrain: {length: 24}
sft: {epochs: 1, batch: 4, length: 24, optimizer: {learning_rate: 1.0e-3}}
reward: {batch: 2, optimizer: {learning_rate: 1.0e-3}}
ppo: &ppo
  iterations: 1
  batch: 8
  minibatch: 8
  warmup_iterations: 0
  sampler: {max_tokens: 8}
  optimizer: {learning_rate: 1.0e-2, schedule: constant}
ppo_ptx: {<<: *ppo, ptx_coef: 1.0, ptx_batch: 4, ptx_length: 24}
evaluation: {prompts: 4, temperatures: [1.0], best_of: [1, 2], best_of_prompts: 4, chosen_best_of: 2, shots: 0}
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
        assert main(["check", "--config", "run.yaml"]) == 0
        assert main(["run", "--config", "run.yaml"]) == 0
        yield folder


def opened(folder: Path) -> Workspace:
    config = load_run(folder / "run" / "config.yaml")
    return Workspace(config, folder / "run", tokenizer_only(config, folder / "run"))


TOKENS = np.random.default_rng(0).integers(4, 20, (2, 9))


def test_the_policy_goes_out(chain):
    out = chain / "policy"
    assert main(["export", "run", "--stage", "ppo_ptx", "--out", str(out)]) == 0
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ws = opened(chain)
    params = ws.policy_of("ppo_ptx")
    hidden = ws.policy.hidden(params, jax.numpy.array(TOKENS), jax.numpy.ones(TOKENS.shape, int))
    ours = ws.policy.logits(params, hidden.reshape(-1, hidden.shape[-1])).reshape(*TOKENS.shape, -1)
    torch_models_close(ours, torch_models.logits(theirs, TOKENS, np.ones_like(TOKENS)))
    base = transformers.AutoModelForCausalLM.from_pretrained(chain / "base")
    pairs = zip(base.parameters(), theirs.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)  # it was trained
    tok = transformers.AutoTokenizer.from_pretrained(out)
    assert tok.encode("a b") == ws.task.tokenizer.encode("a b")
    card = (out / "README.md").read_text()
    assert "## Lineage" in card and re.search(r"\| ppo_ptx \| .*select [0-9a-f]{12}", card)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == ws.eos


def test_the_reward_model_goes_out_with_its_bias(chain):
    out = chain / "rewards"
    assert main(["export", "run", "--stage", "reward", "--out", str(out)]) == 0
    ws = opened(chain)
    params = ws.reward_params()
    ours = ws.scalar.score(params, jax.numpy.array(TOKENS), jax.numpy.ones(TOKENS.shape, bool))
    bias = float(params["head"]["bias"])
    assert abs(bias) > 1e-3
    options = {"num_labels": 1, "trust_remote_code": True}
    with_bias = transformers.AutoModelForSequenceClassification.from_pretrained(out, **options)
    torch_models_close(ours, torch_models.logits(with_bias, TOKENS, np.ones_like(TOKENS))[:, 0])
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        out, num_labels=1, trust_remote_code=False
    )
    torch_models_close(
        np.asarray(ours) - bias, torch_models.logits(plain, TOKENS, np.ones_like(TOKENS))[:, 0]
    )


def test_adapters_are_all_that_is_kept(chain):
    ws = opened(chain)
    if ws.config.lora is None:
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
    ws = opened(chain)
    if not ws.config.frozen_layers:
        pytest.skip("this chain shares no layers")
    base, after = ws.policy_of("pretrain"), ws.policy_of("ppo_ptx")
    assert (
        base["lower_layers"]["q"]["kernel"].shape[0] == 2
        and base["layers"]["q"]["kernel"].shape[0] == 1
    )
    jax.tree.map(np.testing.assert_array_equal, base["lower_layers"], after["lower_layers"])
    assert (
        np.asarray(base["layers"]["q"]["kernel"]) != np.asarray(after["layers"]["q"]["kernel"])
    ).any()
    [notes] = (chain / "run" / "ppo_ptx" / "checkpoints").glob("1/_CHECKPOINT_METADATA")
    assert "lower_layers" not in notes.read_text().partition("digests")[2]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # of peft
def test_adapters_go_to_peft_and_back(chain, capsys):
    peft = pytest.importorskip("peft", reason="peft is only for tests: pip install peft")
    ws = opened(chain)
    if ws.config.lora is None:
        argv = ["export", "run", "--stage", "ppo", "--out", "adapter", "--adapter"]
        return userfiles.refused(main, argv, ("--adapter", "no lora"), capsys)
    assert main(["export", "run", "--stage", "ppo_ptx", "--out", "adapter", "--adapter"]) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained("base")
    before = torch_models.logits(base, TOKENS, np.ones_like(TOKENS))
    theirs = peft.PeftModel.from_pretrained(base, "adapter")
    params = ws.policy_of("ppo_ptx")
    hidden = ws.policy.hidden(params, jax.numpy.array(TOKENS), jax.numpy.ones(TOKENS.shape, int))
    ours = ws.policy.logits(params, hidden.reshape(-1, hidden.shape[-1])).reshape(*TOKENS.shape, -1)
    found = torch_models.logits(theirs, TOKENS, np.ones_like(TOKENS))
    torch_models_close(ours, found)
    assert np.abs(found - before).max() > 1e-3
    assert (
        main(
            [
                "import",
                "adapter",
                "--out",
                "from_adapter",
                "--files.tokenizer",
                "base",
                "--model.vocab_multiple",
                "8",
            ]
        )
        == 0
    )
    config = load_run("from_adapter/config.yaml")
    back = Workspace(
        config, Path("from_adapter"), tokenizer_only(config, Path("from_adapter"))
    ).policy_of("pretrain")
    for a, b in zip(
        jax.tree.leaves(back), jax.tree.leaves(fold_adapters(params, ws.config.lora)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def torch_models_close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_what_went_out_comes_in_again(chain):
    out = chain / "again"
    assert main(["export", "run", "--stage", "sft", "--out", str(out)]) == 0
    assert main(["import", str(out), "--out", "imported", "--model.vocab_multiple", "8"]) == 0
    ws = opened(chain)
    config = load_run("imported/config.yaml")
    back = Workspace(config, Path("imported"), tokenizer_only(config, Path("imported")))
    went = fold_adapters(ws.policy_of("sft"), ws.config.lora)
    if lower := went.pop("lower_layers", None):
        went["layers"] = jax.tree.map(
            lambda a, b: jax.numpy.concatenate([a, b]), lower, went["layers"]
        )
    jax.tree.map(np.testing.assert_array_equal, back.policy_of("pretrain"), went)
    (chain / "second.yaml").write_text(CONFIG + "start: {folder: imported, stages: [pretrain]}\n")
    argv = [
        "run",
        "--config",
        "second.yaml",
        "--stages",
        "sft",
        "--base",
        str(out),
        "--out",
        "second",
    ]
    assert main(argv) == 0 and (chain / "second" / "pretrain").is_symlink()


def test_nothing_is_overwritten(chain, capsys):
    (chain / "there").mkdir()
    userfiles.refused(
        main,
        ["export", "run", "--stage", "sft", "--out", "there"],
        ("there exists", "--out"),
        capsys,
    )
    userfiles.refused(
        main, ["export", "run", "--stage", "dpo", "--out", "new"], ("dpo", "ppo_ptx"), capsys
    )


def test_a_name_of_the_hub_without_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    userfiles.refused(
        main,
        ["import", "nobody/nothing", "--out", "x"],
        ("nobody/nothing", "hf download", "--local-dir"),
        capsys,
    )


def no_network(*args, **options):
    raise OSError("no network")


def test_a_config_that_contradicts_its_base(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "gpt2")
    argv = ["check", "--config", "run.yaml", "--model.width", "64"]
    userfiles.refused(main, argv, ("model.width=64, but base has 30",), capsys)
