"""What a stage of kind ppo computes with, and the programs of an iteration on abstract arrays, for
`plan`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from instruct_jax.chain import networks, programs
from instruct_jax.chain.context import Stage
from instruct_jax.chain.networks import Network
from instruct_jax.chain.programs import Adam, Learns, Operation, Program, Reads, Samples
from instruct_jax.models.lm import parameter_count
from instruct_jax.models.lora import merge
from instruct_jax.records import Experience, Metrics, Params, Rollout, TrainState

# names of what lies on the devices
BASES = ("base", "base of the value function")
REWARD = ("reward model", "base of the reward model")


class PpoNetworks(NamedTuple):
    """The networks of a PPO stage, which may be of several shapes."""

    policy: Network  # and reference
    value: Network
    reward: Network

    @property
    def reads_text(self) -> bool:
        """Does the reward model read other ids, so that text is decoded and encoded again?"""
        return not networks.same_ids(self.reward, self.policy)


class Ppo(NamedTuple):
    """A PPO stage before its first iteration; of an abstract run all arrays are shapes."""

    nets: PpoNetworks
    state: TrainState
    frozen: Params  # policy_base, value_base, reward_base, reference, reward
    rollout: Callable  # (weights for sampling, prompts, key) -> Rollout
    experience: (
        Callable  # (params, frozen, rollout, scores or None, kl_coef) -> Experience, metrics
    )
    update: Callable  # (state, bases, experience, ptx rows, metrics) -> (state, all metrics)

    @property
    def bases(self) -> Params:
        return {name: self.frozen[f"{name}_base"] for name in ("policy", "value")}


class Iteration:
    """Rollout, experience and update; the scores too, where the reward model reads text."""

    def __init__(self, stage: Stage, ready: Ppo):
        self.stage = stage
        self.ready = ready
        self.cfg = stage.settings
        self.state = ready.state
        self.prompt = stage.run.config.text.max_prompt
        self.reply = self.cfg.sampler.max_tokens
        self.length = self.prompt + self.reply

        nets = self.nets = ready.nets
        self.layout = nets.policy.layout
        self.policy = nets.policy.policy
        self.value = nets.value.policy
        self.policy_size = parameter_count(nets.policy.boxed_policy)
        self.value_size = parameter_count(nets.value.boxed_scalar)
        self.reward_size = parameter_count(nets.reward.boxed_scalar)

        frozen = ready.frozen
        self.state_parts = programs.large_parts(ready.state)
        self.held = self.state_parts | {
            "reference": frozen["reference"],
            "reward model": frozen["reward"],
            "base": frozen["policy_base"],
            "base of the value function": frozen["value_base"],
            "base of the reward model": frozen["reward_base"],
        }

    def programs(self) -> list[Program]:
        """In the order in which they run."""
        rollout = self._rollout()
        shapes = jax.eval_shape(rollout.run, *rollout.arguments)
        sampled = programs.split(self.nets.policy.models.sampling, shapes)
        experience = self._experience(sampled)
        shapes, metrics = jax.eval_shape(experience.run, *experience.arguments)
        made = programs.split(self.layout, shapes)
        update = self._update(made, programs.replicated(self.layout, metrics))
        if self.nets.reads_text:
            return [rollout, self._scores(), experience, update]
        return [rollout, experience, update]

    def _rollout(self) -> Program:
        rows, net = self.cfg.batch, self.nets.policy
        whole = merge(self.ready.bases["policy"], self.state.params["policy"])
        weights = net.for_sampling(whole)
        prompts = programs.prompts(self.layout, rows, self.prompt)
        key = programs.replicated(self.layout, self.state.key)
        program = self._program(
            "rollout",
            self.ready.rollout,
            (weights, prompts, key),
            here=(),
            parameters=self.policy_size,
            operations=(
                Reads(self.policy, rows, self.prompt, positions=rows),
                Samples(self.policy, rows, self.prompt, self.reply),
            ),
        )
        return program._replace(here={"policy for sampling": weights})

    def _scores(self) -> Program:
        """One call of the reward model, on rows as long as those of the policy."""
        net, frozen = self.nets.reward, self.ready.frozen
        rows = programs.prompts(net.layout, net.sample_batch, self.length)
        params = merge(frozen["reward_base"], frozen["reward"])
        return self._program(
            "scores",
            net.score,
            (params, rows.tokens, rows.mask),
            here=REWARD,
            parameters=self.reward_size,
            operations=(Reads(net.policy, net.sample_batch, self.length),),
        )

    def _experience(self, sampled: Rollout) -> Program:
        rows = self.cfg.batch
        state = self.state
        policy = Reads(self.policy, rows, self.length, positions=rows * self.reply)
        value = Reads(self.value, rows, self.length)
        reference = policy
        operations = [policy, reference, value]
        parameters = 2 * self.policy_size + self.value_size
        here = ["weights of policy", "weights of value", "reference", *BASES]
        if self.nets.reads_text:
            scores = programs.scores(self.layout, rows)
        else:
            scores = None
            operations.append(Reads(self.nets.reward.policy, rows, self.length))
            parameters += self.reward_size
            here += REWARD
        return self._program(
            "experience",
            self.ready.experience,
            (state.params, self.ready.frozen, sampled, scores, state.kl_coef),
            here=here,
            parameters=parameters,
            operations=operations,
        )

    def _update(self, made: Experience, metrics: Metrics) -> Program:
        cfg = self.cfg
        ptx = None
        rows = cfg.epochs * cfg.batch
        parts = cfg.updates * cfg.micro_batches
        operations: list[Operation] = [
            Learns(self.policy, rows, self.length, positions=rows * self.reply, parts=parts),
            Learns(self.value, rows, self.length, parts=parts),
        ]
        if cfg.ptx_batch:
            ptx = programs.texts(self.layout, cfg.updates, cfg.ptx_batch, cfg.ptx_length)
            rows = cfg.updates * cfg.ptx_batch
            length = cfg.ptx_length
            operations.append(Learns(self.policy, rows, length, rows * length, parts))
        for name, model in (("policy", self.policy), ("value", self.value)):
            trained = parameter_count(self.state.params[name])
            operations.append(Adam(model, trained, cfg.micro_batches, cfg.updates))
        return self._program(
            "update",
            self.ready.update,
            (self.state, self.ready.bases, made, ptx, metrics),
            here=[*self.state_parts, *BASES],
            parameters=self.policy_size + self.value_size,
            operations=operations,
        )

    def _program(
        self,
        step: str,
        run: Any,
        arguments: tuple[Any, ...],
        *,
        here: Iterable[str],
        parameters: int,
        operations: Iterable[Operation],
    ) -> Program:
        """`here` names what is among the arguments; all else on the devices waits."""
        elsewhere = dict(self.held)
        named = {name: elsewhere.pop(name) for name in here}
        return Program(
            self.stage.name,
            step,
            run,
            arguments,
            here=named,
            elsewhere=elsewhere,
            parameters=parameters,
            operations=tuple(operations),
        )
