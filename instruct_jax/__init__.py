"""InstructGPT in JAX: language models that follow instructions, trained with human feedback (Ouyang
et al. 2022, arXiv:2203.02155).

`import instruct_jax as ij` has the step-level API (docs/library.md): models, losses, steps, the
sampler, and the records that flow between them.  Each name is imported when it is first used, so
that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instruct_jax.config import LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
    from instruct_jax.models.heads import ScalarModel
    from instruct_jax.models.init import init
    from instruct_jax.models.lm import LanguageModel
    from instruct_jax.optim import make_optimizer
    from instruct_jax.records import (
        Experience,
        PromptBatch,
        RankingBatch,
        Rollout,
        TokenBatch,
        TrainState,
    )
    from instruct_jax.sharding import (
        Layout,
        compile_step,
        create_sharded,
        create_state,
        make_mesh,
    )
    from instruct_jax.stages.dpo import DpoBatch, sequence_logp
    from instruct_jax.stages.dpo import make_loss as make_dpo_loss
    from instruct_jax.stages.experience import ExperienceConfig, make_experience
    from instruct_jax.stages.gradient import make_step
    from instruct_jax.stages.ppo import PpoConfig, make_update
    from instruct_jax.stages.pretrain import make_loss as make_lm_loss
    from instruct_jax.stages.reward_model import make_loss as make_reward_loss
    from instruct_jax.stages.rollout import SamplerConfig, make_rollout
    from instruct_jax.stages.state import new_ppo_state, new_state

__all__ = [
    "DpoBatch",
    "Experience",
    "ExperienceConfig",
    "LanguageModel",
    "Layout",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PpoConfig",
    "PromptBatch",
    "RankingBatch",
    "Rollout",
    "SamplerConfig",
    "ScalarModel",
    "TokenBatch",
    "TrainState",
    "compile_step",
    "create_sharded",
    "create_state",
    "init",
    "make_dpo_loss",
    "make_experience",
    "make_lm_loss",
    "make_mesh",
    "make_optimizer",
    "make_reward_loss",
    "make_rollout",
    "make_step",
    "make_update",
    "new_ppo_state",
    "new_state",
    "sequence_logp",
]

# where each name lives, below this package
_HOMES = {
    "DpoBatch": "stages.dpo.DpoBatch",
    "Experience": "records.Experience",
    "ExperienceConfig": "stages.experience.ExperienceConfig",
    "LanguageModel": "models.lm.LanguageModel",
    "Layout": "sharding.Layout",
    "LoraConfig": "config.LoraConfig",
    "MeshConfig": "config.MeshConfig",
    "ModelConfig": "config.ModelConfig",
    "OptimizerConfig": "config.OptimizerConfig",
    "PpoConfig": "stages.ppo.PpoConfig",
    "PromptBatch": "records.PromptBatch",
    "RankingBatch": "records.RankingBatch",
    "Rollout": "records.Rollout",
    "SamplerConfig": "stages.rollout.SamplerConfig",
    "ScalarModel": "models.heads.ScalarModel",
    "TokenBatch": "records.TokenBatch",
    "TrainState": "records.TrainState",
    "compile_step": "sharding.compile_step",
    "create_sharded": "sharding.create_sharded",
    "create_state": "sharding.create_state",
    "init": "models.init.init",
    "make_dpo_loss": "stages.dpo.make_loss",
    "make_experience": "stages.experience.make_experience",
    "make_lm_loss": "stages.pretrain.make_loss",
    "make_mesh": "sharding.make_mesh",
    "make_optimizer": "optim.make_optimizer",
    "make_reward_loss": "stages.reward_model.make_loss",
    "make_rollout": "stages.rollout.make_rollout",
    "make_step": "stages.gradient.make_step",
    "make_update": "stages.ppo.make_update",
    "new_ppo_state": "stages.state.new_ppo_state",
    "new_state": "stages.state.new_state",
    "sequence_logp": "stages.dpo.sequence_logp",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
