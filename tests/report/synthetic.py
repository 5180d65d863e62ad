"""Small run folders with the numbers that good runs would have, in the format that the chain
writes: graph.json, and for each stage its done.json, metrics and evaluation.
"""

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

Stages = dict[
    str, dict[str, Any]
]  # name -> kind, uses and settings, in the order in which they run

LEAVES = {
    "pretrain": "policy",
    "sft": "policy",
    "compare": "records",
    "reward": "scalar",
    "cross_validation": "findings",
    "select": "policy",
    "ppo": "policy",
    "dpo": "policy",
    "evaluate": "findings",
    "report": "findings",
}
# metric, title, label, main
CURVES: dict[str, list[tuple[str, str, str, bool]]] = {
    "pretrain": [("pretrain/nll", "Pretraining loss", "nats per token", True)],
    "sft": [("sft/nll", "SFT loss", "nats per token", True)],
    "reward": [
        ("reward/loss", "Reward-model loss", "nats per pair", True),
        ("reward/accuracy", "Accuracy on the training batches", "share of pairs", True),
    ],
    "ppo": [
        ("ppo/score", "Reward-model score of the rollouts", "score", True),
        ("ppo/kl", "KL from the start", "nats per reply", True),
        ("ptx/nll", "Loss on the pretraining text", "nats per token", True),
        ("ppo/kl_coef", "KL coefficient", "", False),
        ("value/loss", "Value loss", "", False),
    ],
    "dpo": [("dpo/loss", "DPO loss", "nats per pair", True)],
}
DATA = {
    "sft": ("demonstrations",),
    "reward": (),
    "compare": ("prompts",),
    "ppo": ("prompts",),
    "evaluate": ("prompts",),
}
MEASURED = {
    "accuracy_train": 0.79,
    "accuracy_heldout_prompts": 0.724,
    "accuracy_heldout_labelers": 0.696,
    "accuracy_longer": 0.55,
    "accuracy_gold": 0.81,
    "accuracy_by_round": {"1": 0.70, "2": 0.745},
    "per_labeler": {"ada": 0.74, "bob": 0.7},
    "calibration": [
        {"predicted": 0.5 + 0.06 * i, "observed": 0.5 + 0.057 * i, "n": 200} for i in range(8)
    ],
    "score_by_length": [
        {"length": 12.0 + 6 * i, "score": 0.1 * i - 0.03 * i * i, "n": 100} for i in range(6)
    ],
}
OUTPUT: dict[str, dict[str, Any]] = {
    "pretrain": {"nll_unigram": 4.1, "copy_probes": {"echo": 0.98, "names": 0.91}},
    "compare": {
        "labeler_agreement": 0.73,
        "lineage": [
            {"round": 1, "model": "sft", "completions": 800, "first": 240},
            {"round": 2, "model": "runs/quick:ppo", "completions": 400, "first": 210},
        ],
    },
    "reward": MEASURED,
    "cross_validation": {
        "folds": [
            {
                "labelers": ["ada"],
                "within": {"accuracy": 0.73, "pairs": 90},
                "across": {"accuracy": 0.68, "pairs": 40},
            },
            {
                "labelers": ["bob", "cid"],
                "within": {"accuracy": 0.72, "pairs": 80},
                "across": {"accuracy": None, "pairs": 0},
            },
        ],
        "within": {"mean": 0.725, "se": 0.005},
        "across": {"mean": 0.68, "se": 0.01},
    },
}

CHAIN: Stages = {
    "pretrain": {"kind": "pretrain"},
    "sft": {"kind": "sft", "uses": {"start": "pretrain"}},
    "compare": {"kind": "compare", "uses": {"start": "sft", "models.0": "runs/quick:ppo"}},
    "reward": {"kind": "reward", "uses": {"start": "sft", "rankings": "compare"}},
    "cross_validation": {
        "kind": "cross_validation",
        "uses": {"start": "sft", "rankings": "compare"},
    },
    "select": {"kind": "select", "uses": {"start": "sft", "reward": "reward"}},
    "ppo": {"kind": "ppo", "uses": {"start": "select", "reward": "reward"}},
    "ppo_ptx": {
        "kind": "ppo",
        "uses": {"start": "select", "reward": "reward"},
        "settings": {"ptx_coef": 27.8},
    },
    "evaluate": {
        "kind": "evaluate",
        "uses": {
            "models.base": "pretrain",
            "models.select": "select",
            "models.ppo": "ppo",
            "models.ppo_ptx": "ppo_ptx",
            "reward": "reward",
        },
        "settings": {"baseline": "select"},
    },
    "report": {"kind": "report"},
}
# how good a model is: wins against the baseline and gold score
QUALITY = {
    "base": (0.14, 0.18),
    "base_prompted": (0.24, 0.27),
    "select": (0.5, 0.55),
    "select_control": (0.508, 0.551),
    "best_of_n": (0.6, 0.63),
    "ppo": (0.66, 0.72),
    "ppo_ptx": (0.645, 0.71),
    "dpo": (0.61, 0.66),
}
USE_CASES = (
    "brainstorming",
    "chat",
    "classification",
    "closed_qa",
    "extract",
    "generation",
    "open_qa",
    "rewrite",
    "summarization",
)
HOSTILE = (
    "</bdi><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\x00\x1b[31m \u202eright to left\u2066 $name {{ name }} \\frac{ \ud800"
)


def make_run(
    folder: Path, stages: Stages = CHAIN, *, rows: int = 200, unfinished: Iterable[str] = ()
) -> Path:
    """`rows` of metrics for each stage that trains; `unfinished` stages have left nothing."""
    folder.mkdir(parents=True)
    about = {
        "command": ["instruct-jax", "run"],
        "started": "2026-01-02T03:04:05+00:00",
        "commit": "0" * 40,
        "versions": {"jax": "0.10.2"},
    }
    config = {
        "out": "runs/quick",
        "seed": 0,
        "model": {"width": 128},
        "stages": {name: {"kind": s["kind"]} | s.get("settings", {}) for name, s in stages.items()},
    }
    graph = {"stages": [graph_entry(name, stage) for name, stage in stages.items()]}
    write(folder / "run.json", json.dumps(about))
    write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    write(folder / "graph.json", json.dumps(graph))
    finished = [name for name, s in stages.items() if s["kind"] != "report"]
    finished = [name for name in finished if name not in unfinished]
    for number, name in enumerate(finished):
        write_stage(folder / name, name, stages[name], number, rows)
    write(folder / "summary.json", json.dumps(make_summary()))
    return folder


def graph_entry(name: str, stage: dict[str, Any]) -> dict[str, Any]:
    kind = stage["kind"]
    keys = ("metric", "title", "label", "main")
    return {
        "name": name,
        "kind": kind,
        "leaves": LEAVES[kind],
        "uses": stage.get("uses", {}),
        "curves": [dict(zip(keys, curve, strict=True)) for curve in CURVES.get(kind, [])],
    }


def write_stage(folder: Path, name: str, stage: dict[str, Any], number: int, rows: int) -> None:
    kind, uses = stage["kind"], stage.get("uses", {})
    inputs: dict[str, Any] = {"settings.epochs": 4}
    for place, key in enumerate(uses):
        inputs[f"uses.{key}"] = "sha256:" + f"{number + place:x}"[-1] * 64
    for key in DATA.get(kind, ()):
        inputs[f"data.{key}"] = "sha256:" + "d" * 64
    done = {
        "kind": kind,
        "finished": "2026-01-02T04:00:00+00:00",
        "seconds": 40.0 + 35 * number,
        "inputs": inputs,
        "output": {"tokens": 12} | OUTPUT.get(kind, {}),
    }
    write(folder / "done.json", json.dumps(done))
    if kind == "evaluate":
        models = [key.removeprefix("models.") for key in uses if key.startswith("models.")]
        baseline = stage["settings"]["baseline"]
        write(folder / "evaluation.json", json.dumps(make_evaluation(models, baseline)))
    if kind in CURVES:
        ptx = bool(stage.get("settings", {}).get("ptx_coef"))
        lines = [json.dumps(row) for row in metrics(kind, name, rows, ptx)]
        write(folder / "metrics.jsonl", "\n".join([*lines, '{"step": 9']))
        session = {"from_step": 0, "to_step": rows, "seconds": 50.0, "seconds_per_step": 0.21}
        write(folder / "sessions.jsonl", json.dumps(session) + "\n")
    if kind == "ppo":
        phases = {"rollout": 0.2, "experience": 0.3, "update": 0.5, "tokens_per_second": 1234.0}
        steps = [phases | {"step": 1}, phases | {"step": 2, "update": 0.7}]
        write(folder / "phases.jsonl", "".join(json.dumps(row) + "\n" for row in steps))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def metrics(kind: str, name: str, rows: int, ptx: bool) -> list[dict[str, float]]:
    dice = random.Random(name)
    lines = []
    for step in range(1, rows + 1):
        part, noise = step / rows, dice.gauss(0, 1)
        if kind in ("pretrain", "sft", "dpo"):
            metric = CURVES[kind][0][0]
            loss = 1.2 + 5 * math.exp(-6 * part) + 0.05 * noise
            row = {metric: loss, "optim/grad_norm": 1.0}
        elif kind == "reward":
            row = {
                "reward/loss": 0.69 - 0.2 * part + 0.04 * noise,
                "reward/accuracy": 0.5 + 0.25 * part + 0.03 * noise,
            }
        else:
            row = {
                "ppo/score": 1.6 * (1 - math.exp(-3 * part)) + 0.1 * noise,
                "ppo/kl": max(9 * part + 0.4 * noise, -0.05),
                "ppo/kl_coef": 0.02,
                "value/loss": 0.2 * math.exp(-3 * part),
            }
            if ptx:
                row["ptx/nll"] = 1.25 + 0.03 * noise
        lines.append({"step": step, **row})
    return lines


def make_summary() -> dict[str, Any]:
    """What the page takes from summary.json."""
    return {
        "recompiles_after_warmup": 0,
        "peak_memory_gib": 2.71,
        "seed": 0,
        "hardware": "1 x cpu",
    }


def win(mean: float, half: float = 0.03) -> dict[str, Any]:
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": 512}


def make_evaluation(
    models: Iterable[str] = ("base", "select", "ppo", "ppo_ptx"), baseline: str = "select"
) -> dict[str, Any]:
    """Any baseline is as good as `select`, and models that have no QUALITY as PPO."""
    dice = random.Random(0)
    models = list(models)
    prompted = ["base_prompted"] if "base" in models else []
    sampled = [*models, *prompted, "best_of_n"]
    quality = {model: QUALITY.get(model, QUALITY["ppo"]) for model in sampled}
    quality[baseline] = QUALITY["select"]
    wins = {m: w for m, (w, _) in quality.items() if m != baseline}
    wins[f"{baseline}_control"] = QUALITY["select_control"][0]
    scores = {model: score for model, (_, score) in quality.items()}
    lifts = {"1.0": 0.0, "0.7": 0.02, "0.0": 0.04}

    win_rate: dict[str, Any] = {}
    for temperature, lift in lifts.items():
        win_rate[temperature] = {
            model: win(mean + (lift if mean > 0.55 else 0))
            for model, mean in wins.items()
            if model != "best_of_n" or temperature == "1.0"
        }
    by_use_case: dict[str, Any] = {}
    for i, case in enumerate(USE_CASES):
        by_use_case[case] = {
            model: {"mean": min(score + dice.uniform(-0.04, 0.0) + 0.02 * i, 1), "n": 50}
            for model, score in scores.items()
        }
    style = {}
    for model, score in scores.items():
        style[model] = {
            "rude": max(0.3 - 0.3 * score, 0.0),
            "fluff": 0.4,
            "length": 16.0,
            "ended": 0.98 if score >= 0.55 else 0.8,
        }
    samples = []
    for i, case in enumerate(USE_CASES):
        prompt = f"write a story about the {case.replace('_', ' ')} of a fox ."
        reply = "the fox went to the river . it found a boat . " * (1 + i % 3)
        completion = {"text": reply if i else HOSTILE, "gold": 0.8, "reward": -0.31}
        samples.append(
            {
                "prompt": prompt if i else HOSTILE,
                "use_case": case,
                "completions": dict.fromkeys(scores, completion),
            }
        )
    nll = {"base": 1.21, "ppo": 1.42, "ppo_ptx": 1.28}
    kl = {"base": 12.0, "base_prompted": 9.0, "best_of_n": 0.64, "ppo": 8.7, "ppo_ptx": 8.9}
    win_rate_vs: dict[str, Any] = {}
    for other in models:
        if ":" in other:
            win_rate_vs[other] = {m: win(0.57) for m in sampled if m != other}
    gold_score: dict[str, Any] = {}
    for temperature, lift in lifts.items():
        gold_score[temperature] = {m: score + lift for m, score in scores.items()}
    return {
        "judge": "gold",
        "baseline": baseline,
        "temperatures": [1.0, 0.7, 0.0],
        "win_rate": win_rate,
        "win_rate_vs": win_rate_vs,
        "gold_score": gold_score,
        "by_use_case": by_use_case,
        "style": style,
        "best_of_n": [
            {
                "n": n,
                "gold": 0.55 + 0.04 * math.log2(n),
                "reward": 0.5 * math.log2(n),
                "kl": math.log(n) - (n - 1) / n,
                "se": 0.01,
            }
            for n in (1, 2, 4, 8, 16)
        ],
        "over_optimization": {model: climb() for model in models if model == "ppo"},
        "kl": {baseline: 0.0} | {m: kl.get(m, 5.0) for m in sampled if m != baseline},
        "pretrain_nll": {m: nll.get(m, 1.34) for m in models},
        "samples": samples,
    }


def climb() -> list[dict[str, float]]:
    """Reward and score at the kept checkpoints of a policy."""
    rows = []
    for step in range(0, 11, 2):
        gold = 0.55 + 0.06 * step - 0.006 * step * step
        row = {"step": step, "kl": 0.1 * step, "reward": 0.2 * step, "gold": gold}
        rows.append(row | {"reward_se": 0.02, "gold_se": 0.01})
    return rows
