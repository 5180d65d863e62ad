"""Models by what a user calls them: RUN:STAGE, a Hugging Face folder, or OWNER/NAME of the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from instruct_jax.chain import graph, parameters
from instruct_jax.chain.context import Run
from instruct_jax.chain.graph import Place
from instruct_jax.chain.networks import Network
from instruct_jax.chain.read import imported_as, load_run
from instruct_jax.chain.spec import NAME
from instruct_jax.config import MESH
from instruct_jax.data.tokenize import MESSAGES
from instruct_jax.errors import RunError, require
from instruct_jax.records import Params
from instruct_jax.runtime.folders import as_started

ONE_DEVICE = [f"--mesh.{axis}=1" for axis in MESH]


class Opened(NamedTuple):
    """A model with its parameters, and the run that reads it."""

    name: str
    run: Run
    place: Place
    net: Network
    params: Params


def open_policy(name: str, overrides: Sequence[str] = ()) -> Opened:
    """A language model, its parameters as the sampler wants them."""
    run, place = find(name, "policy", overrides)
    with as_started(run.folder):
        model = parameters.policy(run, place)
    weights = model.net.for_sampling(model.params)
    return Opened(shown(run, place), run, place, model.net, weights)


def open_reward(name: str, overrides: Sequence[str] = ()) -> Opened:
    """A reward model."""
    run, place = find(name, "scalar", overrides)
    with as_started(run.folder):
        model = parameters.scalar(run, place)
    return Opened(shown(run, place), run, place, model.net, model.params)


def find(name: str, leaves: str, overrides: Sequence[str] = ()) -> tuple[Run, Place]:
    """The place of a model; RunError or ConfigError where it leaves something else or is not done.

    Of a run folder without a stage it is the last stage that left such a model.
    """
    folder, stage = _run_and_stage(name)
    if folder is None:
        asked = ["--text.template", MESSAGES] if leaves == "policy" else []
        config = imported_as(name, name, [*ONE_DEVICE, *asked, *overrides])
        run = Run(config, Path(name))
        _check_mesh(run)
        return run, Place(None, None, name)
    config = load_run(folder / "config.yaml", [*ONE_DEVICE, *overrides])
    run = Run(config, folder)
    _check_mesh(run)
    fitting = []
    done = []
    for other in graph.order(config):
        if config.stages[other].leaves != leaves:
            continue
        fitting.append(other)
        if (folder / other / NAME).exists():
            done.append(other)
    what = graph.LEAVES_WORDS[leaves]
    if not stage:
        if not done:
            raise RunError(f"{folder} has no finished stage that leaves {what}; run it first")
        return run, Place(None, done[-1])
    require(
        stage in fitting,
        f"{name}: {stage} is no stage of this run that leaves {what}; use one of"
        f" {', '.join(fitting) or 'another run'}",
    )
    if stage not in done:
        raise RunError(f"{folder} has not finished the stage {stage}; run it first")
    return run, Place(None, stage)


def shown(opened_run: Run, place: Place) -> str:
    """RUN:STAGE of a place that `find` found."""
    if place.model is not None:
        return str(place)
    return f"{opened_run.folder}:{place.stage}"


def _run_and_stage(name: str) -> tuple[Path | None, str]:
    """The run folder, if it is one, and the stage, if one is named."""
    if Path(name, "config.yaml").is_file():
        return Path(name), ""
    folder, colon, stage = name.rpartition(":")
    if not colon or Path(name).is_dir():
        _check_model(name)
        return None, ""
    if not Path(folder, "config.yaml").is_file():
        raise RunError(
            f"{folder} is no run folder, it has no config.yaml: give RUN:STAGE, or a Hugging Face"
            " folder or name"
        )
    return Path(folder), stage


def _check_model(name: str) -> None:
    if graph.is_model(name):
        return
    fix = "give RUN, RUN:STAGE, the folder of a Hugging Face model, or OWNER/NAME"
    if Path(name).is_dir():
        raise RunError(f"{name} has no config.yaml of a run and no config.json of a model; {fix}")
    raise RunError(f"{name}: no such run or model folder (looked in {Path.cwd()}); {fix}")


def _check_mesh(run: Run) -> None:
    mesh = run.config.mesh
    require(
        mesh.data == mesh.fsdp == mesh.context == 1,
        "a conversation is one row, which only mesh.tensor can split; leave the other axes 1",
    )
