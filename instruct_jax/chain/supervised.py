"""What the stages share that learn from a loss: a state, one jitted step, and batches."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from instruct_jax import optim, sharding
from instruct_jax.chain import programs
from instruct_jax.chain.context import Run, Stage
from instruct_jax.chain.networks import Network
from instruct_jax.chain.programs import Adam, Learns, Program
from instruct_jax.config import OptimizerConfig
from instruct_jax.models.lm import parameter_count
from instruct_jax.models.lora import merge
from instruct_jax.records import Metrics, Params, TrainState
from instruct_jax.runtime.loop import Training
from instruct_jax.stages.gradient import LossFn, make_step


class Supervised(NamedTuple):
    """A step before it sees data; of an abstract run all arrays are shapes."""

    step: jax.stages.Wrapped  # (state, base, batch) -> (state, metrics)
    state: TrainState
    base: Params  # frozen, handed in at every step; {} where all weights are trained
    net: Network


def set_up(
    stage: Stage,
    net: Network,
    boxed: Params,
    params: Params,
    loss_fn: LossFn,
    optimizer: OptimizerConfig,
    steps: int,
    *,
    micro_batches: int,
    name: str | None = None,
) -> Supervised:
    """The training of `params` (their abstract twin with axis names: boxed) with one loss, as far
    as the network trains them.  `name` gives the random key; the stage's own by default.
    """
    tx = optim.make_optimizer(optimizer, steps)
    base, own = net.split_frozen(params)
    boxed_own = net.trained(boxed)
    key = stage.key(name or stage.name)
    state = new_state(stage.run, net, boxed_own, own, key, init_optimizer=tx.init)

    def on_base(state: TrainState, base: Params, batch: Any) -> tuple[TrainState, Metrics]:
        def whole_loss(params: Params, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return loss_fn(merge(base, params), batch, key)

        learn = make_step(whole_loss, tx, micro_batches=micro_batches)
        return learn(state, batch)

    step = sharding.compile_step(
        on_base, net.layout, state, shardings(base), net.layout.sharding("batch")
    )
    return Supervised(step, state, base, net)


def new_state(
    run: Run, net: Network, boxed: Params, params: Params, key: jax.Array, **options: Any
) -> TrainState:
    """sharding.create_state, or its shapes where the run is abstract."""
    if not run.abstract:
        return sharding.create_state(net.layout, boxed, params, key=key, **options)

    def create(params: Params, key: jax.Array) -> TrainState:
        return sharding.new_state(params, key, **options)

    return sharding.abstract(jax.eval_shape(create, boxed, key), net.layout)


def shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def training(
    ready: Supervised,
    batch_at: Callable[[int], Any],
    steps: int,
    *,
    examples: Iterable[Any] | None = None,
    **options: Any,
) -> Training:
    """The Training of a step on its batches, compiled for the shapes of the examples (the first
    batch by default) before the first step.  `options` are the further fields of Training.
    """
    shapes = [batch_at(0)] if examples is None else examples
    step = sharding.ahead_of_time(ready.step, ready.state, ready.base, shapes)
    return Training(step, ready.state, batch_at, steps, ready.net.fingerprints, **options)


def program(stage: Stage, ready: Supervised, batch: Any, learns: Learns) -> Program:
    """The step of an abstract run, on a batch of shapes."""
    state, base = ready.state, ready.base
    trained = parameter_count(state.params)
    adam = Adam(learns.model, trained, learns.parts)
    return Program(
        stage.name,
        "step",
        ready.step,
        (state, base, batch),
        here=programs.large_parts(state) | {"base": base},
        elsewhere={},
        parameters=trained + parameter_count(base),
        operations=(learns, adam),
    )


def program_on_texts(stage: Stage, ready: Supervised) -> Program:
    """The same on rows of text, where every position is learned from."""
    cfg, net = stage.settings, ready.net
    batch = programs.texts(net.layout, cfg.batch, cfg.length)
    positions = cfg.batch * cfg.length
    learns = Learns(net.policy, cfg.batch, cfg.length, positions, cfg.micro_batches)
    return program(stage, ready, batch, learns)
