"""Samples of the policies and their rankings, round after round; and the choice of the SFT epoch by
reward-model score.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from instruct_jax.chain import measure
from instruct_jax.chain.task import Rankings
from instruct_jax.chain.workspace import Workspace, stage_folder
from instruct_jax.commands.open_model import of_other_run
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.runtime.folders import read_note
from instruct_jax.runtime.hosts import is_main
from instruct_jax.stages.rollout import SamplerConfig


def compare(ws: Workspace) -> dict[str, Any]:
    """K completions per prompt, ranked; K is drawn per prompt.  Where the rankings are given,
    nothing is sampled.  What is written, and learned from, are the rankings of this round before
    those of earlier ones; each has its round, and the model of each completion.
    """
    earlier = _earlier(ws)
    seen = {
        name: {_asked(record) for record in earlier[name]} for name in ("train", "held_out_prompts")
    }
    samples, held_out = [], []
    if "compare" in ws.task.prompts:
        asked = {name: ws.task.prompts[name] for name in ("compare", "compare_held_out")}
        samples = _drawn(
            ws,
            "samples",
            [r for r in asked["compare"] if _asked(r) not in seen["held_out_prompts"]],
            "compare",
        )
        held_out = _drawn(
            ws,
            "held_out_samples",
            [r for r in asked["compare_held_out"] if _asked(r) not in seen["train"]],
            "compare held out",
        )
    rankings = _rank(ws, samples, held_out)
    groups = {
        name: [{**r, "round": ws.config.round} for r in getattr(rankings, name)] + earlier[name]
        for name in measure.GROUPS
    }
    for name, records in groups.items():
        _write(ws, name, records)
    return {
        "rankings": {name: len(records) for name, records in groups.items()},
        "labeler_agreement": rankings.agreement,
        "labeler_noise": rankings.noise,
        "lineage": lineage(groups["train"]),
    }


def _rank(ws: Workspace, samples: list[Record], held_out: list[Record]) -> Rankings:
    cfg = ws.config.compare
    if cfg.people is not None:
        from instruct_jax.chain.people import by_people  # with the extra `label`

        found = by_people(cfg.people, samples, held_out)
    elif cfg.judge is not None:
        found = Rankings(
            _by_model(ws, cfg.judge, samples), _by_model(ws, cfg.judge, held_out), [], None
        )
    else:
        return ws.task.rank(samples, held_out, _noise_of_earlier(ws))
    if ws.config.world or cfg.earlier:
        return found
    given = ws.task.rank([], [], None)  # files bring their own rankings to the first round
    return dataclasses.replace(
        found,
        train=found.train + given.train,
        held_out_prompts=found.held_out_prompts + given.held_out_prompts,
    )


def _by_model(ws: Workspace, place: str, samples: list[Record]) -> list[Record]:
    """Ranked by the reward model of another run: a tie is the same text twice."""
    owner, _ = of_other_run(place, ws.task)
    numbered = [
        {
            **{k: v for k, v in s.items() if k != "task"},
            "ranks": [*range(1, len(s["completions"]) + 1)],
        }
        for s in samples
    ]
    rows = measure.scored_rankings(owner, owner.reward_params(), numbered)
    return [{**record, "ranks": _ranks(scores), "labeler_id": place} for record, scores, _ in rows]


def _ranks(scores: np.ndarray) -> list[int]:
    """1 = the highest score; without gaps."""
    return (np.unique(-scores, return_inverse=True)[1] + 1).tolist()


def _earlier(ws: Workspace) -> dict[str, list[Record]]:
    """The rankings of all rounds before this one, by group."""
    run = ws.config.compare.earlier
    if run is None:
        return {name: [] for name in measure.GROUPS}
    return {
        name: measure.read_compared(stage_folder(ws.folder, f"{run}:compare"), name)
        for name in measure.GROUPS
    }


def _noise_of_earlier(ws: Workspace) -> float | None:
    run = ws.config.compare.earlier
    return (
        None
        if run is None
        else read_note(stage_folder(ws.folder, f"{run}:compare") / "done.json")["output"].get(
            "labeler_noise"
        )
    )


def lineage(rankings: list[Record]) -> list[dict[str, Any]]:
    """Of each round and each model whose samples were ranked in it: completions, and how often one
    of them was ranked first.
    """
    completions: collections.Counter[tuple[int, str]] = collections.Counter()
    first: collections.Counter[tuple[int, str]] = collections.Counter()
    for record in rankings:
        for model, rank in zip(
            record.get("models") or ["unknown"] * len(record["ranks"]), record["ranks"], strict=True
        ):
            completions[record["round"], model] += 1
            first[record["round"], model] += rank == 1
    return [
        {"round": r, "model": m, "completions": n, "first": first[r, m]}
        for (r, m), n in sorted(completions.items())
    ]


def _asked(record: Record) -> str:
    return str(record["prompt"])


def _write(ws: Workspace, name: str, records: list[Record]) -> None:
    if is_main():
        write_jsonl(ws.folder / "compare" / f"{name}.jsonl", records)


def _drawn(ws: Workspace, name: str, prompts: list[Record], purpose: str) -> list[Record]:
    """The samples, also as a file.  People are asked about the same ones after a restart, on other
    devices too: their answers are to these."""
    if ws.config.compare.people and (ws.folder / "compare" / f"{name}.jsonl").exists():
        return measure.read_compared(ws.folder / "compare", name)
    samples = _samples(ws, prompts, purpose)
    _write(ws, name, samples)
    return samples


def _samples(ws: Workspace, prompts: list[Record], purpose: str) -> list[Record]:
    """K completions of each prompt, those of all models shuffled together; `models` says whose each
    one is.
    """
    cfg, per_epoch = ws.config.compare, ws.output("sft")["steps_per_epoch"]
    sampler = SamplerConfig(
        max_tokens=ws.config.ppo.sampler.max_tokens, temperature=cfg.temperature
    )
    prompts, ids = ws.encode(prompts)
    counts = {place: round(cfg.max_completions * share) for place, share in cfg.models.items()}
    sft = cfg.max_completions - sum(counts.values())
    early = round(sft * cfg.early)
    shares = [
        ("sft", "last", sft - early, ws.config.sft.epochs * per_epoch),
        ("sft, first epoch", "first", early, per_epoch),
    ]
    drawn = {
        name: ws.generate(
            ws.policy_of("sft", step), ids, sampler, ws.key(f"{purpose} {epoch}"), samples=samples
        )
        for name, epoch, samples, step in shares
        if samples
    }
    for place, samples in counts.items():
        if samples:
            owner, stage = of_other_run(place, ws.task)
            drawn[place] = owner.generate(
                owner.policy_of(stage), ids, sampler, ws.key(f"{purpose} {place}"), samples=samples
            )
    rng = np.random.default_rng((ws.config.seed, len(prompts)))
    rows = []
    for record, *parts in zip(prompts, *drawn.values(), strict=True):
        found = [
            (model, completion)
            for model, part in zip(drawn, parts, strict=True)
            for completion in part
        ]
        size = rng.integers(cfg.min_completions, cfg.max_completions + 1)
        models, chosen = zip(*(found[i] for i in rng.permutation(len(found))[:size]), strict=True)
        rows.append(
            {
                **record,
                "completions": [c.text for c in chosen],
                "ended": [c.ended for c in chosen],
                "models": [*models],
            }
        )
    return rows


def select(ws: Workspace) -> dict[str, Any]:
    """The SFT epoch whose samples score best with the reward model on the tuning prompts (paper
    C.1).
    """
    per_epoch, epochs = ws.output("sft")["steps_per_epoch"], ws.config.sft.epochs
    (_, prompts), judge = ws.encode(ws.task.prompts["tuning"]), ws.reward_params()
    sampler = SamplerConfig(max_tokens=ws.config.ppo.sampler.max_tokens)
    scores = {}
    for epoch in range(1, epochs + 1) if ws.config.sft.select else (epochs,):
        params = ws.policy_of("sft", epoch * per_epoch)
        drawn = ws.generate(params, prompts, sampler, ws.key("select"))
        scores[epoch] = float(
            ws.rewards(judge, [[*p, *c[0].ids] for p, c in zip(prompts, drawn, strict=True)]).mean()
        )
    best = max(scores, key=lambda epoch: scores[epoch])
    return {"epoch": best, "step": best * per_epoch, "reward_by_epoch": scores}
