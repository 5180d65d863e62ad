"""What a config can say with named stages, each from run to export, chat, evaluation and report."""

import json
from pathlib import Path

import numpy as np
import pytest
import small
from data import wordtok

from instruct_jax.chain import ppo, sft
from instruct_jax.chain.context import Run
from instruct_jax.chain.read import load_run
from instruct_jax.cli import main
from instruct_jax.data.tokenize import load_tokenizer

SFT_OF_BASE = "runs/base:sft"  # where runs start that are not about SFT
JUDGED = {"reward": "reward", **small.EVALUATE}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """A folder with the files and runs/base, in which the tests of this file work."""
    folder = small.make_files(tmp_path_factory.mktemp("stages"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small.base_run()
        yield folder


@pytest.fixture
def used(monkeypatch, capsys):
    """Exports a stage and chats with it; returns the export."""

    def use(run: Path, stage: str, *, chat: bool = True) -> Path:
        out = Path("exports", run.name, stage)
        out.parent.mkdir(parents=True, exist_ok=True)
        assert main(["export", f"{run}:{stage}", "--out", str(out)]) == 0
        assert (out / "model.safetensors").exists()
        assert f"stage {stage}" in (out / "README.md").read_text()
        if chat:
            assert small.said_in_chat(f"{run}:{stage}", monkeypatch, capsys).strip()
        return out

    return use


def report(run: Path) -> str:
    """The page of a run, which shows all its stages."""
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    stages = json.loads((run / "graph.json").read_text())["stages"]
    assert all(stage["name"] in page for stage in stages)
    return page


def evaluation(run: Path, stage: str = "evaluate") -> dict:
    return small.note(run, stage, "evaluation.json")


def logp_of_export(folder: Path, text: str) -> float:
    """log p of the words after the first one, by torch."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([wordtok.ids(text)])
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return -float(model(ids, labels=ids).loss)


def nll_of_export(folder: Path, samples: list) -> float:
    """Mean over the learned tokens of (ids, which of them are learned), by torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for ids, learn in samples:
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found += [-float(logp[i - 1, ids[i]]) for i in range(1, len(ids)) if learn[i]]
    return float(np.mean(found))


def test_sft_alone(used):
    """Without a reward model there is no judge: style, KL, loss and samples are what is left."""
    evaluate = {"models": ["base", "sft"], **small.EVALUATE}
    run = small.run(small.config("alone", {"sft": small.SFT, "evaluate": evaluate}))
    used(run, "sft")
    found = evaluation(run)
    assert (found["judge"], found["baseline"], found["win_rate"]) == (None, "base", {})
    assert set(found["style"]) == set(found["kl"]) == set(found["pretrain_nll"]) == {"base", "sft"}
    assert found["kl"]["base"] == pytest.approx(0, abs=1e-4) and found["kl"]["sft"] != 0
    report(run)
    completions = found["samples"][0]["completions"]
    assert set(completions) == {"base", "sft"} and "reward" not in completions["sft"]
    assert json.loads((run / "summary.json").read_text())["reward_models"] == {}


def test_a_reward_model_alone(used, monkeypatch, capsys):
    """On the rankings of files, from an SFT model of another run."""
    run = small.run(small.config("scorer", {"reward": small.REWARD}, base=SFT_OF_BASE))
    used(run, "reward", chat=False)
    report(run)
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["reward_models"]) == {"reward"}
    assert 0 <= summary["reward_models"]["reward"]["accuracy_heldout_prompts"] <= 1
    said = small.said_in_chat(SFT_OF_BASE, monkeypatch, capsys, "--reward", f"{run}:reward")
    assert "reward" in said
    # a policy is no reward model, nor the other way round
    assert main(["chat", f"{run}:reward"]) == 2
    assert "reward is no stage of this run that leaves a policy" in capsys.readouterr().err
    stages = {"ppo": {"reward": SFT_OF_BASE, **small.PPO}}
    assert small.command(small.config("wrong", stages, base=SFT_OF_BASE)) == 2
    assert "stages.ppo.reward=runs/base:sft leaves a policy" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}], ids=["full", "lora"])
def test_sft_and_dpo(lora, used, capsys):
    """On rankings of files, pairs and three completions; without any reward model."""
    name = "dpo" if lora is None else "dpo_lora"
    stages = {
        "sft": small.SFT,
        "dpo": {"start": "sft", **small.DPO},
        "evaluate": {"models": ["base", "sft", "dpo"], "baseline": "sft", **small.EVALUATE},
    }
    config = small.config(name, stages, lora=lora)
    assert small.command(config, verb="check") == 0
    checked = capsys.readouterr().out
    run = small.run(config)
    first, *_, last = small.metrics(run, "dpo")
    assert first["dpo/loss"] == pytest.approx(np.log(2), abs=1e-5)  # it begins at its reference
    assert last["dpo/loss"] != first["dpo/loss"]
    assert small.note(run, "dpo")["output"]["rankings"] == 10  # of 16: whole prompts are held out
    kl = evaluation(run)["kl"]
    assert kl["sft"] == pytest.approx(0, abs=1e-4) and kl["dpo"] != 0
    page = report(run)
    exported, started = used(run, "dpo"), used(run, "sft", chat=False)
    assert logp_of_export(exported, "a b c d") != logp_of_export(started, "a b c d")
    stage = Run(load_run(run / "config.yaml"), run).stage("sft")
    output = small.note(run, "sft")["output"]
    assert f" {output['rows']} rows in sft" in checked
    held_out = sft._samples(stage, stage.task.held_out_demonstrations)
    assert output["held_out_demonstrations"] == len(held_out) > 0
    loss = output["nll_held_out"]
    assert loss == pytest.approx(nll_of_export(started, held_out), rel=1e-4)
    assert f"{loss:.3f}" in page and "loss on held-out demonstrations" in page


def test_policies_side_by_side(used):
    """PPO, PPO-ptx and DPO in one evaluation and one report; two reward models of different seeds,
    and a policy on each; a policy of another run as the baseline of a second evaluation.
    """
    reward = {"kind": "reward", "start": "sft", **small.REWARD}
    learns = {"kind": "ppo", "start": "sft", **small.PPO}
    names = ["base", "sft", "ppo", "ppo_ptx", "ppo_b", "dpo"]
    stages = {
        "sft": small.SFT,
        "reward": reward,
        "reward_b": {"seed": 1, **reward},
        "ppo": {"reward": "reward", **learns},
        "ppo_ptx": {"reward": "reward", **learns, **small.PTX},
        "ppo_b": {"reward": "reward_b", **learns},
        "dpo": {"start": "sft", **small.DPO},
        "evaluate": {"models": names, "baseline": "sft", **JUDGED},
        "against_other": {
            "kind": "evaluate",
            "models": {"ours": "ppo", "theirs": SFT_OF_BASE},
            "baseline": "theirs",
            **JUDGED,
        },
    }
    run = small.run(small.config("chain", stages))
    for stage in ("ppo", "ppo_ptx", "ppo_b", "dpo"):
        used(run, stage, chat=stage == "ppo_ptx")
        used_by = evaluation(run)["win_rate"]["1.0"]
        assert 0 <= used_by[stage]["mean"] <= 1
    assert "sft_control" in evaluation(run)["win_rate"]["1.0"]
    assert evaluation(run)["judge"] == "reward model"
    # PPO-ptx trains on text too, and only it
    assert "ptx/nll" in small.metrics(run, "ppo_ptx")[0]
    assert "ptx/nll" not in small.metrics(run, "ppo")[0]
    # other seeds give other reward models, and these other policies
    outputs = [small.note(run, name)["output"] for name in ("reward", "reward_b")]
    assert outputs[0]["normalisation"]["mean"] != outputs[1]["normalisation"]["mean"]
    assert small.note(run, "reward_b")["inputs"]["seed"] == 1
    scores = [small.metrics(run, name)[0]["ppo/score"] for name in ("ppo", "ppo_b")]
    assert scores[0] != scores[1]
    other = evaluation(run, "against_other")
    assert other["baseline"] == "theirs"
    assert set(other["win_rate"]["1.0"]) == {"ours", "theirs_control", "best_of_n"}
    assert set(other["win_rate_vs"]) == {"theirs"}
    assert SFT_OF_BASE in report(run)
    assert set(json.loads((run / "summary.json").read_text())["evaluations"]) == {
        "evaluate",
        "against_other",
    }


def test_a_reward_model_larger_than_the_policy(used):
    """It starts from an SFT model of its own size, as the paper's 6B beside 1.3B; so does the value
    function.
    """
    large = small.MODEL | {"width": 32, "layers": 2}
    stages = {
        "pretrain_large": {"kind": "pretrain", "model": large, **small.PRETRAIN},
        "sft_large": {"kind": "sft", "start": "pretrain_large", **small.SFT},
        "reward": {"start": "sft_large", **small.REWARD},
        "ppo": {"reward": "reward", **small.PPO},
        "evaluate": {"models": ["base", "sft_large", "ppo"], **JUDGED},
    }
    run = small.run(small.config("large", stages, base=SFT_OF_BASE))
    report(run)
    reward, policy = used(run, "reward", chat=False), used(run, "ppo")
    sizes = [json.loads((folder / "config.json").read_text()) for folder in (reward, policy)]
    assert [(size["n_embd"], size["n_layer"]) for size in sizes] == [(32, 2), (16, 1)]
    value = small.note(run, "ppo", "model.json")["spec"]["model"]
    assert (value["width"], value["layers"]) == (16, 1)
    assert 0 <= evaluation(run)["win_rate"]["1.0"]["sft_large"]["mean"] <= 1


# --- a reward model that somebody else trained ---


def their_reward(folder: Path, tokenizer) -> Path:
    """A folder for sequence classification, of torch."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=24,
        n_layer=2,
        n_head=2,
        num_labels=1,  # pyright: ignore[reportCallIssue]
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scores_by_hand(folder: Path, rows: list[list[int]]) -> np.ndarray:
    """What torch says of whole sequences, at their last token: its own search for the end stops at
    a PAD.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model.transformer(torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows]
        return np.array([float(model.score(state)[0]) for state in states])


def read_as_bytes(tokenizer, prompt: str, reply: str, ended: bool) -> list[int]:
    """A space between the two, and the end where there is one; GPT-2 has no BOS of its own."""
    ids = tokenizer.encode(f"{prompt} {reply}", add_special_tokens=False)
    return [*ids, tokenizer.eos_token_id] if ended else ids


@pytest.fixture
def rollouts(monkeypatch):
    """The rollouts of PPO, with the metrics that their scores went into."""
    seen = []
    compile_experience = ppo.compile_experience

    def compiled(*args):
        make = compile_experience(*args)

        def watched(params, frozen, rollout, scores, kl_coef):
            made, metrics = make(params, frozen, rollout, scores, kl_coef)
            seen.append((rollout, scores, metrics))
            return made, metrics

        return watched

    monkeypatch.setattr(ppo, "compile_experience", compiled)
    return seen


def ids_of(rollout) -> list[tuple[list[int], list[int], bool]]:
    """Ids of prompt and reply, and whether the reply has ended."""
    found = []
    for row, ended in enumerate(np.asarray(rollout.ended)):
        prompt = np.asarray(rollout.prompt)[row][np.asarray(rollout.prompt_mask)[row]]
        reply = np.asarray(rollout.tokens)[row][np.asarray(rollout.mask)[row]]
        found.append((prompt.tolist(), reply.tolist(), bool(ended)))
    return found


def text_of(ids: list[int]) -> str:
    special = (wordtok.PAD, wordtok.BOS, wordtok.EOS, wordtok.UNK)
    return " ".join(wordtok.WORDS[i] for i in ids if i not in special)


def by_somebody_else(name: str, tokenizer) -> tuple[Path, Path]:
    """A run whose PPO and evaluation take the reward model of somebody else: (run, that model)."""
    theirs = their_reward(Path(f"their_{name}"), tokenizer)
    stages = {
        "ppo": {"reward": f"./{theirs}", "value_init": "policy", **small.PPO},
        "evaluate": {"models": ["base", "ppo"], **JUDGED, "reward": f"./{theirs}"},
    }
    # replies begin with a space, where their tokenizer reads it
    text = {"max_prompt": 6, "max_completion": 6, "completion_prefix": " "}
    run = small.run(small.config(f"by_{name}", stages, base=SFT_OF_BASE, text=text))
    assert evaluation(run)["judge"] == "reward model"
    report(run)
    return run, theirs


def test_a_reward_model_of_somebody_else(used, rollouts):
    """As the reward of PPO and as a judge; it reads the same words."""
    run, theirs = by_somebody_else("words", wordtok.words())
    assert len(rollouts) == small.PPO["iterations"]
    for rollout, scores, metrics in rollouts:
        assert scores is None  # the ids are those of the rollout
        expected = scores_by_hand(theirs, [prompt + reply for prompt, reply, _ in ids_of(rollout)])
        assert np.ptp(expected) > 0.1
        assert float(metrics["ppo/score"]) == pytest.approx(expected.mean(), abs=1e-4)
    used(run, "ppo", chat=False)


def test_a_reward_model_with_a_tokenizer_of_its_own(used, rollouts):
    """It reads bytes: the text of prompts and replies is encoded again, for PPO and as a judge."""
    tokenizer = load_tokenizer(wordtok.gpt2_folder(Path("bytes_tok")))
    run, theirs = by_somebody_else("bytes", tokenizer)
    assert len(rollouts) == small.PPO["iterations"]
    for rollout, scores, metrics in rollouts:
        rows = []
        for prompt, reply, ended in ids_of(rollout):
            rows.append(read_as_bytes(tokenizer, text_of(prompt), text_of(reply), ended))
        expected = scores_by_hand(theirs, rows)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(np.asarray(scores), expected, atol=1e-4)
        assert float(metrics["ppo/score"]) == pytest.approx(expected.mean(), abs=1e-4)
    lines = (run / "evaluate" / "completions.jsonl").read_text().splitlines()
    judged = [json.loads(line) for line in lines]
    rows = []
    for row in judged:
        rows.append(read_as_bytes(tokenizer, row["prompt"], row["completion"], row["ended"]))
    found = [row["reward"] for row in judged]
    np.testing.assert_allclose(found, scores_by_hand(theirs, rows), atol=1e-4)
    used(run, "ppo", chat=False)
