"""One step again: the one whose metrics were NaN or Inf, from what the loop kept of it.

Writes nothing.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from instruct_jax.chain.context import Run
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.preflight import check_mesh
from instruct_jax.chain.read import load_run
from instruct_jax.errors import ConfigError, require
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.loop import freed


def replay(folder: Path) -> tuple[Path, dict[str, float]]:
    """(the folder of the step, its metrics); `folder` is that folder, or a run folder with one of
    them.
    """
    place = find(folder)
    name = place.parent.name
    run_folder = place.parent.parent
    step = int(place.name.rpartition("_")[2])
    config = load_run(run_folder / "config.yaml")
    require(
        name in config.stages,
        f"{place}: {name} is no stage of {run_folder / 'config.yaml'}; put that file back as it"
        " was",
    )
    check_mesh(config, jax.device_count())
    stage = Run(config, run_folder).stage(name)
    make = KINDS[stage.settings.kind].training
    assert make is not None
    training = make(stage)
    example = training.batch_at(step - 1)
    with Checkpoints(place / "state", fingerprints=training.fingerprints) as checkpoints:
        state = checkpoints.restore(freed(training.state))
    batch = _read_batch(place / "batch.npz", example)
    _, metrics = training.step(state, batch)
    metrics = jax.device_get(metrics)
    return place, {key: float(value) for key, value in metrics.items()}


def find(folder: Path) -> Path:
    """The one nonfinite_step_N of a run folder, or `folder` itself."""
    found = sorted(folder.glob("*/nonfinite_step_*"))
    if folder.name.startswith("nonfinite_step_"):
        found = [folder]
    found = [place for place in found if (place / "batch.npz").exists()]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise ConfigError(
            f"{folder}: a replay takes one step that was NaN or Inf, and here is {listed}; name one"
            " STAGE/nonfinite_step_N"
        )
    return found[0].absolute()


def _read_batch(path: Path, example: Any) -> Any:
    """The batch of a file, on the devices as `example` is."""
    names = [*named_leaves(example)]
    leaves, tree = jax.tree.flatten(example)
    shapes = {name: leaf.shape for name, leaf in zip(names, leaves, strict=True)}
    with np.load(path) as arrays:
        if {name: arrays[name].shape for name in arrays} != shapes:
            raise ConfigError(
                f"{path} holds a batch of another shape than the config makes; put config.yaml and"
                " the data back as they were"
            )
        placed = []
        for name, leaf in zip(names, leaves, strict=True):
            placed.append(jax.device_put(arrays[name], leaf.sharding))
        return jax.tree.unflatten(tree, placed)
