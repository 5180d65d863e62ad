"""The stages of a config in one folder; each is skipped where it is done, so the same command
resumes.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from instruct_jax.chain import graph, identity
from instruct_jax.chain.context import Run, Stage
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.read import build_run
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.spec import NAME, model_leaves, read_spec
from instruct_jax.errors import ConfigError, RunError
from instruct_jax.runtime.checkpoints import saved_fingerprints
from instruct_jax.runtime.folders import (
    begin_stage,
    finish_stage,
    locked,
    open_run,
    read_config,
    read_note,
    stage_done,
    write_atomic,
)
from instruct_jax.runtime.hosts import barrier, is_main
from instruct_jax.runtime.metrics import peak_memory

REDO = "redo.json"  # in a run folder while stages are made again


def run(config: RunConfig, stages: Sequence[str] | None = None, redo: Sequence[str] = ()) -> Path:
    """Runs the stages that are asked for (None: all of the config, and the report) and not done;
    returns the run folder.

    redo: stages that are made again, with all that is made from them.  The config has passed
    preflight.validate and preflight.check_mesh.
    """
    folder = Path(config.out)
    chosen = picked(config, stages, redo)
    with locked(folder):
        _run_stages(config, folder, chosen, redo)
        if stages is None and is_main():
            from instruct_jax.report import build

            build(folder)
    return folder


def _run_stages(
    config: RunConfig, folder: Path, chosen: Sequence[str], redo: Sequence[str]
) -> None:
    again = graph.descendants(config, redo) if redo else []
    if is_main():
        kept = with_finished(config, folder)
        open_run(folder, _tree(kept))
        graph_text = json.dumps(graph_of(kept), indent=1)
        write_atomic(folder / "graph.json", graph_text + "\n")
        if redo:
            _remove(folder, again)
    barrier("run folder")
    context = Run(config, folder)
    context.begin()
    for name in chosen:
        stage = context.stage(name)
        inputs = _begin(stage, redone=name in again)
        if inputs is None:
            continue
        started = time.monotonic()
        output = KINDS[stage.settings.kind].run(stage)
        seconds = time.monotonic() - started
        _finish(stage, inputs, output, seconds)
    if is_main():
        (folder / REDO).unlink(missing_ok=True)
        summary_text = json.dumps(summary(folder), indent=2)
        write_atomic(folder / "summary.json", summary_text + "\n")


def with_finished(config: RunConfig, folder: Path) -> RunConfig:
    """The config with the finished stages of the folder that it does not name any more: export,
    chat and the report find them until somebody removes their folders.
    """
    if not (folder / "config.yaml").exists():
        return config
    before = read_config(folder / "config.yaml").get("stages", {})
    for name, settings in before.items():
        if name in config.stages or not (folder / name / "done.json").exists():
            continue
        tree = _tree(config)
        tree["stages"][name] = settings
        with contextlib.suppress(ConfigError):  # what it used is gone
            longer = build_run(tree, str(folder / "config.yaml"))
            graph.check_uses(longer)
            config = longer
    return config


def _tree(config: RunConfig) -> dict[str, Any]:
    """The config as YAML has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _remove(folder: Path, stages: list[str]) -> None:
    """Removes the stages that are made again.  The same command, started again before all of them
    are done, finds a note of that, and resumes.
    """
    note = folder / REDO
    if note.exists() and json.loads(note.read_text()) == stages:
        return
    for name in stages:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    write_atomic(note, json.dumps(stages))


def _begin(stage: Stage, *, redone: bool) -> dict[str, Any] | None:
    """What the stage is made from, noted in its folder; None where it was done from the same.

    redone: where it was made from something else, that is removed.
    """
    inputs = identity.identity(stage)
    try:
        done = stage_done(stage.folder, inputs)
    except RunError:
        if not redone:
            raise
        barrier(f"{stage.name} is removed")  # all have seen what it was made from
        done = None
        if is_main():
            shutil.rmtree(stage.folder)
    if done:
        if is_main():
            print(f"{stage.name} is done", flush=True)
        return None
    barrier(f"{stage.name} begins")  # all have seen that it is not done before one of them does it
    begin_stage(stage.folder, inputs)
    return inputs


def _finish(stage: Stage, inputs: dict[str, Any], output: Any, seconds: float) -> None:
    finish_stage(
        stage.folder,
        inputs,
        kind=stage.settings.kind,
        output=output,
        left=identity.left_by(stage),
        seconds=seconds,
        memory=peak_memory(),
    )
    barrier(stage.name)  # the next stage reads what this one wrote


def picked(config: RunConfig, stages: Sequence[str] | None, redo: Sequence[str] = ()) -> list[str]:
    """The stages that a command runs, in order."""
    order = graph.order(config)
    if stages is None:
        return order
    again = graph.descendants(config, redo) if redo else []
    return [name for name in order if name in stages or name in again]


def check_needs(run: Run, chosen: Sequence[str]) -> None:
    """RunError unless every stage finds what it uses: made by this command, or done before."""
    for name in chosen:
        for key, place in run.stage(name).uses.items():
            if place.model is not None:
                leaves = model_leaves(place.model)
                if leaves is not None:
                    graph.check_leaves(run.config, name, key, place, leaves)
                continue
            if place.own and place.stage in chosen:
                continue
            note = run.stage_folder(place) / "done.json"
            if note.exists():
                if not place.own:
                    _check_kind(run.config, name, key, place, read_note(note))
                continue
            if place.own:
                raise RunError(
                    f"--stages {name} needs {place}, which {run.folder} does not have; add"
                    f" {place} to --stages"
                )
            raise RunError(
                f"stages.{name}.{key}={place}: {place.run} has not finished a stage"
                f" {place.stage}; run it there first, or name another"
            )


def _check_kind(
    config: RunConfig, name: str, key: str, place: graph.Place, note: dict[str, Any]
) -> None:
    """ConfigError where a finished stage of another run is not what is needed here."""
    kind = KINDS.get(note.get("kind", ""))
    if kind is not None:
        graph.check_leaves(config, name, key, place, kind.settings.leaves)


def check_identities(run: Run, chosen: Sequence[str], redo: Sequence[str] = ()) -> None:
    """RunError where a stage that was begun, of those chosen or of what they are made from, was
    made from something else.
    """
    again = set(graph.descendants(run.config, redo)) if redo else set()
    wanted = set(chosen)
    for name in reversed(graph.order(run.config)):
        if name not in wanted:
            continue
        for place in run.stage(name).uses.values():
            if place.own:
                wanted.add(str(place.stage))
    for name in graph.order(run.config):
        stage = run.stage(name)
        begun = any((stage.folder / note).exists() for note in ("inputs.json", "done.json"))
        if name in again or name not in wanted or not begun:
            continue
        with contextlib.suppress(_Unfinished):
            stage_done(stage.folder, _identity_of_begun(stage))


class _Unfinished(Exception):
    """Something that a stage uses is not finished."""


def _identity_of_begun(stage: Stage) -> dict[str, Any]:
    for place in stage.uses.values():
        if not place.stage:
            continue
        note = stage.run.stage_folder(place) / "done.json"
        if not note.exists():
            raise _Unfinished
    return identity.identity(stage)


def check_tokenizers(run: Run, chosen: Sequence[str]) -> None:
    """RunError where saved parameters were made with another tokenizer than the one that is read
    now: its ids mean other words to them.
    """
    for name in chosen:
        for key, place in run.stage(name).uses.items():
            if place.stage is None or not (run.stage_folder(place) / NAME).exists():
                continue
            folder = run.folder if place.run is None else Path(place.run)
            spec, left = read_spec(folder, place.stage)
            saved = saved_fingerprints(folder / left.stage / "checkpoints")
            then = saved.get("tokenizer")
            now = identity.tokenizer_fingerprint(run, spec.tokenizer)
            if then not in (None, now):
                raise RunError(
                    f"stages.{name}.{key}={place} was made with the tokenizer {then}, and"
                    f" {spec.tokenizer.place} is {now} now; put the tokenizer back"
                )


def graph_of(config: RunConfig) -> dict[str, Any]:
    """The stages for the report: what each is, uses and leaves, and which curves show it."""
    rows = []
    for name in graph.order(config):
        settings = config.stages[name]
        places = graph.uses(config, name)
        rows.append(
            {
                "name": name,
                "kind": settings.kind,
                "leaves": settings.leaves,
                "uses": {key: str(place) for key, place in places.items()},
                "curves": [curve._asdict() for curve in KINDS[settings.kind].curves],
            }
        )
    return {"stages": rows}


def summary(folder: Path) -> dict[str, Any]:
    """The numbers of a run, from what its stages left behind."""
    text = (folder / "graph.json").read_text(encoding="utf-8")
    stages = json.loads(text)["stages"]
    done = {}
    sessions = []
    for row in stages:
        note_file = folder / row["name"] / "done.json"
        if note_file.exists():
            done[row["name"]] = read_note(note_file)
        sessions_file = folder / row["name"] / "sessions.jsonl"
        if sessions_file.exists():
            lines = sessions_file.read_text(encoding="utf-8").splitlines()
            sessions += [json.loads(line) for line in lines]
    leaves = {row["name"]: row["leaves"] for row in stages}
    evaluations = {}
    reward_models = {}
    unigrams = []
    for name, note in done.items():
        output = note["output"]
        if "win_rate" in output:
            evaluations[name] = output
        if leaves[name] == "scalar":
            reward_models[name] = {key: output.get(key) for key in ACCURACIES}
        if "nll_unigram" in output:
            unigrams.append(output["nll_unigram"])
    peaks = [part["host_peak_gib"] for part in (*done.values(), *sessions)]
    return {
        "seconds": {name: note["seconds"] for name, note in done.items()},
        "evaluations": evaluations,
        "reward_models": reward_models,
        "nll_unigram": unigrams[0] if unigrams else None,
        "recompiles_after_warmup": sum(s["recompiles_after_warmup"] for s in sessions),
        "peak_memory_gib": max(peaks, default=None),
        "seed": read_config(folder / "config.yaml")["seed"],
        "hardware": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


ACCURACIES = (
    "accuracy_heldout_prompts",
    "accuracy_heldout_labelers",
    "accuracy_longer",
    "labeler_agreement",
)
