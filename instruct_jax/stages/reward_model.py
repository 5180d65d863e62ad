"""The reward model, from K-wise rankings (paper 3.5, C.2)."""

import dataclasses
from typing import Literal

import jax

from instruct_jax.config import OptimizerConfig
from instruct_jax.errors import require
from instruct_jax.models.heads import ScalarModel
from instruct_jax.ops.preferences import ranking_loss
from instruct_jax.records import Metrics, Params, RankingBatch
from instruct_jax.stages.gradient import LossFn
from instruct_jax.stages.pretrain import check_batch


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    epochs: int = 1  # more overfit fast (C.2)
    batch: int = 64  # prompts, all hosts together: up to 64 * C(9, 2) = 2304 comparisons
    micro_batches: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=9e-6)
    # demonstrations score 0 on average (paper); std 1 besides (Ziegler et al. 2019)
    normalize: Literal["mean", "mean_and_std"] = "mean"
    # every pair is an example of its own: only to reproduce the paper's overfitting remark
    pairs_shuffled: bool = False
    save_every: int = 500  # steps between checkpoints

    def __post_init__(self):
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1")
        require(self.save_every >= 1, f"save_every={self.save_every} must be at least 1")
        check_batch(self.batch, self.micro_batches)


def make_loss(model: ScalarModel) -> LossFn:
    """-(1 / pairs) sum log sigmoid(r_better - r_worse) per prompt, every completion scored once;
    metrics weigh each prompt the same.
    """

    def loss_fn(params: Params, batch: RankingBatch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        prompts, k, length = batch.tokens.shape
        tokens = batch.tokens.reshape(prompts * k, length)
        mask = batch.mask.reshape(prompts * k, length)
        dropout_key = key if model.lm.adapter_dropout else None
        flat = model.score(params, tokens, mask, dropout_key)
        scores = flat.reshape(prompts, k)
        losses, accuracies, _ = jax.vmap(ranking_loss)(scores, batch.ranks)
        loss = (losses * batch.weight).sum()
        return loss, {
            "reward/loss": loss,
            "reward/accuracy": (accuracies * batch.weight).sum(),
        }

    return loss_fn
