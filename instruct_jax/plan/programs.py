"""The programs of a config with the shapes that a run gives them; no array is made."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instruct_jax import optim, sharding
from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.steps import (
    build_models,
    compile_experience,
    compile_rollout,
    compile_supervised,
    compile_update,
    parted,
    ppo_optimizers,
    ppo_state,
)
from instruct_jax.config import MESH, OptimizerConfig
from instruct_jax.models.attention import make_attention
from instruct_jax.models.lm import LanguageModel, parameter_count
from instruct_jax.models.lora import scalar_base
from instruct_jax.plan.costs import Costs, Work
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch, TrainState
from instruct_jax.stages import pretrain, reward_model
from instruct_jax.stages.gradient import LossFn
from instruct_jax.stages.ppo import PpoConfig

Trees = Mapping[str, Any]  # name -> tree of jax.ShapeDtypeStruct with shardings


class Program(NamedTuple):
    """One jitted function, and what lies on the devices while it runs."""

    stage: str
    step: str
    run: Any  # of jax.jit
    arguments: tuple[Any, ...]
    here: Trees  # the large ones among its arguments
    elsewhere: Trees  # no arguments, but on the devices meanwhile
    parameters: int  # of the models that it reads
    work: Work


class Planner:
    """The programs of one config on these devices."""

    def __init__(self, config: RunConfig, devices: Sequence[Any]):
        self.config, self.models = config, build_models(config, devices)
        self.layout = self.models.training
        self.policy_weights, self.scalar_weights = (
            jax.eval_shape(model.init, jax.random.key(0))
            for model in (self.models.policy, self.models.scalar)
        )
        # as pretraining has them
        self.plain = jax.eval_shape(self.models.policy._replace(lora=None).init, jax.random.key(0))
        frozen, self.policy_trained = parted(self.policy_weights, config)
        self.scalar_trained = parted(self.scalar_weights, config)[1]
        base = sharding.abstract(frozen, self.layout)
        self.base = _typed(base, jax.eval_shape(self.models.policy.cast, base))
        self.policy_size, self.scalar_size = (
            parameter_count(self.policy_weights),
            parameter_count(self.scalar_weights),
        )
        self.policy_costs, self.scalar_costs = (
            _costs(self.models.policy),
            _costs(self.models.scalar.lm),
        )

    def programs(self, stages: Sequence[str]) -> Iterator[Program]:
        """Of the stages that have steps of their own, in the order in which they run."""
        config = self.config
        for stage, asked in {"pretrain": config.pretrain, **config.sfts}.items():
            if stage in stages:
                weights, base = (
                    (self.plain, {}) if stage == "pretrain" else (self.policy_trained, self.base)
                )
                work = self.policy_costs.training(
                    asked.batch, asked.length, asked.batch * asked.length, asked.micro_batches
                )
                loss, batch = (
                    pretrain.make_loss(self.models.policy, stage, dropout=asked.dropout),
                    self.texts(asked.batch, asked.length),
                )
                yield self._supervised(
                    stage, loss, asked.optimizer, weights, base, batch, asked.micro_batches, work
                )
        if "reward" in stages:
            asked, k, length = (
                config.reward,
                config.compare.max_completions,
                config.text.max_prompt + config.text.max_completion,
            )
            work = self.scalar_costs.training(asked.batch * k, length, 0, asked.micro_batches)
            loss, batch = (
                reward_model.make_loss(self.models.scalar),
                self.rankings(asked.batch, k, length),
            )
            weights, base = self.scalar_trained, scalar_base(self.base)
            yield self._supervised(
                "reward", loss, asked.optimizer, weights, base, batch, asked.micro_batches, work
            )
        for stage, ppo in config.rl.items():
            if stage in stages:
                yield from self._ppo(stage, ppo)

    def _supervised(
        self,
        stage: str,
        loss: LossFn,
        optimizer: OptimizerConfig,
        weights: Any,
        base: Any,
        batch: Any,
        parts: int,
        work: Work,
    ) -> Program:
        tx, size = optim.make_optimizer(optimizer, 1), parameter_count(weights)
        state = self.state(weights, init_optimizer=tx.init)
        run = compile_supervised(self.models, loss, tx, state, base, parts)
        work += self.policy_costs.learning(size, parts)
        return Program(
            stage,
            "step",
            run,
            (state, base, batch),
            _parts(state) | _frozen(base),
            {},
            size + parameter_count(base),
            work,
        )

    def _ppo(self, stage: str, ppo: PpoConfig) -> Iterator[Program]:
        rows, prompt, response = ppo.batch, self.config.text.max_prompt, ppo.sampler.max_tokens
        policy, scalar, sizes = (
            self.policy_costs,
            self.scalar_costs,
            (self.policy_size, self.scalar_size),
        )
        optimizers = ppo_optimizers(ppo)
        trained = {"policy": self.policy_trained, "value": self.scalar_trained}
        state = self.state(trained, **ppo_state(ppo, optimizers))
        reference, reward = (
            sharding.abstract(weights, self.layout) for weights in trained.values()
        )
        frozen = {"base": self.base, "reference": reference, "reward": reward}
        others = {"reference": reference, "reward model": reward} | _frozen(self.base)

        sample = compile_rollout(self.models, ppo.sampler, eos=0, pad=1)
        weights, prompts = self._sampled(), self.prompts(rows, prompt)
        work = policy.forward(rows, prompt, rows) + policy.decoding(rows, prompt, response)
        asked = (weights, prompts, self.whole(jax.eval_shape(lambda: jax.random.key(0))))
        yield Program(
            stage,
            "rollout",
            sample,
            asked,
            {"policy for sampling": weights},
            _parts(state) | others,
            sizes[0],
            work,
        )

        look = compile_experience(self.models, ppo)
        drawn = self.split(jax.eval_shape(sample, *asked))
        asked = (state.params, frozen, drawn, state.kl_coef)
        work = scalar.forward(rows, prompt + response) + policy.forward(
            rows, prompt + response, rows * response
        )
        held = _parts(state)
        here = {name: held.pop(name) for name in list(held) if "weights" in name} | others
        yield Program(stage, "experience", look, asked, here, held, 2 * sum(sizes), work + work)

        made, seen = jax.eval_shape(look, *asked)
        ptx = self.texts(ppo.ptx_batch, ppo.ptx_length, ppo.updates) if ppo.ptx_batch else None
        again, parts = ppo.epochs * rows, ppo.updates * ppo.micro_batches
        work = policy.training(again, prompt + response, again * response, parts) + scalar.training(
            again, prompt + response, 0, parts
        )
        if ptx is not None:
            texts = ppo.updates * ppo.ptx_batch
            work += policy.training(texts, ppo.ptx_length, texts * ppo.ptx_length, parts)
        for weights in trained.values():
            work += policy.learning(parameter_count(weights), ppo.micro_batches, ppo.updates)
        update, base = (
            compile_update(self.models, ppo, optimizers, state, self.base),
            _frozen(self.base),
        )
        asked = (state, self.base, self.split(made), ptx, self.whole(seen))
        others = {name: tree for name, tree in others.items() if name not in base}
        yield Program(
            stage, "update", update, asked, _parts(state) | base, others, sum(sizes), work
        )

    # --- stand-ins for what a run puts on the mesh ---

    def state(self, weights: Any, **options: Any) -> TrainState:
        new = functools.partial(sharding.new_state, **options)
        return sharding.abstract(
            jax.eval_shape(lambda params, key: new(params, key=key), weights, jax.random.key(0)),
            self.layout,
        )

    def _sampled(self) -> Any:
        """The policy's weights as Workspace.for_sampling makes them."""
        weights = sharding.abstract(self.policy_weights, self.models.sampling)
        return _typed(weights, jax.eval_shape(self.models.policy.cast, weights))

    def whole(self, tree: Any) -> Any:
        """Arrays of which every device has a copy."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.sharding()), tree
        )

    def split(self, tree: Any, *, axis: int = 0) -> Any:
        """Arrays that are split along one axis, as batches are."""
        where = self.layout.sharding(*(None,) * axis, "batch")
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def texts(self, rows: int, length: int, updates: int | None = None) -> TokenBatch:
        """[rows, length], or [updates, rows, length]"""
        shape = (rows, length) if updates is None else (updates, rows, length)
        return self.split(
            TokenBatch(_ints(*shape), _ints(*shape), _floats(*shape)), axis=len(shape) - 2
        )

    def rankings(self, rows: int, k: int, length: int) -> RankingBatch:
        return self.split(
            RankingBatch(
                _ints(rows, k, length), _bools(rows, k, length), _ints(rows, k), _floats(rows)
            )
        )

    def prompts(self, rows: int, length: int) -> PromptBatch:
        return self.split(PromptBatch(_ints(rows, length), _bools(rows, length)))


def _typed(tree: Any, like: Any) -> Any:
    """The tree with the types of the other one."""
    return jax.tree.map(
        lambda x, new: jax.ShapeDtypeStruct(x.shape, new.dtype, sharding=x.sharding), tree, like
    )


def _frozen(base: Any) -> dict[str, Any]:
    return {"base": base} if base else {}


def _shape(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


_ints, _bools, _floats = (
    functools.partial(_shape, dtype) for dtype in (jnp.int32, jnp.bool, jnp.float32)
)


def _parts(state: TrainState) -> dict[str, Any]:
    """What is large in a state, by name."""
    parts: dict[str, Any] = {}
    for what, tree in (("weights", state.params), ("Adam", state.opt_state)):
        parts |= (
            {f"{what} of {model}": part for model, part in tree.items()}
            if isinstance(tree, dict) and "policy" in tree
            else {what: tree}
        )
    return parts | ({} if state.ema is None else {"average of the policy": state.ema})


def _costs(lm: LanguageModel) -> Costs:
    assert lm.layout is not None
    return Costs(
        lm.config,
        {axis: lm.layout.mesh.shape[axis] for axis in MESH},
        make_attention(lm.config, lm.layout).kind != "xla",
    )
