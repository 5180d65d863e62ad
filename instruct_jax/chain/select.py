"""Kind select: the SFT epoch whose samples a reward model likes best, as a policy of its own name
(paper C.1).
"""

import dataclasses
from typing import Any, ClassVar

from instruct_jax.chain import networks, parameters
from instruct_jax.chain.context import Stage, prompts_there, require_room, sample_tokens
from instruct_jax.chain.kind import Kind, Line
from instruct_jax.chain.settings import Leaves, RunConfig, StartedSettings
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.chain.task import N_TUNING_PROMPTS
from instruct_jax.errors import require
from instruct_jax.stages.rollout import SamplerConfig
from instruct_jax.text import plural


@dataclasses.dataclass(frozen=True)
class SelectStage(StartedSettings):
    """Settings of a stage of kind select: `start` is a stage of kind sft of this run."""

    leaves: ClassVar[Leaves] = "policy"

    reward: str = "reward"
    max_tokens: int | None = None  # of a sample; null = text.max_completion

    def uses(self) -> dict[str, str]:
        return {"start": self.start, "reward": self.reward}


def run(stage: Stage) -> dict[str, Any]:
    """Scores one sample of each tuning prompt by each epoch."""
    start = stage.used("start")
    settings: Any = stage.run.config.stages[str(start.stage)]
    per_epoch = stage.run.output(start)["steps_per_epoch"]
    reward = parameters.scalar(stage.run, stage.used("reward"))
    records = stage.task.prompts("tuning", N_TUNING_PROMPTS)
    prompts, ids = networks.encode(stage.network, records)
    sampler = SamplerConfig(max_tokens=sample_tokens(stage))
    scores = {}
    for epoch in range(1, settings.epochs + 1):
        policy = parameters.policy(stage.run, start, epoch * per_epoch)
        key = stage.key("select")
        replies = networks.generate(policy.net, policy.params, ids, sampler, key)
        best = [completions[0] for completions in replies]
        rows = networks.whole_ids(reward.net, policy.net, prompts, ids, best)
        rewards = networks.rewards(reward.net, reward.params, rows)
        scores[epoch] = float(rewards.mean())
    chosen = max(scores, key=lambda epoch: scores[epoch])
    step = chosen * per_epoch
    checkpoint = Checkpoint(str(start.stage), step=step)
    write_spec(stage.run.folder, stage.name, stage.spec, checkpoint)
    return {"epoch": chosen, "step": step, "reward_by_epoch": scores}


def check(stage: Stage) -> None:
    start = stage.used("start")
    stages = stage.run.config.stages
    require(
        start.own and stages[str(start.stage)].kind == "sft",
        f"stages.{stage.name}.start={start} must be a stage of kind sft of this run, whose epochs"
        " are compared",
    )
    require_room(stage, stage.spec)


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("prompts",)


def line(stage: Stage, facts: Any) -> Line:
    start = stage.used("start")
    settings: Any = stage.run.config.stages[str(start.stage)]
    prompts = prompts_there(stage, "tuning", N_TUNING_PROMPTS, facts)
    return Line(batch=f"{plural(settings.epochs, 'epoch')} x {plural(prompts, 'prompt')}")


KIND = Kind(
    settings=SelectStage,
    run=run,
    reads=reads,
    records=lambda stage: {"prompts": stage.task.prompts("tuning", N_TUNING_PROMPTS)},
    run_keys=("text",),
    check=check,
    line=line,
)
