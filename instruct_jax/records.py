"""The records that flow between the stages.  Reading this file alone tells the story.

    prompts -> demonstrations -> SFT -> samples -> rankings -> reward model -> rollouts ->
    experience -> PPO

Shape alphabet, used in every docstring, comment and einsum of the project:

    B  batch (all hosts together)      P  prompt tokens, padded on the left
    K  completions of one prompt       T  response tokens, padded on the right
    L  sequence length (P + T)         V  vocabulary
    D  model width                     N  layers
    H  query heads                     G  key/value heads
    C  width of one head               F  width of the MLP

A `mask` is True where a thing counts.  `logp` is in nats.  A `weight` is a float32 share of a loss:
the weights of one batch sum to 1 over all its micro-batches and hosts, so every loss and metric is
a weighted *sum* and micro-batches simply add.
"""

from typing import Any

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray  # on the devices, or still on the host
Params = Any  # a nested dict of arrays
Metrics = dict[str, jax.Array]  # flat "stage/name" -> float32 scalar


@struct.dataclass
class TokenBatch:
    """Rows of text to learn from, one or several documents per row."""

    tokens: Array  # [B, L] int32
    segments: Array  # [B, L] int32, 0 = padding; tokens attend within their own segment only
    # [B, L] f32, share of the loss of predicting token t from the tokens before it; column 0 is 0
    weight: Array


@struct.dataclass
class RankingBatch:
    """Prompts with up to K ranked completions each; all pairs of a prompt stay in one batch element
    (paper 3.5).
    """

    tokens: Array  # [B, K, L] int32, prompt + completion, padded on the right
    # [B, K, L] bool, True = real token, eos included; all False where there is no k-th completion
    mask: Array
    ranks: Array  # [B, K] int32, 1 = best, equal = tie, 0 = no completion
    # [B] f32, share of the loss; the same for every prompt whatever its K, 0 where no pair is left
    weight: Array


@struct.dataclass
class PromptBatch:
    """Prompts to answer."""

    tokens: Array  # [B, P] int32, padded on the left
    mask: Array  # [B, P] bool, True = real token


@struct.dataclass
class Rollout:
    """One sampled response per prompt; column t is the t-th response token."""

    prompt: Array  # [B, P] int32, padded on the left
    prompt_mask: Array  # [B, P] bool
    tokens: Array  # [B, T] int32, the pad id after the first eos
    mask: Array  # [B, T] bool, True = response token, eos included
    logp: Array  # [B, T] f32, under the distribution really sampled from; 0 where not mask
    ended: Array  # [B] bool, True = stopped by itself with eos inside T


@struct.dataclass
class Experience:
    """A rollout with everything that PPO needs to learn from it; [B, T] f32 each, 0 where not
    rollout.mask.
    """

    rollout: Rollout
    value: Array  # critic's estimate *before* token t
    advantage: Array  # whitened over the whole batch
    target: Array  # value target: unwhitened advantage + value


@struct.dataclass
class TrainState:
    """All that a run must remember.

    The data position is `step`: the batch of a step is a pure function of seed and step.
    """

    # [] int32, completed steps (PPO: iterations); ~step, which is negative, after one that was not
    # finite
    step: jax.Array
    params: Params  # PPO: {"policy": ..., "value": ...}
    opt_state: Any  # optax state of `params`
    ema: Params | None  # exponential moving average of the (policy) params
    # [] typed PRNG key, the root of the stage; a step folds in its number, never advances it
    key: jax.Array
    kl_coef: jax.Array  # [] f32, coefficient of the KL penalty (PPO; 0 elsewhere)
