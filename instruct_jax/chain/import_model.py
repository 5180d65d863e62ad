"""Kind import: a model of Hugging Face, or of another run, as a stage of this one."""

import dataclasses
from typing import Any, ClassVar

from instruct_jax import sharding
from instruct_jax.chain import parameters
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Kind, Line
from instruct_jax.chain.settings import Leaves, StartedSettings
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.models.lm import parameter_count
from instruct_jax.runtime.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class ImportStage(StartedSettings):
    """Settings of a stage of kind import: `start` names the model."""

    leaves: ClassVar[Leaves] = "policy"
    whole: ClassVar[bool] = True


def run(stage: Stage) -> dict[str, Any]:
    """The weights as the checkpoint of the stage."""
    start = stage.used("start")
    params = parameters.policy(stage.run, start).params
    state = sharding.new_state(params, stage.key("imported"), init_optimizer=lambda _: {})
    with Checkpoints(
        stage.folder / "checkpoints", fingerprints=stage.network.fingerprints
    ) as checkpoints:
        checkpoints.save(state)
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    return {"model": str(start), "parameters": parameter_count(params)}


KIND = Kind(
    settings=ImportStage,
    run=run,
    line=lambda stage, facts: Line(batch=f"the weights of {stage.used('start')}"),
)
