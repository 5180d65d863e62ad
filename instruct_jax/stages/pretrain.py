"""Next-token prediction on plain text: the base model that the paper starts from, and the loss that
supervised fine-tuning shares.
"""

import dataclasses

import jax
import jax.numpy as jnp

from instruct_jax.config import OptimizerConfig
from instruct_jax.errors import require
from instruct_jax.models.lm import LanguageModel
from instruct_jax.records import Metrics, Params, TokenBatch
from instruct_jax.stages.gradient import LossFn


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """The paper starts from GPT-3; the embedded world and small real runs make their own base
    model.
    """

    steps: int = 500
    batch: int = 32  # rows, all hosts together
    length: int = 128  # tokens per row; documents are packed
    micro_batches: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    dropout: float = 0.0
    save_every: int = 500  # steps between checkpoints

    def __post_init__(self):
        require(self.steps >= 1, f"steps={self.steps} must be at least 1")
        require(self.length >= 2, f"length={self.length} must be at least 2")
        require(self.save_every >= 1, f"save_every={self.save_every} must be at least 1")
        check_batch(self.batch, self.micro_batches)
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must lie in [0, 1)")


def check_batch(batch: int, micro_batches: int) -> None:
    """A batch must split evenly into its micro-batches."""
    require(batch >= 1, f"batch={batch} must be at least 1")
    require(
        micro_batches >= 1 and batch % micro_batches == 0,
        f"micro_batches={micro_batches} must divide batch={batch}",
    )


def make_loss(lm: LanguageModel, stage: str, *, dropout: float = 0.0) -> LossFn:
    """Weighted negative log-likelihood in nats.

    With weights that sum to 1 it is the mean over the tokens that count.
    """

    def loss_fn(params: Params, batch: TokenBatch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        hidden = lm.hidden(
            params,
            batch.tokens,
            batch.segments,
            dropout=dropout,
            key=key if dropout or lm.adapter_dropout else None,
        )
        # column 0 weighs 0
        targets = jnp.roll(batch.tokens, -1, axis=1)
        weight = jnp.roll(batch.weight, -1, axis=1)
        logp, entropy = lm.logprobs(params, hidden, targets)
        nll = -(logp * weight).sum()
        return nll, {
            f"{stage}/nll": nll,
            f"{stage}/entropy": (jax.lax.stop_gradient(entropy) * weight).sum(),
        }

    return loss_fn
