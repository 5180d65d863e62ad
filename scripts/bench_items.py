"""The work that bench.py times: models and steps of the project at fixed sizes, each item as a list
of phases.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instruct_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.optim import make_optimizer
from instruct_jax.records import Metrics, PromptBatch, RankingBatch, TokenBatch, TrainState
from instruct_jax.sharding import Layout, compile_step, create_sharded, create_state, make_mesh
from instruct_jax.stages import ppo, pretrain, reward_model
from instruct_jax.stages.experience import make_experience
from instruct_jax.stages.gradient import LossFn, make_step
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

ADAM = OptimizerConfig(learning_rate=1e-5, schedule="constant")
NEVER = -1  # an eos that no model says


class Size(NamedTuple):
    """A GPT-2 model and the work at its size."""

    model: ModelConfig
    rows: int  # of an SFT batch, model.context tokens each; half as many pairs in a reward batch
    sample: tuple[int, int, int]  # rows, prompt length, response length
    ppo: tuple[int, int, int]  # likewise; four minibatches
    micro_batches: dict[str, int]  # what is fast on a CPU


SIZES = {
    "tiny": Size(
        ModelConfig(vocab_size=1024, context=128, width=128, layers=4, heads=4),
        64,
        (64, 32, 64),
        (128, 32, 32),
        {"sft": 32, "reward": 16, "ppo": 4},
    ),
    "small": Size(
        ModelConfig(vocab_size=8192, context=256, width=512, layers=8, heads=8),
        8,
        (64, 32, 64),
        (16, 64, 64),
        {"sft": 4, "reward": 4, "ppo": 2},
    ),
    "1.3b": Size(
        ModelConfig(vocab_size=50304, context=2048, width=2048, layers=24, heads=16, remat="dots"),
        8,
        (64, 512, 128),
        (64, 512, 128),
        {},
    ),
}


class Work(NamedTuple):
    """An item, ready to run: phases in order, each takes what the one before gave, the first what
    the last gave.
    """

    start: Any
    phases: dict[str, Callable[[Any], Any]]
    flops: Mapping[str, float]
    settings: dict[str, Any]


class Bench:
    """The models at one size, and the items by name."""

    def __init__(self, size: Size, micro_batches: int | None, epochs: int):
        self.size, self.config, self.micro_batches, self.epochs = (
            size,
            size.model,
            micro_batches,
            epochs,
        )
        self.layout = Layout(make_mesh(MeshConfig()))
        self.split = self.layout.sharding("batch")
        self.lm = LanguageModel(self.config, self.layout)
        self.scalar = ScalarModel(self.lm)
        self.blocks, self.head = (
            12 * self.config.layers * self.config.width**2,
            self.config.vocab_size * self.config.width,
        )

    def parts(self, item: str) -> int:
        return self.micro_batches or (
            self.size.micro_batches.get(item, 1) if jax.default_backend() == "cpu" else 1
        )

    def tokens(self, *shape: int) -> np.ndarray:
        return np.random.default_rng(0).integers(4, self.config.vocab_size, shape).astype(np.int32)

    def prompts(self, rows: int, length: int) -> PromptBatch:
        return jax.device_put(
            PromptBatch(self.tokens(rows, length), np.ones((rows, length), bool)), self.split
        )

    def born(self, model: LanguageModel | ScalarModel) -> tuple[Any, Any]:
        key = jax.random.key(0)
        return jax.eval_shape(model.init, key), create_sharded(model.init, self.layout, key)

    def supervised(
        self,
        item: str,
        model: LanguageModel | ScalarModel,
        loss_fn: LossFn,
        batch: Any,
        flops: float,
    ) -> Work:
        optimizer = make_optimizer(ADAM, 1000)
        state = create_state(self.layout, *self.born(model), optimizer.init, jax.random.key(1))
        step = compile_step(
            make_step(loss_fn, optimizer, micro_batches=self.parts(item)), self.layout, state
        )
        return Work(
            state,
            {"step": lambda state: checked(*step(state, batch))},
            {"step": flops},
            {"micro_batches": self.parts(item)},
        )

    def sft(self) -> Work:
        shape = self.size.rows, self.config.context
        weight = np.full(shape, 1 / (shape[0] * (shape[1] - 1)), np.float32)
        weight[:, 0] = 0
        batch = TokenBatch(self.tokens(*shape), np.ones(shape, np.int32), weight)
        return self.supervised(
            "sft",
            self.lm,
            pretrain.make_loss(self.lm, "sft"),
            batch,
            6 * (self.blocks + self.head) * math.prod(shape),
        )

    def reward(self) -> Work:
        pairs = self.size.rows // 2
        shape, ranks = (
            (pairs, 2, self.config.context),
            np.tile(np.array([1, 2], np.int32), (pairs, 1)),
        )
        batch = RankingBatch(
            self.tokens(*shape), np.ones(shape, bool), ranks, np.full(pairs, 1 / pairs, np.float32)
        )
        return self.supervised(
            "reward",
            self.scalar,
            reward_model.make_loss(self.scalar),
            batch,
            6 * self.blocks * math.prod(shape),
        )

    def sample(self) -> Work:
        rows, prompt, limit = self.size.sample
        prompts, params, keys = (
            self.prompts(rows, prompt),
            self.born(self.lm)[1],
            iter(jax.random.split(jax.random.key(2), 1000)),
        )
        run = jax.jit(
            make_rollout(self.lm, SamplerConfig(limit), eos=(NEVER,), pad=0),
            out_shardings=self.split,
        )
        flops = {"sample": 2 * rows * (self.blocks * (prompt + limit) + self.head * limit)}
        settings = {"rows": rows, "prompt": prompt, "response": limit}
        return Work(None, {"sample": lambda _: run(params, prompts, next(keys))}, flops, settings)

    def decode_bytes(self) -> float:
        """What `sample` must read: all weights and, on average, the prompt and half of the response
        in the cache, at every token.
        """
        rows, prompt, limit = self.size.sample
        cache = (
            2
            * self.config.layers
            * rows
            * (prompt + limit / 2)
            * self.config.groups
            * self.config.head_size
        )
        return (self.blocks + self.head + cache) * limit * jnp.dtype(self.config.dtype).itemsize

    def ppo(self) -> Work:
        (rows, prompt, limit), micro = self.size.ppo, self.parts("ppo")
        config = ppo.PpoConfig(
            batch=rows,
            minibatch=rows // 4,
            epochs=self.epochs,
            micro_batches=micro,
            optimizer=ADAM,
            sampler=SamplerConfig(limit),
        )
        adam = make_optimizer(ADAM, 1000)
        names, models = ("policy", "value"), (self.born(self.lm), self.born(self.scalar))
        boxed, params = (dict(zip(names, x, strict=True)) for x in zip(*models, strict=True))
        init = lambda params: {name: adam.init(params[name]) for name in names}  # noqa: E731
        state = create_state(
            self.layout,
            boxed,
            params,
            init,
            jax.random.key(1),
            averaged=lambda p: p["policy"],
            kl_coef=config.kl_coef,
        )
        frozen, prompts = (
            {"reference": params["policy"], "reward": params["value"]},
            self.prompts(rows, prompt),
        )

        sampler = jax.jit(
            make_rollout(self.lm, config.sampler, eos=(NEVER,), pad=0), out_shardings=self.split
        )
        judge = make_experience(
            self.lm, self.scalar, self.scalar, config.experience, temperature=1.0, parts=4 * micro
        )
        judge = jax.jit(judge, out_shardings=(self.split, self.layout.sharding()))
        update = ppo.make_update(self.lm, self.scalar, config, adam, adam)
        learn = compile_step(lambda state, made: update(state, made, None), self.layout, state)

        def rollout(state: TrainState):
            return state, sampler(
                state.params["policy"], prompts, ppo.iteration_keys(state)["rollout"]
            )

        def experience(carry):
            return carry[0], checked(*judge(carry[0].params, frozen, carry[1], carry[0].kl_coef))

        tokens, answers = rows * (prompt + limit), rows * limit
        flops = {
            "rollout": 2 * self.blocks * tokens + 2 * self.head * answers,
            "experience": 2 * (4 * self.blocks * tokens + 2 * self.head * answers),
            "update": 6 * self.epochs * (2 * self.blocks * tokens + self.head * answers),
        }
        settings = {
            "rows": rows,
            "prompt": prompt,
            "response": limit,
            "updates": config.updates,
            "micro_batches": micro,
        }
        return Work(
            state,
            {"rollout": rollout, "experience": experience, "update": lambda c: checked(*learn(*c))},
            flops,
            settings,
        )


def checked(result: Any, metrics: Metrics) -> Any:
    """The result, once its metrics have reached the host and are finite, as the training loop has
    it.
    """
    if bad := [name for name, value in jax.device_get(metrics).items() if not np.isfinite(value)]:
        raise FloatingPointError(f"{bad} not finite")
    return result
