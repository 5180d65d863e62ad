"""Direct preference optimization on rankings: the policy is its own reward model.

Source: Rafailov et al. 2023, arXiv:2305.18290.  The InstructGPT paper does not use it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from instruct_jax.config import OptimizerConfig
from instruct_jax.errors import require
from instruct_jax.models.lm import LanguageModel
from instruct_jax.ops.masking import masked_mean
from instruct_jax.ops.preferences import ranking_loss
from instruct_jax.records import Array, Metrics, Params, RankingBatch
from instruct_jax.stages.gradient import LossFn
from instruct_jax.stages.pretrain import check_batch


@dataclasses.dataclass(frozen=True)
class DpoConfig:
    """Defaults are those of Rafailov et al. 2023, appendix B, as far as they carry over."""

    epochs: int = 1
    batch: int = 64  # prompts, all hosts together
    micro_batches: int = 1
    beta: float = 0.1  # the larger, the closer the policy stays to the reference
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-6)
    save_every: int = 500  # steps between checkpoints

    def __post_init__(self):
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1")
        require(self.save_every >= 1, f"save_every={self.save_every} must be at least 1")
        require(self.beta > 0, f"beta={self.beta} must be positive")
        check_batch(self.batch, self.micro_batches)


@struct.dataclass
class DpoBatch:
    """Rankings, and how likely the frozen reference finds them.

    The reference's log-probs never change.  They are computed once and are data from then on, so
    the step holds one model only.
    """

    rankings: RankingBatch
    reference: Array  # [B, K] f32, `sequence_logp` under the reference, in nats


def sequence_logp(
    lm: LanguageModel,
    params: Params,
    rankings: RankingBatch,
    key: jax.Array | None = None,
) -> jax.Array:
    """log p(completion | prompt) in nats, f32 [B, K], without what all completions begin with.

    A ranking does not say where its prompt ends, and need not: tokens that all completions of a
    prompt begin with, the prompt among them, have the same log-prob in each, so every pair cancels
    them.  They are left out.  `key` turns the dropout of adapters on, which would make them differ.
    """
    prompts, k, length = rankings.tokens.shape
    tokens = rankings.tokens.reshape(prompts * k, length)
    mask = rankings.mask.reshape(prompts * k, length)
    segments = mask.astype(jnp.int32)
    hidden = lm.hidden(params, tokens, segments, key=key)
    # the state at a token predicts the next one
    targets = jnp.roll(tokens, -1, axis=1)
    logp, _ = lm.logprobs(params, hidden, targets)
    counts = jnp.roll(own_tokens(rankings), -1, axis=2)
    logp = logp.reshape(prompts, k, length)
    return jnp.where(counts, logp, 0.0).sum(axis=2)


def own_tokens(rankings: RankingBatch) -> jax.Array:
    """Where a real token stands after the beginning that all completions of its prompt share; bool
    [B, K, L].  Column 0 is False: nothing predicts the first token.
    """
    tokens = rankings.tokens
    mask = jnp.asarray(rankings.mask)
    absent = ~mask.any(axis=2, keepdims=True)
    same_token = tokens == tokens[:, :1]
    same_mask = mask == mask[:, :1]
    like_first = same_token & same_mask
    all_alike = (like_first | absent).all(axis=1, keepdims=True)
    differing = jnp.cumsum(~all_alike, axis=2) > 0
    predicted = jnp.arange(tokens.shape[2]) > 0
    return mask & differing & predicted[None, None, :]


def make_loss(lm: LanguageModel, beta: float) -> LossFn:
    """-(1 / pairs) sum over the pairs (w better than l) of log sigmoid(s_w - s_l) per prompt, with
    the score s = beta (log p - log p_ref) of a completion.

    Eq. 7 of the source for K = 2; for more completions its mean over the pairs of a prompt.  The
    batch is a DpoBatch; metrics weigh each prompt the same.
    """

    def loss_fn(params: Params, batch: DpoBatch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        rankings = batch.rankings
        dropout_key = key if lm.adapter_dropout else None
        logp = sequence_logp(lm, params, rankings, dropout_key)
        scores = beta * (logp - batch.reference)
        losses, accuracies, margins = jax.vmap(ranking_loss)(scores, rankings.ranks)
        chosen = masked_mean(scores, rankings.ranks == 1, axis=1)
        weight = rankings.weight
        loss = (losses * weight).sum()
        return loss, {
            "dpo/loss": loss,
            "dpo/accuracy": (accuracies * weight).sum(),
            "dpo/margin": (margins * weight).sum(),
            "dpo/chosen_score": (chosen * weight).sum(),
        }

    return loss_fn
