"""The programs of an iteration of PPO on abstract arrays, for `plan`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from instruct_jax.chain import programs
from instruct_jax.chain.context import Stage
from instruct_jax.chain.programs import Adam, Learns, Operation, Program, Reads, Samples
from instruct_jax.models.lm import parameter_count
from instruct_jax.models.lora import join
from instruct_jax.records import Experience, Metrics, Rollout

if TYPE_CHECKING:
    from instruct_jax.chain.ppo import Ppo

REWARD = ("reward model", "base of the reward model")
BASES = ("base", "base of the value function")


def iteration(stage: Stage, ready: "Ppo") -> list[Program]:
    """Rollout, experience and update, in their order; before the experience the scores, where the
    reward model reads text.
    """
    nets = ready.nets
    rollout = _rollout(stage, ready)
    sampled = jax.eval_shape(rollout.run, *rollout.arguments)
    sampled = programs.split(nets.policy.models.sampling, sampled)
    experience = _experience(stage, ready, sampled)
    made, seen = jax.eval_shape(experience.run, *experience.arguments)
    layout = nets.policy.layout
    update = _update(stage, ready, programs.split(layout, made), programs.replicated(layout, seen))
    if nets.reads_text:
        return [rollout, _scores(stage, ready), experience, update]
    return [rollout, experience, update]


def _rollout(stage: Stage, ready: "Ppo") -> Program:
    cfg, net = stage.settings, ready.nets.policy
    rows, prompt, reply = cfg.batch, stage.run.config.text.max_prompt, cfg.sampler.max_tokens
    weights = net.for_sampling(join(ready.bases["policy"], ready.state.params["policy"]))
    key = programs.replicated(net.layout, ready.state.key)
    arguments = (weights, programs.prompts(net.layout, rows, prompt), key)
    operations = (
        Reads(net.policy, rows, prompt, positions=rows),
        Samples(net.policy, rows, prompt, reply),
    )
    size = parameter_count(net.boxed_policy)
    program = _program(stage, ready, "rollout", ready.rollout, arguments, (), size, operations)
    return program._replace(here={"policy for sampling": weights})


def _scores(stage: Stage, ready: "Ppo") -> Program:
    """One call of the reward model, on rows as long as those of the policy."""
    net = ready.nets.reward
    length = stage.run.config.text.max_prompt + stage.settings.sampler.max_tokens
    rows = programs.prompts(net.layout, net.sample_batch, length)
    params = join(ready.frozen["reward_base"], ready.frozen["reward"])
    arguments = (params, rows.tokens, rows.mask)
    operations = (Reads(net.policy, net.sample_batch, length),)
    size = parameter_count(net.boxed_scalar)
    return _program(stage, ready, "scores", net.score, arguments, REWARD, size, operations)


def _experience(stage: Stage, ready: "Ppo", sampled: Rollout) -> Program:
    nets, state = ready.nets, ready.state
    rows, reply = sampled.tokens.shape
    length = sampled.prompt.shape[1] + reply
    policy = Reads(nets.policy.policy, rows, length, positions=rows * reply)
    operations = [policy, policy, Reads(nets.value.policy, rows, length)]  # reference, too
    here = ["weights of policy", "weights of value", "reference", *BASES]
    size = 2 * parameter_count(nets.policy.boxed_policy)
    size += parameter_count(nets.value.boxed_scalar)
    if nets.reads_text:
        scores = programs.scores(nets.policy.layout, rows)
    else:
        scores = None
        operations.append(Reads(nets.reward.policy, rows, length))
        here += REWARD
        size += parameter_count(nets.reward.boxed_scalar)
    arguments = (state.params, ready.frozen, sampled, scores, state.kl_coef)
    return _program(stage, ready, "experience", ready.experience, arguments, here, size, operations)


def _update(stage: Stage, ready: "Ppo", made: Experience, seen: Metrics) -> Program:
    cfg, nets, state = stage.settings, ready.nets, ready.state
    policy, value = nets.policy.policy, nets.value.policy
    rows, reply = made.value.shape
    length = made.rollout.prompt.shape[1] + reply
    again, parts = cfg.epochs * rows, cfg.updates * cfg.micro_batches
    operations = [
        Learns(policy, again, length, positions=again * reply, parts=parts),
        Learns(value, again, length, parts=parts),
    ]
    ptx = None
    if cfg.ptx_batch:
        ptx = programs.texts(nets.policy.layout, cfg.updates, cfg.ptx_batch, cfg.ptx_length)
        texts = cfg.updates * cfg.ptx_batch
        positions = texts * cfg.ptx_length
        operations.append(Learns(policy, texts, cfg.ptx_length, positions, parts))
    for name, model in (("policy", policy), ("value", value)):
        trained = parameter_count(state.params[name])
        operations.append(Adam(model, trained, cfg.micro_batches, cfg.updates))
    size = parameter_count(nets.policy.boxed_policy) + parameter_count(nets.value.boxed_scalar)
    here = [*programs.large_parts(state), *BASES]
    arguments = (state, ready.bases, made, ptx, seen)
    return _program(stage, ready, "update", ready.update, arguments, here, size, operations)


def _program(
    stage: Stage,
    ready: "Ppo",
    step: str,
    run: Any,
    arguments: tuple[Any, ...],
    here: Sequence[str],
    parameters: int,
    operations: Sequence[Operation],
) -> Program:
    """`here` names what is among its arguments; all else on the devices waits."""
    frozen = ready.frozen
    held = programs.large_parts(ready.state) | {
        "reference": frozen["reference"],
        "reward model": frozen["reward"],
        "base": frozen["policy_base"],
        "base of the value function": frozen["value_base"],
        "base of the reward model": frozen["reward_base"],
    }
    return Program(
        stage.name,
        step,
        run,
        arguments,
        here={name: held[name] for name in here},
        elsewhere={name: tree for name, tree in held.items() if name not in here},
        parameters=parameters,
        operations=tuple(operations),
    )
