"""A small run folder with the numbers that a good run would have."""

import json
import math
import random
from pathlib import Path
from typing import Any

MODELS = ("base", "base_prompted", "sft", "best_of_n", "ppo", "ppo_ptx")
WINS = {
    "base": 0.14,
    "base_prompted": 0.24,
    "sft": 0.5,
    "sft_control": 0.508,
    "best_of_n": 0.6,
    "ppo": 0.66,
    "ppo_ptx": 0.645,
}
SCORES = {
    "base": 0.18,
    "base_prompted": 0.27,
    "sft": 0.55,
    "sft_control": 0.551,
    "best_of_n": 0.63,
    "ppo": 0.72,
    "ppo_ptx": 0.71,
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
STAGES = (
    "pretrain",
    "sft",
    "compare",
    "reward",
    "cross_validation",
    "select",
    "ppo",
    "ppo_ptx",
    "evaluate",
)
FOUND = {
    "compare": {
        "lineage": [
            {"round": 1, "model": "sft", "completions": 800, "first": 240},
            {"round": 2, "model": "runs/quick:ppo", "completions": 400, "first": 210},
        ]
    },
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
HOSTILE = (
    "</bdi><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "\x00\x1b[31m \u202eright to left\u2066 $name \\frac{ \ud800"
)


def win(mean: float, half: float = 0.03) -> dict[str, Any]:
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": 512}


def make_run(folder: Path, rows: int = 200) -> Path:
    folder.mkdir(parents=True)
    evaluation = make_evaluation()
    for name, value in {
        "summary.json": make_summary(evaluation),
        "run.json": {
            "command": ["instruct-jax", "run"],
            "started": "2026-01-02T03:04:05+00:00",
            "commit": "0" * 40,
            "versions": {"jax": "0.10.2"},
        },
        "evaluate/evaluation.json": evaluation,
    }.items():
        write(folder / name, json.dumps(value))
    write(folder / "config.yaml", "out: runs/quick\nseed: 0\nmodel:\n  width: 128\n")
    for number, stage in enumerate(STAGES):
        inputs = {STAGES[number - 1]: "sha256:" + f"{number:x}" * 64} if number else {}
        done = {
            "finished": "2026-01-02T04:00:00+00:00",
            "seconds": 40.0 + 35 * number,
            "inputs": inputs,
            "output": {"tokens": 12} | FOUND.get(stage, {}),
        }
        write(folder / stage / "done.json", json.dumps(done))
    for stage in ("pretrain", "sft", "reward", "ppo", "ppo_ptx"):
        write(
            folder / stage / "metrics.jsonl",
            "".join(json.dumps(row) + "\n" for row in metrics(stage, rows)) + '{"step": 9',
        )
        session = {
            "from_step": 0,
            "to_step": rows,
            "ended": "complete",
            "seconds": 50.0,
            "seconds_per_step": 0.21,
        }
        write(folder / stage / "sessions.jsonl", json.dumps(session) + "\n")
    phases = {
        "step": 1,
        "rollout": 0.2,
        "experience": 0.3,
        "update": 0.5,
        "tokens": 1234,
        "tokens_per_second": 1234.0,
    }
    write(
        folder / "ppo" / "phases.jsonl",
        json.dumps(phases) + "\n" + json.dumps(phases | {"step": 2, "update": 0.7}) + "\n",
    )
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def metrics(stage: str, rows: int) -> list[dict[str, float]]:
    dice = random.Random(stage)
    made = []
    for step in range(1, rows + 1):
        part, noise = step / rows, dice.gauss(0, 1)
        if stage in ("pretrain", "sft"):
            row = {
                f"{stage}/nll": 1.2 + 5 * math.exp(-6 * part) + 0.05 * noise,
                "optim/grad_norm": 1.0,
            }
        elif stage == "reward":
            row = {
                "reward/loss": 0.69 - 0.2 * part + 0.04 * noise,
                "reward/accuracy": 0.5 + 0.25 * part + 0.03 * noise,
            }
        else:
            row = {
                "ppo/score": 1.6 * (1 - math.exp(-3 * part)) + 0.1 * noise,
                "ppo/kl": max(9 * part + 0.4 * noise, -0.05),
                "ppo/kl_coef": 0.02,
                "ppo/reward": 1.4 * part + 0.1 * noise,
                "ppo/entropy": 1.4 - 0.5 * part,
                "rollout/length": 18 + 3 * part + noise,
                "rollout/ended": min(0.93 + 0.05 * part, 1),
                "value/loss": 0.2 * math.exp(-3 * part),
                "policy/clip_fraction": 0.08,
            } | ({"ptx/nll": 1.25 + 0.03 * noise} if stage == "ppo_ptx" else {})
        made.append({"step": step, **row})
    return made


def make_summary(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "seconds": {stage: 40.0 + 35 * number for number, stage in enumerate(STAGES)},
        "win_rate_vs_sft": evaluation["win_rate_vs_sft"]["1.0"],
        "gold_score": evaluation["gold_score"]["1.0"],
        "reward_model": {
            key: evaluation["reward_model"][key]
            for key in (
                "accuracy_heldout_prompts",
                "accuracy_heldout_labelers",
                "labeler_agreement",
            )
        },
        "kl_to_sft": evaluation["kl_to_sft"],
        "pretrain_nll": evaluation["pretrain_nll"],
        "recompiles_after_warmup": 0,
        "peak_memory_gib": 2.71,
        "seed": 0,
        "hardware": "1 x cpu",
    }


def make_evaluation() -> dict[str, Any]:
    dice = random.Random(0)
    temperatures = {"1.0": 0.0, "0.7": 0.02, "0.0": 0.04}
    return {
        "judge": "gold",
        "temperatures": [1.0, 0.7, 0.0],
        "win_rate_vs_sft": {
            t: {
                m: win(x + (lift if x > 0.55 else 0))
                for m, x in WINS.items()
                if m != "best_of_n" or t == "1.0"
            }
            for t, lift in temperatures.items()
        },
        "gold_score": {
            t: {m: x + lift for m, x in SCORES.items()} for t, lift in temperatures.items()
        },
        "by_use_case": {
            c: {
                m: {"mean": min(x + dice.uniform(-0.04, 0.0) + 0.02 * i, 1), "n": 50}
                for m, x in SCORES.items()
            }
            for i, c in enumerate(USE_CASES)
        },
        "style": {
            m: {
                "rude": 0.2 - 0.03 * i,
                "fluff": 0.4,
                "length": 16.0 + i,
                "ended": 0.7 + 0.3 * i / 5 if i < 2 else 0.98,
            }
            for i, m in enumerate(MODELS)
        },
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
        "over_optimisation": {
            "ppo": [
                {
                    "step": s,
                    "kl": 0.1 * s,
                    "reward": 0.2 * s,
                    "reward_se": 0.02,
                    "gold": 0.55 + 0.06 * s - 0.006 * s * s,
                    "gold_se": 0.01,
                }
                for s in range(0, 11, 2)
            ]
        },
        "kl_to_sft": {
            "base": 12.0,
            "base_prompted": 9.0,
            "sft": 0.0,
            "best_of_n": 0.64,
            "ppo": 8.7,
            "ppo_ptx": 8.9,
        },
        "pretrain_nll": {"base": 1.21, "sft": 1.34, "ppo": 1.42, "ppo_ptx": 1.28},
        "reward_model": {
            "accuracy_train": 0.79,
            "accuracy_heldout_prompts": 0.724,
            "accuracy_heldout_labelers": 0.696,
            "labeler_agreement": 0.73,
            "accuracy_gold": 0.81,
            "accuracy_by_round": {"1": 0.70, "2": 0.745},
            "per_labeler": {"ada": 0.74, "bob": 0.7},
            "calibration": [
                {"predicted": 0.5 + 0.06 * i, "observed": 0.5 + 0.057 * i, "n": 200}
                for i in range(8)
            ],
            "score_by_length": [
                {"length": 12.0 + 6 * i, "score": 0.1 * i - 0.03 * i * i, "n": 100}
                for i in range(6)
            ],
        },
        "copy_probes": {"echo": 0.98, "names": 0.91},
        "samples": [
            {
                "prompt": (
                    HOSTILE
                    if i == 0
                    else (
                        f"write a story about the {case.replace('_', ' ')} of a fox . keep it to"
                        " two sentences ."
                    )
                ),
                "use_case": case,
                "completions": {
                    m: {
                        "text": (
                            HOSTILE
                            if i == 0
                            else "the fox went to the river . it found a boat . " * (1 + i % 3)
                        ),
                        "gold": 0.8,
                        "reward": -0.31,
                    }
                    for m in MODELS
                },
            }
            for i, case in enumerate(USE_CASES)
        ],
    }
