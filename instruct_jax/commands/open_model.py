"""Models by what a user calls them: a finished stage of a run (RUN or RUN:STAGE), or a Hugging Face
folder or name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from instruct_jax.chain.base_model import imported_as, load_run, read_base
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.task import Task, tokenizer_only
from instruct_jax.chain.workspace import Workspace
from instruct_jax.config import MESH
from instruct_jax.data.tokenize import MESSAGES
from instruct_jax.errors import RunError, require
from instruct_jax.records import Params

ONE_DEVICE = [f"--mesh.{axis}=1" for axis in MESH]


class Opened(NamedTuple):
    """A model with the workspace that can run it."""

    name: str
    ws: Workspace
    params: Params


def open_policy(name: str, overrides: Sequence[str] = ()) -> Opened:
    """A language model, its parameters as the sampler wants them; of a run the last stage that made
    one, unless it is named.
    """
    run, stage = _run_of(name)
    if run is None:
        ws = _of_folder(name, overrides)
        return Opened(name, ws, ws.for_sampling(read_base(ws)))
    ws = _of_run(run, overrides)
    kinds = ("pretrain", *ws.config.sfts, *ws.config.rl)
    require(
        stage in ("", *kinds),
        f"{name}: {stage} is no language model of this run; use one of {', '.join(kinds)}",
    )
    stage = stage or next(
        (kind for kind in reversed(kinds) if kind != "ppo_start" and _done(run, kind)), "pretrain"
    )
    _check_done(run, stage)
    return Opened(f"{run}:{stage}", ws, ws.for_sampling(ws.policy_of(stage)))


def open_reward(name: str, overrides: Sequence[str] = ()) -> Opened:
    """A reward model."""
    run, stage = _run_of(name)
    if run is None:
        ws = _of_folder(name, overrides)
        return Opened(name, ws, read_base(ws, head=True))
    require(stage in ("", "reward"), f"{name}: {stage} is no reward model; use {run}:reward")
    _check_done(run, "reward")
    ws = _of_run(run, overrides)
    return Opened(f"{run}:reward", ws, ws.reward_params())


def of_other_run(place: str, task: Task) -> tuple[Workspace, str]:
    """FOLDER:STAGE as (the run that it is from, its stage), to be read beside a run of this task:
    the tokenizer is the same.
    """
    folder, _, stage = place.rpartition(":")
    return Workspace(load_run(Path(folder) / "config.yaml"), Path(folder), task), stage


def _run_of(name: str) -> tuple[Path | None, str]:
    """The run folder, if it is one, and the stage, if one is named."""
    if Path(name, "config.yaml").is_file():
        return Path(name), ""
    folder, colon, stage = name.rpartition(":")
    if not colon or Path(name).is_dir():
        return None, ""
    if not Path(folder, "config.yaml").is_file():
        raise RunError(
            f"{folder} is no run folder, it has no config.yaml: give RUN:STAGE, or a Hugging Face"
            " folder or name"
        )
    return Path(folder), stage


def _done(run: Path, stage: str) -> bool:
    return (run / stage / "done.json").exists()


def _check_done(run: Path, stage: str) -> None:
    if not _done(run, stage):
        raise RunError(f"{run} has not finished the stage {stage}; run it first")


def _of_run(run: Path, overrides: Sequence[str]) -> Workspace:
    return _workspace(load_run(run / "config.yaml", [*ONE_DEVICE, *overrides]), run)


def _of_folder(name: str, overrides: Sequence[str]) -> Workspace:
    return _workspace(
        imported_as(name, name, [*ONE_DEVICE, "--text.template", MESSAGES, *overrides]), Path(name)
    )


def _workspace(config: RunConfig, folder: Path) -> Workspace:
    mesh = config.mesh
    require(
        mesh.data == mesh.fsdp == mesh.context == 1,
        "a conversation is one row, which only mesh.tensor can split; leave the other axes 1",
    )
    return Workspace(config, folder, tokenizer_only(config, folder))
