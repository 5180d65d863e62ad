"""One step again: the one whose metrics were not finite, from what the loop kept of it.

Writes nothing.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from instruct_jax.chain.base_model import load_run
from instruct_jax.chain.preflight import check_mesh
from instruct_jax.chain.task import open_task
from instruct_jax.chain.train import training_of
from instruct_jax.chain.workspace import Workspace
from instruct_jax.errors import ConfigError
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.digests import named_leaves
from instruct_jax.runtime.loop import freed


def replay(folder: Path) -> tuple[Path, dict[str, float]]:
    """(the folder of the step, its metrics); `folder` is that folder, or a run folder with one of
    them.
    """
    place = find(folder)
    stage, run, step = place.parent.name, place.parent.parent, int(place.name.rpartition("_")[2])
    config = load_run(run / "config.yaml")
    check_mesh(config, jax.device_count())
    training = training_of(Workspace(config, run, open_task(config, run)), stage)
    example = training.batch_at(step - 1)
    with Checkpoints(place / "state", fingerprints=training.fingerprints) as checkpoints:
        state = checkpoints.restore(freed(training.state))
    _, metrics = training.step(state, _read_batch(place / "batch.npz", example))
    return place, {name: float(value) for name, value in jax.device_get(metrics).items()}


def find(folder: Path) -> Path:
    """The one nonfinite_step_N of a run folder, or `folder` itself."""
    found = (
        [folder]
        if folder.name.startswith("nonfinite_step_")
        else sorted(folder.glob("*/nonfinite_step_*"))
    )
    found = [place for place in found if (place / "batch.npz").exists()]
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise ConfigError(
            f"{folder}: a replay takes one step that was not finite, and here is {listed}; name one"
            " STAGE/nonfinite_step_N"
        )
    return found[0].absolute()


def _read_batch(path: Path, example: Any) -> Any:
    """The batch of a file, on the devices as `example` is."""
    names, (leaves, tree) = [*named_leaves(example)], jax.tree.flatten(example)
    with np.load(path) as arrays:
        if {name: arrays[name].shape for name in arrays} != {
            n: leaf.shape for n, leaf in zip(names, leaves, strict=True)
        }:
            raise ConfigError(
                f"{path} holds a batch of another shape than the config makes; put config.yaml and"
                " the data back as they were"
            )
        return jax.tree.unflatten(
            tree,
            [
                jax.device_put(arrays[n], leaf.sharding)
                for n, leaf in zip(names, leaves, strict=True)
            ],
        )
