"""Samples of the SFT model and their rankings; and the choice of the SFT epoch by reward-model score."""

from typing import Any

import numpy as np

from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.pipeline import measure
from instruct_jax.pipeline.workspace import Workspace
from instruct_jax.runtime.hosts import is_main
from instruct_jax.stages.rollout import SamplerConfig


def compare(ws: Workspace) -> dict[str, Any]:
    """K completions per prompt, ranked; K is drawn per prompt.  Where the rankings are given, nothing is sampled."""
    samples, held_out = [], []
    if "compare" in ws.task.prompts:
        samples = _samples(ws, ws.task.prompts["compare"], "compare")
        held_out = _samples(ws, ws.task.prompts["compare_held_out"], "compare held out")
        _write(ws, "samples", samples)
    rankings = ws.task.rank(samples, held_out)
    counts = {}
    for name in measure.GROUPS:
        records = getattr(rankings, name)
        _write(ws, name, records)
        counts[name] = len(records)
    return {"rankings": counts, "labeler_agreement": rankings.agreement}


def _write(ws: Workspace, name: str, records: list[Record]) -> None:
    if is_main():
        write_jsonl(ws.folder / "compare" / f"{name}.jsonl", records)


def _samples(ws: Workspace, prompts: list[Record], purpose: str) -> list[Record]:
    """K completions of each prompt, those of the last and of the first SFT epoch shuffled together."""
    cfg, per_epoch = ws.config.compare, ws.output("sft")["steps_per_epoch"]
    sampler = SamplerConfig(max_tokens=ws.config.ppo.sampler.max_tokens, temperature=cfg.temperature)
    prompts, ids = ws.encode(prompts)
    early = round(cfg.max_completions * cfg.early)
    shares = [("last", cfg.max_completions - early, ws.config.sft.epochs * per_epoch), ("first", early, per_epoch)]
    drawn = [
        ws.generate(ws.policy_of("sft", step), ids, sampler, ws.key(f"{purpose} {epoch}"), samples=samples)
        for epoch, samples, step in shares
        if samples
    ]
    rng = np.random.default_rng((ws.config.seed, len(prompts)))
    rows = []
    for record, *parts in zip(prompts, *drawn, strict=True):
        found = [completion for part in parts for completion in part]
        size = rng.integers(cfg.min_completions, cfg.max_completions + 1)
        chosen = [found[i] for i in rng.permutation(len(found))[:size]]
        rows.append({**record, "completions": [c.text for c in chosen], "ended": [c.ended for c in chosen]})
    return rows


def select(ws: Workspace) -> dict[str, Any]:
    """The SFT epoch whose samples score best with the reward model on the tuning prompts (paper C.1)."""
    per_epoch, epochs = ws.output("sft")["steps_per_epoch"], ws.config.sft.epochs
    (_, prompts), judge = ws.encode(ws.task.prompts["tuning"]), ws.reward_params()
    sampler = SamplerConfig(max_tokens=ws.config.ppo.sampler.max_tokens)
    scores = {}
    for epoch in range(1, epochs + 1) if ws.config.sft.select else (epochs,):
        params = ws.policy_of("sft", epoch * per_epoch)
        drawn = ws.generate(params, prompts, sampler, ws.key("select"))
        scores[epoch] = float(ws.rewards(judge, [[*p, *c[0].ids] for p, c in zip(prompts, drawn, strict=True)]).mean())
    best = max(scores, key=lambda epoch: scores[epoch])
    return {"epoch": best, "step": best * per_epoch, "reward_by_epoch": scores}
