"""Times the steps of the project; one JSON line per item:  python scripts/bench.py --size tiny --item sft,reward,sample,ppo

On a CPU, to compare with others on one thread:  taskset -c 1 python scripts/bench.py --threads 1
On a GPU:  python scripts/bench.py --size 1.3b --item sft,sample --dtype bfloat16

Rows are full, no response ends early, dropout is 0; all masks, metrics and checks are on.  Seconds are median, least and most of the
repeats after the warm-up, in which everything compiles: a compilation later is an error.  FLOPs are 6 N (training) or 2 N (forward) per
token, N = parameters that multiply it; attention is not counted.  "utilization" is their rate over that of one large matmul, "bandwidth"
the bytes of weights and cache that decoding must read per second over the rate of x + 1; on a CPU per CPU-second, elsewhere per second.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instruct_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from instruct_jax.models.heads import ScalarModel
from instruct_jax.models.lm import LanguageModel
from instruct_jax.optim import make_optimizer
from instruct_jax.records import PromptBatch, RankingBatch, TokenBatch, TrainState
from instruct_jax.runtime.metrics import Recompiles
from instruct_jax.sharding import batch_sharding, compile_step, constrain, create_sharded, create_state, make_mesh
from instruct_jax.stages import ppo, pretrain, reward_model
from instruct_jax.stages.experience import make_experience
from instruct_jax.stages.gradient import make_step
from instruct_jax.stages.rollout import SamplerConfig, make_rollout

OPTIMIZER = OptimizerConfig(learning_rate=1e-5, schedule="constant")
NEVER = -1  # an eos that no model says
WARMUP = 2


class Size(NamedTuple):
    """A GPT-2 model and the work at its size; `micro` are the micro-batches of sft, reward and ppo on a CPU."""

    model: ModelConfig
    rows: int  # of an SFT batch, model.context long
    pairs: int  # of a reward batch
    prompts: tuple[int, int, int]  # of sampling: rows, prompt length, response length
    rollouts: tuple[int, int, int]  # of PPO, likewise; four minibatches
    micro: dict[str, int]


SIZES = {
    "tiny": Size(
        ModelConfig(vocab_size=1024, context=128, width=128, layers=4, heads=4),
        64, 32, (64, 32, 64), (128, 32, 32), {"sft": 32, "reward": 16, "ppo": 8},
    ),
    "small": Size(
        ModelConfig(vocab_size=8192, context=256, width=512, layers=8, heads=8),
        8, 4, (64, 32, 64), (16, 64, 64), {"sft": 4, "reward": 4, "ppo": 2},
    ),
    "1.3b": Size(
        ModelConfig(vocab_size=50304, context=2048, width=2048, layers=24, heads=16, remat="dots"),
        8, 4, (64, 512, 128), (64, 512, 128), {"sft": 1, "reward": 1, "ppo": 1},
    ),
}  # fmt: skip


class Work(NamedTuple):
    """An item, ready to run: phases in order, each from what the one before gave; the last gives what the first takes."""

    start: Any
    phases: dict[str, Callable[[Any], Any]]
    flops: dict[str, float]
    settings: dict[str, Any]
    decode_bytes: float = 0.0


class Bench:
    """The models, batches and steps at one size."""

    def __init__(self, size: Size, micro: int | None, epochs: int):
        self.size, self.epochs, self.config = size, epochs, size.model
        self.mesh = make_mesh(MeshConfig())
        self.lm = LanguageModel(self.config, constrain(self.mesh))
        self.scalar = ScalarModel(self.lm)
        self.blocks = 12 * self.config.layers * self.config.width**2
        self.head = self.config.vocab_size * self.config.width
        self._micro, self._rng = micro, np.random.default_rng(0)

    def micro(self, item: str) -> int:
        return self._micro or (self.size.micro[item] if jax.default_backend() == "cpu" else 1)

    def tokens(self, *shape: int) -> np.ndarray:
        return self._rng.integers(4, self.config.vocab_size, shape).astype(np.int32)

    def born(self, model: LanguageModel | ScalarModel) -> tuple[Any, Any]:
        key = jax.random.key(0)
        return jax.eval_shape(model.init, key), create_sharded(model.init, self.mesh, key)

    def supervised(self, item: str, model: LanguageModel | ScalarModel, loss_fn, batch: Any, flops: float) -> Work:
        optimizer = make_optimizer(OPTIMIZER, 1000)
        state = create_state(self.mesh, *self.born(model), optimizer.init, jax.random.key(1))
        step = compile_step(make_step(loss_fn, optimizer, micro_batches=self.micro(item)), self.mesh, state)
        run = lambda state: checked(*step(state, batch))  # noqa: E731
        return Work(state, {"step": run}, {"step": flops}, {"micro_batches": self.micro(item)})

    def sft(self) -> Work:
        rows, length = self.size.rows, self.config.context
        weight = np.full((rows, length), 1 / (rows * (length - 1)), np.float32)
        weight[:, 0] = 0
        batch = TokenBatch(self.tokens(rows, length), np.ones((rows, length), np.int32), weight)
        return self.supervised("sft", self.lm, pretrain.make_loss(self.lm, "sft"), batch, 6 * (self.blocks + self.head) * rows * length)

    def reward(self) -> Work:
        shape = (self.size.pairs, 2, self.config.context)
        ranks = np.tile(np.array([1, 2], np.int32), (shape[0], 1))
        batch = RankingBatch(self.tokens(*shape), np.ones(shape, bool), ranks, np.full(shape[0], 1 / shape[0], np.float32))
        return self.supervised("reward", self.scalar, reward_model.make_loss(self.scalar), batch, 6 * self.blocks * math.prod(shape))

    def rollout_flops(self, rows: int, prompt: int, limit: int) -> float:
        return 2 * rows * (self.blocks * (prompt + limit) + self.head * limit)

    def sample(self) -> Work:
        rows, prompt, limit = self.size.prompts
        prompts = PromptBatch(self.tokens(rows, prompt), np.ones((rows, prompt), bool))
        params, split = self.born(self.lm)[1], batch_sharding(self.mesh)
        layout = jax.tree.map(lambda x: x.sharding, params)
        run = jax.jit(
            make_rollout(self.lm, SamplerConfig(limit), eos=NEVER, pad=0), in_shardings=(layout, split, None), out_shardings=split
        )
        keys = iter(jax.random.split(jax.random.key(2), 1000))
        one = np.dtype(self.config.dtype).itemsize
        cache = 2 * self.config.layers * rows * (prompt + limit / 2) * self.config.groups * self.config.head_size
        settings = {"rows": rows, "prompt": prompt, "response": limit}
        flops = {"sample": self.rollout_flops(rows, prompt, limit)}
        return Work(
            None, {"sample": lambda _: run(params, prompts, next(keys))}, flops, settings, (self.blocks + self.head + cache) * one * limit
        )

    def ppo(self) -> Work:
        rows, prompt, limit = self.size.rollouts
        config = ppo.PpoConfig(
            batch=rows, minibatch=rows // 4, epochs=self.epochs, micro_batches=self.micro("ppo"), optimizer=OPTIMIZER, value_optimizer=OPTIMIZER,
            sampler=SamplerConfig(limit),
        )  # fmt: skip
        optimizers = {"policy": make_optimizer(config.policy_optimizer, 1000), "value": make_optimizer(config.value_optimizer, 1000)}
        (policy_boxed, policy), (value_boxed, value) = self.born(self.lm), self.born(self.scalar)
        init = lambda params: {name: optimizers[name].init(params[name]) for name in optimizers}  # noqa: E731
        boxed, params = {"policy": policy_boxed, "value": value_boxed}, {"policy": policy, "value": value}
        state = create_state(self.mesh, boxed, params, init, jax.random.key(1), averaged=lambda p: p["policy"], kl_coef=config.kl_coef)
        frozen = {"reference": policy, "reward": value}
        prompts = jax.device_put(PromptBatch(self.tokens(rows, prompt), np.ones((rows, prompt), bool)), batch_sharding(self.mesh))

        sampler = make_rollout(self.lm, config.sampler, eos=NEVER, pad=0)
        sample = jax.jit(lambda state, prompts: sampler(state.params["policy"], prompts, ppo.iteration_keys(state)["rollout"]))
        judge = jax.jit(make_experience(self.lm, self.scalar, self.scalar, config.experience, temperature=config.sampler.temperature))
        update = ppo.make_update(self.lm, self.scalar, config, optimizers["policy"], optimizers["value"])
        learn = compile_step(lambda state, made: update(state, made, None), self.mesh, state)

        def rollout(state: TrainState):
            return state, sample(state, prompts)

        def experience(carry):
            state, sampled = carry
            return state, checked(*judge(state.params, frozen, sampled, state.kl_coef))

        def learned(carry):
            return checked(*learn(*carry))

        tokens, answers = rows * (prompt + limit), rows * limit
        flops = {
            "rollout": self.rollout_flops(rows, prompt, limit),
            "experience": 2 * (4 * self.blocks * tokens + 2 * self.head * answers),
            "update": 6 * self.epochs * (2 * self.blocks * tokens + self.head * answers),
        }
        settings = {"rows": rows, "prompt": prompt, "response": limit, "epochs": self.epochs, "updates": config.updates}
        phases = {"rollout": rollout, "experience": experience, "update": learned}
        return Work(state, phases, flops, settings | {"micro_batches": config.micro_batches})


def checked(result: Any, metrics: dict[str, jax.Array]) -> Any:
    """The result, once its metrics have reached the host and are finite, as the training loop has it."""
    bad = [name for name, value in jax.device_get(metrics).items() if not np.isfinite(value)]
    if bad:
        raise FloatingPointError(f"{bad} not finite")
    return result


def measure(work: Work, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each phase, {"cpu_s": {phase: [...]}, "wall_s": ...}; RuntimeError if anything compiled after the warm-up."""
    laps = {clock: {phase: [] for phase in work.phases} for clock in ("cpu_s", "wall_s")}
    carry = work.start
    with Recompiles() as recompiles:
        for repeat in range(WARMUP + repeats):
            if repeat == WARMUP:
                recompiles.mark_warm()
            for phase, run in work.phases.items():
                wall, cpu = time.perf_counter(), time.process_time()
                carry = jax.block_until_ready(run(carry))
                if repeat >= WARMUP:
                    laps["cpu_s"][phase].append(time.process_time() - cpu)
                    laps["wall_s"][phase].append(time.perf_counter() - wall)
    if recompiles.after_warmup:
        raise RuntimeError(f"{recompiles.after_warmup} programs were compiled after the warm-up")
    return laps


def summary(seconds: list[float]) -> dict[str, float]:
    return {"med": round(statistics.median(seconds), 4), "min": round(min(seconds), 4), "max": round(max(seconds), 4), "n": len(seconds)}


def ceilings(clock: Callable[[], float], dtype: str) -> tuple[float, float]:
    """What the machine gives right now: FLOP/s of a large matmul of this type, bytes/s read and written by x + 1 in place."""
    big = jax.default_backend() != "cpu"
    square = jnp.ones((8192 if big else 2048,) * 2, dtype)
    vector = jnp.ones(2 ** (30 if big else 26), jnp.float32)
    matmul, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1, donate_argnums=0)
    matmul(square).block_until_ready()
    vector = add(vector).block_until_ready()
    best = [math.inf, math.inf]
    for _ in range(5):
        start = clock()
        matmul(square).block_until_ready()
        middle = clock()
        vector = add(vector).block_until_ready()
        best = [min(best[0], middle - start), min(best[1], clock() - middle)]
    return 2 * square.shape[0] ** 3 / best[0], 2 * vector.nbytes / best[1]


def row(item: str, args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """One measured item as a JSON object."""
    on_cpu = jax.default_backend() == "cpu"
    clock = "cpu_s" if on_cpu else "wall_s"
    work = getattr(bench, item)()
    laps = measure(work, args.repeats)
    flops_rate, bytes_rate = ceilings(time.process_time if on_cpu else time.perf_counter, args.dtype)
    totals = {name: [sum(parts) for parts in zip(*phases.values(), strict=True)] for name, phases in laps.items()}
    rates = {phase: work.flops[phase] / statistics.median(laps[clock][phase]) for phase in work.phases}
    found = {
        "bench": item, "size": args.size, "dtype": args.dtype, "device": jax.devices()[0].device_kind, "devices": jax.device_count(),
        "threads": args.threads, **work.settings, "cpu_s": summary(totals["cpu_s"]), "wall_s": summary(totals["wall_s"]),
        "phases": {phase: summary(laps[clock][phase]) for phase in work.phases},
        "gflops": {phase: round(rate / 1e9, 1) for phase, rate in rates.items()},
        "utilization": {phase: round(rate / flops_rate, 3) for phase, rate in rates.items()},
        "matmul_gflops": round(flops_rate / 1e9, 1), "memory_gbps": round(bytes_rate / 1e9, 1), "jax": jax.__version__,
    }  # fmt: skip
    if item == "sample":
        median = statistics.median(totals[clock])
        found |= {"tokens_per_s": round(work.settings["rows"] * work.settings["response"] / median)}
        found |= {"bandwidth": round(work.decode_bytes / median / bytes_rate, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--item", default="sft,reward,sample,ppo", help="one or several, with commas")
    parser.add_argument("--threads", type=int, help="1: one thread on a CPU; by default all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations; weights are float32")
    parser.add_argument("--micro-batches", type=int, help="parts of each gradient's batch; by default what is fast at this size")
    parser.add_argument("--epochs", type=int, default=1, help="of PPO")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 " + os.environ.get("XLA_FLAGS", "")
    size = SIZES[args.size]
    size = size._replace(model=dataclasses.replace(size.model, dtype=args.dtype))
    bench = Bench(size, args.micro_batches, args.epochs)
    for item in args.item.split(","):
        print(json.dumps(row(item, args, bench)), flush=True)


if __name__ == "__main__":
    main()
