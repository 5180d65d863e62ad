"""Every model on the report prompts: preference over the SFT model, gold score, KL, alignment tax,
best-of-n, samples side by side.

The judge is the task's own where it has one (the embedded world's gold score); otherwise the reward
model, and the report says so.
"""

import dataclasses
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from instruct_jax.chain.train import held_out_rows
from instruct_jax.chain.workspace import Completion, Workspace
from instruct_jax.commands.open_model import of_other_run
from instruct_jax.data.packing import Ids
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record, named
from instruct_jax.data.tokenize import bos_ids
from instruct_jax.evaluation.preference import best_of_n, best_of_n_kl, win_rate
from instruct_jax.records import Params
from instruct_jax.runtime.checkpoints import kept_steps
from instruct_jax.runtime.folders import write_atomic
from instruct_jax.runtime.hosts import is_main
from instruct_jax.stages.rollout import SamplerConfig

# SFT answers to each report prompt that every model, a fresh SFT draw among them, is compared with
RIVALS = 4
# answers of a model to each report prompt that its scores by use case are means of: some use cases
# have few prompts
DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Judged:
    """One completion of every report prompt, with all that is known of them; [n] each."""

    completions: list[Completion]
    gold: np.ndarray  # the judge's score
    reward: np.ndarray  # the reward model's
    parts: list[dict[str, Any]]  # the judge's remarks


class Examiner:
    """The report prompts and the judge."""

    def __init__(self, ws: Workspace):
        self.ws, self.reward = ws, ws.reward_params()
        self.records, self.prompts = ws.encode(ws.task.prompts["report"])

    def ask(
        self,
        params: Params,
        temperature: float,
        purpose: str,
        *,
        prefix: Ids = (),
        by: Workspace | None = None,
    ) -> Judged:
        """One completion of every prompt; `by` is the workspace of a model from another run."""
        prompts = (
            self.prompts if not prefix else [_prefixed(self.ws, prefix, p) for p in self.prompts]
        )
        sampler = SamplerConfig(
            max_tokens=self.ws.config.ppo.sampler.max_tokens, temperature=temperature
        )
        drawn = (by or self.ws).generate(
            params, prompts, sampler, self.ws.key(f"evaluate {purpose} {temperature}")
        )
        return self.judge([c[0] for c in drawn], self.records, self.prompts)

    def judge(
        self, completions: Sequence[Completion], records: Sequence[Record], prompts: Sequence[Ids]
    ) -> Judged:
        reward = self.ws.rewards(
            self.reward, [[*p, *c.ids] for p, c in zip(prompts, completions, strict=True)]
        )
        if self.ws.task.judge is None:
            return Judged(list(completions), reward, reward, [{} for _ in completions])
        parts = [
            self.ws.task.judge(r, c.text, c.ended)
            for r, c in zip(records, completions, strict=True)
        ]
        return Judged(list(completions), np.array([p["score"] for p in parts]), reward, parts)


def _prefixed(ws: Workspace, prefix: Ids, prompt: Ids) -> list[int]:
    """bos + examples + prompt, with one bos."""
    bos = bos_ids(ws.task.tokenizer)
    return [*bos, *prefix, *prompt[len(bos) :]]


def evaluate(ws: Workspace) -> dict[str, Any]:
    """Writes folder/evaluate/evaluation.json and returns it."""
    cfg, examiner = ws.config.evaluation, Examiner(ws)
    held_out = held_out_rows(ws)
    shots = (
        ws.task.tokenizer.encode(ws.task.shots, add_special_tokens=False) if ws.task.shots else []
    )
    sft = ws.policy_of("sft")
    asked: dict[float, dict[str, Judged]] = {t: {} for t in cfg.temperatures}
    nll: dict[str, float] = {}
    head, drawn = cfg.temperatures[0], {}
    for model, (owner, stage) in _models(ws).items():
        params = owner.policy_of(stage)
        drawn[model] = [
            examiner.ask(params, head, f"{model} draw {i}", by=owner).gold
            for i in range(1, DRAWS if head else 1)
        ]
        for temperature in cfg.temperatures:
            asked[temperature][model] = examiner.ask(params, temperature, model, by=owner)
            if stage == "pretrain" and shots:
                asked[temperature][f"{model}_prompted"] = examiner.ask(
                    params, temperature, f"{model} prompted", prefix=shots, by=owner
                )
        if held_out:
            nll[model] = owner.nll(params, held_out)
    rivals = {
        t: np.stack(
            [examiner.ask(sft, t, f"rival {i}").gold for i in range(RIVALS if t else 1)], axis=1
        )
        for t in cfg.temperatures
    }
    bar, curve = _best_of_n(ws, examiner, sft)
    asked[head]["best_of_n"] = bar

    found = {
        "judge": "reward model" if ws.task.judge is None else "gold",
        "temperatures": list(cfg.temperatures),
        "win_rate_vs_sft": {
            str(t): {
                model: win_rate(j.gold, rivals[t]) for model, j in _contestants(models).items()
            }
            for t, models in asked.items()
        },
        "win_rate_vs_others": _against_others(cfg.others, asked[head]),
        "gold_score": {
            str(t): {model: float(j.gold.mean()) for model, j in models.items()}
            for t, models in asked.items()
        },
        "by_use_case": _by_use_case(
            examiner.records,
            {m: np.mean([j.gold, *drawn.get(m, [])], axis=0) for m, j in asked[head].items()},
        ),
        "style": {model: _style(j) for model, j in asked[head].items()},
        "best_of_n": curve,
        "over_optimisation": {
            name: _path(ws, examiner, sft, name)
            for name, ppo in ws.config.rl.items()
            if ppo.keep_every
        },
        "kl_to_sft": _kl(ws, examiner, sft, asked[head]),
        "pretrain_nll": nll,
        "nll_unigram": ws.output("pretrain").get("nll_unigram"),
        "copy_probes": ws.output("pretrain").get("copy_probes", {}),
        "reward_model": (
            {k: v for k, v in ws.output("reward").items() if k not in ("normalisation", "rankings")}
            | {"labeler_agreement": ws.output("compare")["labeler_agreement"]}
        ),
        "samples": _samples(
            examiner.records, asked[head], cfg.samples_shown, judged=ws.task.judge is not None
        ),
    }
    if is_main():
        write_jsonl(
            ws.folder / "evaluate" / "completions.jsonl",
            (
                {
                    "model": model,
                    "temperature": t,
                    "prompt": r["prompt"],
                    "completion": c.text,
                    "ended": c.ended,
                    "gold": float(g),
                    "reward": float(s),
                }
                for t, models in asked.items()
                for model, j in models.items()
                for r, c, g, s in zip(
                    examiner.records, j.completions, j.gold, j.reward, strict=True
                )
            ),
        )
    write_atomic(ws.folder / "evaluate" / "evaluation.json", json.dumps(found, indent=1) + "\n")
    return {k: found[k] for k in ("judge", "kl_to_sft", "pretrain_nll", "reward_model")} | {
        "win_rate_vs_sft": found["win_rate_vs_sft"][str(head)],
        "gold_score": found["gold_score"][str(head)],
    }


def _models(ws: Workspace) -> dict[str, tuple[Workspace, str]]:
    """Name -> (the run that it is from, its stage): this run's models, then evaluation.others,
    which must share the tokenizer.
    """
    own = {"base": "pretrain", **{name: name for name in (*ws.config.sfts, *ws.config.rl)}}
    others = {
        name: of_other_run(place, ws.task) for name, place in ws.config.evaluation.others.items()
    }
    return {name: (ws, stage) for name, stage in own.items()} | others


def _contestants(models: dict[str, Judged]) -> dict[str, Judged]:
    """The models; the fresh SFT draw against other SFT draws is the control, which must come out at
    0.5.
    """
    return {"sft_control" if model == "sft" else model: judged for model, judged in models.items()}


def _against_others(
    others: Collection[str], models: dict[str, Judged]
) -> dict[str, dict[str, Any]]:
    """Model of another run -> how often each of ours beats it, one answer of each to every prompt."""
    theirs = {name for name in models if name.removesuffix("_prompted") in others}
    return {
        other: {
            model: win_rate(j.gold, models[other].gold[:, None])
            for model, j in models.items()
            if model not in theirs
        }
        for other in sorted(theirs)
    }


def _by_use_case(
    records: Sequence[Record], gold: dict[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean score and its standard error over prompts, from the score [n] of each prompt."""
    cases = [_case(r) for r in records]
    return {
        case: {
            model: {
                "mean": float(score[rows].mean()),
                "se": float(score[rows].std() / len(rows) ** 0.5),
                "n": len(rows),
            }
            for model, score in gold.items()
            if len(rows := [i for i, c in enumerate(cases) if c == case])
        }
        for case in sorted(set(cases))
    }


def _case(record: Record) -> str:
    """What the scores are reported by: the use case, or the data set that the prompt is from."""
    return named(record, "use_case", "source", default="all")


def _style(judged: Judged) -> dict[str, float]:
    style = {
        "length": float(np.mean([len(c.ids) for c in judged.completions])),
        "ended": float(np.mean([c.ended for c in judged.completions])),
    }
    return style | {
        key: float(np.mean([p[key] for p in judged.parts]))
        for key in ("rude", "fluff")
        if key in judged.parts[0]
    }


def _best_of_n(
    ws: Workspace, examiner: Examiner, sft: Params
) -> tuple[Judged, list[dict[str, float]]]:
    """The best of `chosen_best_of` samples of every report prompt, and the curve over n."""
    cfg, most = ws.config.evaluation, max(ws.config.evaluation.best_of)
    sampler = SamplerConfig(
        max_tokens=ws.config.ppo.sampler.max_tokens, temperature=cfg.temperatures[0]
    )

    def draw(count: int, samples: int, purpose: str) -> Judged:
        drawn = ws.generate(
            sft, examiner.prompts[:count], sampler, ws.key(purpose), samples=samples
        )
        flat = [c for completions in drawn for c in completions]
        repeat = [i for i in range(count) for _ in range(samples)]
        return examiner.judge(
            flat, [examiner.records[i] for i in repeat], [examiner.prompts[i] for i in repeat]
        )

    count, n = min(cfg.best_of_prompts, len(examiner.prompts)), cfg.chosen_best_of
    many = draw(count, most, "best of n curve")
    proxy, gold = many.reward.reshape(count, most), many.gold.reshape(count, most)
    curve = []
    for k in cfg.best_of:
        spread = [best_of_n(proxy[i : i + 1], gold[i : i + 1], k) for i in range(count)]
        curve.append(
            {
                "n": k,
                "gold": best_of_n(proxy, gold, k),
                "reward": best_of_n(proxy, proxy, k),
                "kl": best_of_n_kl(k),
                "se": float(np.std(spread) / count**0.5),
            }
        )
    few = draw(len(examiner.prompts), n, "best of n bar")
    best = few.reward.reshape(-1, n).argmax(axis=1) + np.arange(len(examiner.prompts)) * n
    bar = Judged(
        [few.completions[i] for i in best],
        few.gold[best],
        few.reward[best],
        [few.parts[i] for i in best],
    )
    return bar, curve


def _path(ws: Workspace, examiner: Examiner, sft: Params, stage: str) -> list[dict[str, float]]:
    """The way of a PPO run through its kept checkpoints, from SFT (step 0): KL, reward and the
    judge's score at temperature 1, each with its standard error over prompts.  Where the reward
    goes on rising and the score falls, the run over-optimises (Gao et al. 2022).
    """
    rows, every, saved = (
        [],
        ws.config.rl[stage].keep_every or 1,
        kept_steps(ws.folder / stage / "checkpoints"),
    )
    for step in (
        0,
        *(s for s in saved if s % every == 0 or s == saved[-1]),
    ):  # the one before the last is only there for safety
        judged = examiner.ask(ws.policy_of(stage, step) if step else sft, 1.0, f"{stage} at {step}")
        row: dict[str, float] = {
            "step": step,
            "kl": _kl_to(ws, examiner, sft, judged) if step else 0.0,
        }
        for name, score in (("reward", judged.reward), ("gold", judged.gold)):
            row |= {name: float(score.mean()), f"{name}_se": float(score.std() / len(score) ** 0.5)}
        rows.append(row)
    return rows


def _kl(
    ws: Workspace, examiner: Examiner, sft: Params, models: dict[str, Judged]
) -> dict[str, float]:
    """KL to SFT of every model at temperature 1; of best-of-n by its bound."""
    found = {"best_of_n": best_of_n_kl(ws.config.evaluation.chosen_best_of)}
    if ws.config.evaluation.temperatures[0] != 1.0:
        return found
    return found | {
        model: _kl_to(ws, examiner, sft, judged)
        for model, judged in models.items()
        if model != "best_of_n"
    }


def _kl_to(ws: Workspace, examiner: Examiner, sft: Params, judged: Judged) -> float:
    """Mean log p(response) - log p_sft(response) in nats over a model's own samples."""
    theirs = ws.response_logp(sft, examiner.prompts, [c.ids for c in judged.completions])
    return float(np.mean([c.logp for c in judged.completions]) - theirs.mean())


def _samples(
    records: Sequence[Record], models: dict[str, Judged], count: int, *, judged: bool
) -> list[dict[str, Any]]:
    """The first prompts of each use case in turn: chosen by position, not by how well any model
    did.  `judged`: by more than the reward.
    """
    by_case: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        by_case.setdefault(_case(record), []).append(i)
    turns = [case[k] for k in range(len(records)) for case in by_case.values() if k < len(case)]
    return [
        {
            "prompt": records[i]["prompt"],
            "use_case": _case(records[i]),
            "completions": {
                model: (
                    {"text": j.completions[i].text, "reward": float(j.reward[i])}
                    | ({"gold": float(j.gold[i])} if judged else {})
                )
                for model, j in models.items()
            },
        }
        for i in turns[:count]
    ]
