"""The whole chain in one folder; each stage is skipped where it is done, so the same command
resumes.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from instruct_jax.chain import compare, evaluate, train
from instruct_jax.chain.base_model import import_base
from instruct_jax.chain.cross_validation import cross_validation
from instruct_jax.chain.settings import STAGES, CompareConfig, RunConfig
from instruct_jax.chain.task import open_task
from instruct_jax.chain.workspace import Workspace, stage_folder
from instruct_jax.errors import RunError
from instruct_jax.runtime.folders import link_stages, open_run, write_atomic
from instruct_jax.runtime.hosts import barrier, is_main
from instruct_jax.runtime.metrics import peak_memory

NEEDS = {
    "pretrain": (),
    "sft": ("pretrain",),
    "compare": ("sft",),
    "reward": ("sft", "compare"),
    "cross_validation": ("sft", "compare"),
    "select": ("sft", "reward"),
    "ppo_start": ("pretrain",),
    "ppo": ("select", "reward"),
    "ppo_ptx": ("select", "reward"),
}


def run(config: RunConfig, stages: Sequence[str] | None = None) -> Path:
    """Runs the stages that are asked for (None: all that the config has) and not done; returns the
    run folder, which ends with summary.json and report.html.

    The config has passed validate.validate and validate.check_mesh.
    """
    folder, stages = Path(config.out), config.stages if stages is None else stages
    _check_needs(folder, config, stages)
    if is_main():
        open_run(folder, json.loads(json.dumps(dataclasses.asdict(config))))
        if config.start is not None:
            link_stages(folder, Path(config.start.folder), config.start.stages)
    barrier("run folder")
    ws = Workspace(config, folder, open_task(config, folder))
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "pretrain": lambda: import_base(ws) if config.base else train.pretrain(ws),
        "sft": lambda: train.sft(ws),
        "compare": lambda: compare.compare(ws),
        "reward": lambda: train.reward(ws),
        "cross_validation": lambda: cross_validation(ws),
        "select": lambda: compare.select(ws),
        "ppo_start": lambda: train.sft(ws, "ppo_start"),
        **{name: functools.partial(train.ppo, ws, name) for name in config.rl},
        "evaluate": lambda: evaluate.evaluate(ws),
    }
    for name in work:
        if name in stages:
            ws.stage(name, needs_of(name, config), work[name])
    if "report" in stages:
        from instruct_jax.report.page import build

        write_atomic(folder / "summary.json", json.dumps(summary(folder), indent=2) + "\n")
        if is_main():
            build(folder)
    return folder


def needs_of(stage: str, config: RunConfig) -> tuple[str, ...]:
    """The stages whose results a stage reads; those of other runs as FOLDER:STAGE."""
    start = () if config.ppo_start is None else ("ppo_start",)
    if stage == "evaluate":
        return ("pretrain", "select", "reward", *start, *config.rl)
    others = _of_other_rounds(config.compare) if stage == "compare" else ()
    return (*NEEDS.get(stage, ()), *(start if stage in config.rl else ()), *others)


def _of_other_rounds(cfg: CompareConfig) -> tuple[str, ...]:
    earlier = () if cfg.earlier is None else (f"{cfg.earlier}:compare",)
    return (*cfg.models, *earlier, *(() if cfg.judge is None else (cfg.judge,)))


def _check_needs(folder: Path, config: RunConfig, stages: Sequence[str]) -> None:
    """Every stage finds what it reads: made in this run, or done before."""
    given = (*stages, *(config.start.stages if config.start else ()))
    for stage in stages:
        missing = [
            n
            for n in needs_of(stage, config)
            if n not in given and not (stage_folder(folder, n) / "done.json").exists()
        ]
        if missing:
            raise RunError(
                f"--stages {stage} needs {', '.join(missing)}, which {folder} does not have; add"
                f" {missing[0]} to --stages"
            )


def summary(folder: Path) -> dict[str, Any]:
    """The numbers of a run, from what its stages left behind."""
    done = {
        name: json.loads(path.read_text())
        for name in STAGES
        if (path := folder / name / "done.json").exists()
    }
    found = done.get("evaluate", {}).get("output", {})
    sessions = [
        json.loads(line)
        for name in STAGES
        if (path := folder / name / "sessions.jsonl").exists()
        for line in path.read_text().splitlines()
    ]
    peaks = [s["host_peak_gib"] for s in sessions] + [peak_memory()["host_peak_gib"]]
    reward = found.get("reward_model", {})
    keys = (
        "accuracy_heldout_prompts",
        "accuracy_heldout_labelers",
        "accuracy_longer",
        "labeler_agreement",
    )
    return {
        "seconds": {name: record["seconds"] for name, record in done.items()},
        "win_rate_vs_sft": {
            "sft" if m == "sft_control" else m: rate
            for m, rate in found.get("win_rate_vs_sft", {}).items()
        },
        "gold_score": found.get("gold_score", {}),
        "reward_model": {key: reward.get(key) for key in keys},
        "kl_to_sft": found.get("kl_to_sft", {}),
        "pretrain_nll": found.get("pretrain_nll", {}),
        "nll_unigram": done.get("pretrain", {}).get("output", {}).get("nll_unigram"),
        "recompiles_after_warmup": sum(s["recompiles_after_warmup"] for s in sessions),
        "peak_memory_gib": max(peaks),
        "seed": yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["seed"],
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
