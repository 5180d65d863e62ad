"""Kind ppo: PPO and PPO-ptx against a reward model, in three jitted functions: rollout, experience,
update.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax

from instruct_jax import optim, sharding
from instruct_jax.chain import networks, parameters, ppo_programs, supervised, texts
from instruct_jax.chain.context import Stage
from instruct_jax.chain.kind import Curve, Kind, Line
from instruct_jax.chain.networks import Network
from instruct_jax.chain.ppo_programs import Ppo, PpoNetworks
from instruct_jax.chain.settings import Leaves, RunConfig, StartedSettings
from instruct_jax.chain.spec import Checkpoint, write_spec
from instruct_jax.data import batches
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import fingerprint
from instruct_jax.errors import require
from instruct_jax.models.lora import backbone_of, merge, scalar_base
from instruct_jax.records import (
    Experience,
    Metrics,
    Params,
    PromptBatch,
    Rollout,
    TokenBatch,
    TrainState,
)
from instruct_jax.runtime.folders import append_row
from instruct_jax.runtime.hosts import is_main
from instruct_jax.runtime.loop import Training, train
from instruct_jax.runtime.metrics import cut_after
from instruct_jax.stages import ppo
from instruct_jax.stages.experience import make_experience, make_experience_of_scores

Optimizers = tuple[optax.GradientTransformation, optax.GradientTransformation]
PpoBatch = tuple[PromptBatch, TokenBatch | None]  # prompts, and pretraining rows of PPO-ptx


@dataclasses.dataclass(frozen=True)
class PpoStage(ppo.PpoConfig, StartedSettings):
    """Settings of a stage of kind ppo.  Its KL is taken to `start`."""

    leaves: ClassVar[Leaves] = "policy"

    # a stage of kind reward, RUN:STAGE, or a folder for sequence classification, which may have
    # another tokenizer
    reward: str = "reward"
    # the moving average of the policy (paper C.4) is what the stage leaves; false: the last weights
    use_ema: bool = True

    def uses(self) -> dict[str, str]:
        return {"start": self.start, "reward": self.reward}


def ppo_networks(stage: Stage) -> PpoNetworks:
    """By value_init the value function has the shape of the reward model, or of the policy."""
    policy = stage.network
    reward = stage.run.network(stage.run.spec(stage.used("reward")))
    value = reward if stage.settings.value_init == "reward" else policy
    return PpoNetworks(policy, value, reward)


def set_up(stage: Stage) -> Ppo:
    cfg = stage.settings
    run = stage.run
    nets = ppo_networks(stage)
    adapter_key = stage.key(f"{stage.name} adapters")
    start = parameters.start_params(run, nets.policy, stage.used("start"), adapter_key)
    policy_base, own_start = nets.policy.split_frozen(start)
    reward = parameters.scalar(run, stage.used("reward")).params
    reward_base, own_reward = nets.reward.split_frozen(reward)
    value_base = scalar_base(parameters.base(run, nets.value))
    trained = {"policy": own_start, "value": _first_value(stage, nets, start, own_reward)}
    optimizers = ppo_optimizers(cfg)
    state = supervised.new_state(
        run,
        nets.policy,
        {
            "policy": nets.policy.trained(nets.policy.boxed_policy),
            "value": nets.value.trained(nets.value.boxed_scalar),
        },
        trained,
        stage.key(stage.name),
        **_state_options(cfg, optimizers),
    )
    frozen = {
        "policy_base": policy_base,
        "value_base": value_base,
        "reward_base": reward_base,
        "reference": own_start,
        "reward": own_reward,
    }
    net = nets.policy
    return Ppo(
        nets,
        state,
        frozen,
        net.rollout(cfg.sampler),
        compile_experience(nets, cfg),
        compile_update(nets, cfg, optimizers, state, frozen),
    )


def _first_value(stage: Stage, nets: PpoNetworks, start: Params, reward: Params) -> Params:
    """The value function before it learns; its trained part."""
    init = stage.settings.value_init
    value = nets.value
    if init == "reward":
        return reward
    if init == "policy":
        key = stage.key("value head")
        head = stage.run.born(value.scalar.init_head, value.layout, key)
        return value.trained({"backbone": backbone_of(start), "head": head})
    key = stage.key("value weights")
    return stage.run.born(
        lambda key: value.trained(value.scalar.init(key)),
        value.layout,
        key,
    )


def ppo_optimizers(cfg: ppo.PpoConfig) -> Optimizers:
    """Of policy and value function."""
    updates = cfg.iterations * cfg.updates
    policy = optim.make_optimizer(cfg.policy_optimizer, updates)
    value = optim.make_optimizer(cfg.value_optimizer, updates)
    return policy, value


def _state_options(cfg: ppo.PpoConfig, optimizers: Optimizers) -> dict[str, Any]:
    """What sharding.new_state asks for besides parameters and key."""

    def init(params: Params) -> dict[str, Any]:
        policy, value = optimizers
        return {"policy": policy.init(params["policy"]), "value": value.init(params["value"])}

    return {
        "init_optimizer": init,
        "averaged": lambda params: params["policy"],
        "kl_coef": cfg.kl_coef,
    }


def compile_experience(nets: PpoNetworks, cfg: ppo.PpoConfig) -> Callable:
    """(params, frozen, rollout, scores, kl_coef) -> (experience, metrics).  Scores [B] are given
    where the reward model reads text, else None.

    The models read as many rows at a time as the update does.
    """
    policy = nets.policy.policy
    value = nets.value.scalar
    rows = {
        "temperature": cfg.sampler.temperature,
        "parts": cfg.batch // cfg.minibatch * cfg.micro_batches,
    }
    scoring = make_experience(policy, value, nets.reward.scalar, cfg.experience, **rows)
    scored = make_experience_of_scores(policy, value, cfg.experience, **rows)

    def on_bases(
        params: Params,
        frozen: Params,
        rollout: Rollout,
        scores: jax.Array | None,
        kl_coef: jax.Array,
    ) -> tuple[Experience, Metrics]:
        params = {
            "policy": merge(frozen["policy_base"], params["policy"]),
            "value": merge(frozen["value_base"], params["value"]),
        }
        read = {
            "reference": merge(frozen["policy_base"], frozen["reference"]),
            "reward": merge(frozen["reward_base"], frozen["reward"]),
        }
        if scores is None:
            return scoring(params, read, rollout, kl_coef)
        return scored(params, read, rollout, scores, kl_coef)

    layout = nets.policy.layout
    return jax.jit(on_bases, out_shardings=(layout.sharding("batch"), layout.sharding()))


def compile_update(
    nets: PpoNetworks, cfg: ppo.PpoConfig, optimizers: Optimizers, state: TrainState, frozen: Params
) -> Callable:
    """(state, bases, experience, ptx rows, metrics of the experience) -> (state, all metrics): beta
    adapts, then ppo.make_update.
    """
    split = nets.policy.layout.sharding

    def update(
        state: TrainState, bases: Params, made: Experience, ptx: TokenBatch | None, seen: Metrics
    ) -> tuple[TrainState, Metrics]:
        learn = ppo.make_update(
            nets.policy.policy, nets.value.scalar, cfg, *optimizers, bases=bases
        )
        state = ppo.adapt(state, seen["ppo/kl"], cfg)
        state, metrics = learn(state, made, ptx)
        return state, seen | metrics

    bases = {name: frozen[f"{name}_base"] for name in ("policy", "value")}
    return sharding.compile_step(
        update,
        nets.policy.layout,
        state,
        supervised.shardings(bases),
        split("batch"),
        split(None, "batch"),
        split(),
    )


def training(stage: Stage, phases: Path | None = None) -> Training:
    """PPO, or PPO-ptx where the settings have a ptx_coef.  How long rollout, experience and update
    took is written to `phases`.
    """
    cfg = stage.settings
    ready = set_up(stage)
    return Training(
        iteration(stage, ready, phases),
        ready.state,
        _batches(stage, ready.nets.policy),
        cfg.iterations,
        fingerprints(ready.nets),
        save_every=cfg.save_every,
        keep_every=cfg.keep_every,
        stop_when=_kl_limit(cfg.kl_budget),
        show=("ppo/score", "ppo/kl", "rollout/length"),
    )


def fingerprints(nets: PpoNetworks) -> dict[str, str]:
    """Of the policy, and of the value function where it is another model."""
    found = nets.policy.fingerprints
    value = nets.value.fingerprints
    if value["model"] != found["model"]:
        found = found | {"value_model": value["model"]}
    return found


def _batches(stage: Stage, net: Network) -> Callable[[int], PpoBatch]:
    cfg = stage.settings
    _, _, source = _prompt_source(stage, net)
    prompts_at = networks.batches_on_mesh(net, source, cfg.batch)
    if not cfg.ptx_batch:
        return lambda step: (prompts_at(step), None)
    rows = texts.rows_of(net, _ptx_texts(stage), cfg.ptx_length)
    text = batches.token_batches(rows, batch=cfg.ptx_batch, seed=stage.seed)
    wide = net.layout.sharding(None, "batch")

    def batch_at(step: int) -> PpoBatch:
        here = sharding.rows_here(wide, cfg.ptx_batch, axis=1)
        first = step * cfg.updates
        parts = [text.batch_at(first + i, here) for i in range(cfg.updates)]
        stacked = jax.tree.map(lambda *x: np.stack(x), *parts)
        return prompts_at(step), sharding.put(stacked, wide, cfg.ptx_batch, axis=1)

    return batch_at


def _prompt_source(
    stage: Stage, net: Network
) -> tuple[list[Record], list[list[int]], batches.Batches[PromptBatch]]:
    """The prompts, their ids, and batches of them."""
    records, ids = networks.encode(net, _prompts(stage))
    batch = stage.settings.batch
    source = batches.prompt_batches(ids, batch=batch, seed=stage.seed, pad=net.pad)
    return records, ids, source


def _prompts(stage: Stage) -> list:
    cfg = stage.settings
    return stage.task.prompts("ppo", cfg.iterations * cfg.batch)


def _ptx_texts(stage: Stage) -> list:
    cfg = stage.settings
    tokens_per_update = cfg.ptx_batch * cfg.ptx_length
    return texts.learned(stage, cfg.iterations * cfg.updates * tokens_per_update)


def _kl_limit(nats: float | None) -> Callable[[dict[str, float]], str | None]:
    """Also without a limit each iteration is looked at before the next one begins, which costs no
    waiting: its phases are timed.
    """

    def reason(row: dict[str, float]) -> str | None:
        if nats is None or row["ppo/kl"] <= nats:
            return None
        return f"KL {row['ppo/kl']:.2f} exceeds kl_budget={nats}"

    return reason


def iteration(
    stage: Stage, ready: Ppo, phases: Path | None
) -> Callable[[TrainState, PpoBatch], tuple[TrainState, Metrics]]:
    """(state, (prompts, ptx rows)) -> (state, metrics): three jitted functions, and before them the
    policy in the sampler's layout; timed one by one.
    """
    net, bases = ready.nets.policy, ready.bases
    score = _text_scorer(stage, ready) if ready.nets.reads_text else None

    def iterate(state: TrainState, batch: PpoBatch) -> tuple[TrainState, Metrics]:
        prompts, ptx = batch
        seconds: dict[str, float] = {}
        number = int(state.step) + 1
        key = ppo.iteration_keys(state)["rollout"]
        with _phase(seconds, "reshard"):
            whole = merge(bases["policy"], state.params["policy"])
            weights = jax.block_until_ready(net.for_sampling(whole))
        with _phase(seconds, "rollout"):
            rollout = jax.block_until_ready(ready.rollout(weights, prompts, key))
        del weights
        scores = None
        if score is not None:
            with _phase(seconds, "score"):
                scores = score(rollout, number - 1)
        with _phase(seconds, "experience"):
            made, seen = jax.block_until_ready(
                ready.experience(state.params, ready.frozen, rollout, scores, state.kl_coef)
            )
        with _phase(seconds, "update"):
            state, metrics = jax.block_until_ready(ready.update(state, bases, made, ptx, seen))
        tokens = int(rollout.mask.sum())
        if phases and is_main():
            _write_phases(phases, number, seconds, tokens)
        return state, metrics

    return iterate


def _text_scorer(stage: Stage, ready: Ppo) -> Callable[[Rollout, int], jax.Array]:
    """(rollout, iteration from 0) -> scores [B] f32 by a reward model with another tokenizer: it
    reads the records of the prompts and the text of the responses.
    """
    policy = ready.nets.policy
    reward = ready.nets.reward
    params = merge(ready.frozen["reward_base"], ready.frozen["reward"])
    records, ids, source = _prompt_source(stage, policy)

    def score(rollout: Rollout, step: int) -> jax.Array:
        whole = sharding.fetch(rollout)
        chosen = source.records_at(step)
        completions = []
        for tokens, mask, ended in zip(whole.tokens, whole.mask, whole.ended, strict=True):
            reply = tokens[mask].tolist()
            text = policy.decode(reply)
            completions.append(networks.Completion(text, reply, bool(ended), 0.0))
        rows = networks.whole_ids(
            reward,
            policy,
            [records[i] for i in chosen],
            [ids[i] for i in chosen],
            completions,
        )
        scores = networks.rewards(reward, params, rows)
        return networks.put(policy, scores)

    return score


def _write_phases(path: Path, step: int, seconds: dict[str, float], tokens: int) -> None:
    """One row for each iteration; tokens: sampled."""
    cut_after(path, step - 1)  # rows of a session that was killed before it saved
    row: dict[str, float] = {"step": step}
    for name, value in seconds.items():
        row[name] = round(value, 4)
    row["tokens"] = tokens
    row["tokens_per_second"] = round(tokens / sum(seconds.values()), 4)
    append_row(path, row)


@contextlib.contextmanager
def _phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def run(stage: Stage) -> dict[str, Any]:
    """The policy and the value function after PPO or PPO-ptx."""
    cfg = stage.settings
    ready = training(stage, stage.folder / "phases.jsonl")
    state = train(ready, stage.folder)
    part = "ema" if cfg.use_ema else "params/policy"
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name, part))
    iterations = int(state.step)
    return {"iterations": iterations, "episodes": iterations * cfg.batch}


def check(stage: Stage) -> None:
    cfg = stage.settings
    text = stage.run.config.text
    context = stage.spec.model.context
    place = f"stages.{stage.name}"
    reply = cfg.sampler.max_tokens
    require(
        text.max_prompt + reply <= context,
        f"text.max_prompt={text.max_prompt} + {place}.sampler.max_tokens={reply} exceeds"
        f" model.context={context}; lower one of them or raise model.context",
    )
    require(
        cfg.ptx_batch == 0 or cfg.ptx_length <= context,
        f"{place}.ptx_length={cfg.ptx_length} exceeds model.context={context}; lower it or raise"
        " model.context",
    )
    reward = stage.run.spec(stage.used("reward"))
    require(
        text.max_prompt + reply <= reward.model.context,
        f"text.max_prompt + {place}.sampler.max_tokens = {text.max_prompt + reply} exceeds the"
        f" context {reward.model.context} of {place}.reward={cfg.reward}; lower one of them",
    )
    own = stage.spec.tokenizer
    theirs = reward.tokenizer
    if cfg.value_init == "reward" and own != theirs:
        require(
            fingerprint(own.load()) == fingerprint(theirs.load()),
            f"{place}.value_init=reward, but {place}.reward={cfg.reward} has another tokenizer"
            f" ({theirs.place}) than the policy ({own.place}); set value_init to policy",
        )


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("prompts", "texts") if cfg.ptx_batch else ("prompts",)


def records(stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts": _prompts(stage)}
    if stage.settings.ptx_batch:
        found["texts"] = _ptx_texts(stage)
    return found


def rows(name: str, cfg: Any) -> dict[str, float]:
    found = {}
    for key in ("minibatch", "ptx_batch"):
        size = getattr(cfg, key) / cfg.micro_batches
        found[f"{name}.{key} / {name}.micro_batches"] = size
    return found


def line(stage: Stage, facts: Any) -> Line:
    cfg = stage.settings
    prompt = stage.run.config.text.max_prompt
    reply = cfg.sampler.max_tokens
    episodes = cfg.iterations * cfg.batch
    batch = f"{cfg.batch} x ({prompt} + {reply}), {cfg.updates} updates of {cfg.minibatch}"
    if cfg.ptx_batch:
        batch += f" + {cfg.updates} x {cfg.ptx_batch} x {cfg.ptx_length} of text"
    tokens = f"{episodes:,} episodes, at most {episodes * reply:,} sampled"
    return Line(f"{cfg.iterations:,}", batch, tokens)


KIND = Kind(
    settings=PpoStage,
    run=run,
    training=training,
    programs=lambda stage: ppo_programs.Iteration(stage, set_up(stage)).programs(),
    reads=reads,
    records=records,
    run_keys=("text", "round"),
    check=check,
    rows=rows,
    line=line,
    curves=(
        Curve("ppo/score", "Reward-model score of the rollouts", "score"),
        Curve("ppo/kl", "KL from the start", "nats per reply"),
        Curve("rollout/length", "Length of the rollouts", "tokens"),
        Curve("rollout/ended", "Rollouts that end by themselves", "share"),
        Curve("ptx/nll", "Pretraining loss inside PPO-ptx", "nats per token"),
        Curve("ppo/entropy", "Entropy of the policy", "nats per token"),
        Curve("ppo/reward", "Score minus the KL penalty", "reward", main=False),
        Curve("ppo/kl_coef", "KL coefficient", "β", main=False),
        Curve("policy/clip_fraction", "Share of tokens clipped", "share", main=False),
        Curve("value/loss", "Value loss", "", main=False),
        Curve(
            "ppo/explained_variance",
            "Return explained by the value function",
            "share of variance",
            main=False,
        ),
        Curve("rollout/repetition", "Repetition in the rollouts", "share", main=False),
        Curve("rollout/logp_gap", "Sampler against learner", "nats per token", main=False),
    ),
)
