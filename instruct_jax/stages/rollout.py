"""The jitted sampler: one prefill, a decoding loop with a KV cache, early exit when every row has
stopped.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from instruct_jax.errors import require
from instruct_jax.models.lm import LanguageModel
from instruct_jax.ops import sampling
from instruct_jax.records import Params, PromptBatch, Rollout


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """temperature 0 is greedy decoding; top_k 0 and top_p 1 do not truncate."""

    max_tokens: int = 64  # T, eos included
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        require(self.max_tokens >= 1, f"max_tokens={self.max_tokens} must be at least 1")
        require(
            self.temperature >= 0,
            f"temperature={self.temperature} must not be negative; 0 is greedy decoding",
        )
        require(self.top_k >= 0, f"top_k={self.top_k} must not be negative; 0 keeps all tokens")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must lie in (0, 1]; 1 keeps all tokens")

    @property
    def truncates(self) -> bool:
        """True where some tokens can never be sampled although the model gives them probability."""
        return self.top_k > 0 or self.top_p < 1 or self.temperature == 0


def make_rollout(
    lm: LanguageModel,
    config: SamplerConfig,
    *,
    eos: Sequence[int],
    pad: int,
    samples: int = 1,
) -> Callable[[Params, PromptBatch, jax.Array], Rollout]:
    """rollout(params, prompts, key) -> `samples` responses per prompt, in order: row b * samples +
    i is the i-th response to prompt b.

    Each of the ids `eos` ends a response.  The key is consumed.  All samples of a prompt share its
    prefill.
    """
    limit = config.max_tokens
    ends = jnp.array(eos)

    def is_end(token):
        return (token[:, None] == ends[None]).any(axis=1)

    def choose(params, hidden, key, done):
        logp = sampling.filter_logits(
            lm.logits(params, hidden),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )
        drawn = sampling.draw(key, logp)
        token = jnp.where(done, pad, drawn)
        chosen = jnp.take_along_axis(logp, token[:, None], axis=1)[:, 0]
        return token, jnp.where(done, 0.0, chosen)

    def rollout(params: Params, prompts: PromptBatch, key: jax.Array) -> Rollout:
        length = prompts.tokens.shape[1] + limit
        hidden, cache = lm.prefill(params, prompts, length)
        by_prompt = prompts, hidden, cache.k, cache.v, cache.mask
        by_row = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), by_prompt)
        prompts, hidden, k, v, mask = by_row
        cache = dataclasses.replace(cache, k=k, v=v, mask=mask)
        weights = lm.unstacked(params)
        rows = hidden.shape[0]

        def write(t, token, logp, done, tokens, logps, mask):
            def put(x, column):
                return jax.lax.dynamic_update_slice(x, column[:, None], (0, t))

            tokens = put(tokens, token)
            logps = put(logps, logp)
            mask = put(mask, ~done)
            return tokens, logps, mask

        def unfinished(carry):
            t, _, done, _, _ = carry
            return (t < limit) & ~done.all()

        def extend(carry):
            t, token, done, cache, written = carry
            hidden, cache = lm.decode(weights, cache, token)
            key_step = jax.random.fold_in(key, t)
            token, logp = choose(weights, hidden, key_step, done)
            written = write(t, token, logp, done, *written)
            return t + 1, token, done | is_end(token), cache, written

        done = jnp.zeros(rows, bool)
        key_step = jax.random.fold_in(key, 0)
        token, logp = choose(weights, hidden, key_step, done)
        blank = (
            jnp.full((rows, limit), pad, jnp.int32),
            jnp.zeros((rows, limit), jnp.float32),
            jnp.zeros((rows, limit), bool),
        )
        start = (
            jnp.ones((), jnp.int32),
            token,
            is_end(token),
            cache,
            write(0, token, logp, done, *blank),
        )
        _, _, ended, _, written = jax.lax.while_loop(unfinished, extend, start)
        tokens, logps, mask = written
        return Rollout(
            prompt=prompts.tokens,
            prompt_mask=prompts.mask,
            tokens=tokens,
            mask=mask,
            logp=logps,
            ended=ended,
        )

    return rollout
