"""Times the steps of the project; one JSON line per item:  python scripts/bench.py --size tiny
--item sft,reward,sample,ppo

On a CPU, to compare with others on one thread:  taskset -c 1 python scripts/bench.py --threads 1
On a GPU:  python scripts/bench.py --size 1.3b --item sft,sample --dtype bfloat16

Rows are full, no response ends early, dropout is 0; all masks, metrics and checks are on.  Seconds
are median, least and most of the repeats after the warm-up, in which everything compiles: a
compilation later is an error.  FLOPs are 6 N (training) or 2 N (forward) per token, N = parameters
that multiply it; attention is not counted.  "utilization" is their rate over that of one large
matmul, "bandwidth" the bytes of weights and cache that decoding must read per second over the rate
of x + 1; on a CPU per CPU-second, elsewhere per second.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from bench_items import SIZES, Bench, Work

from instruct_jax.runtime.metrics import Recompiles

WARMUP = 2


def measure(work: Work, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each phase, {"cpu_s": {phase: [...]}, "wall_s": ...}; RuntimeError if anything
    compiled after the warm-up.
    """
    clocks = {"cpu_s": time.process_time, "wall_s": time.perf_counter}
    laps: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in work.phases} for name in clocks
    }
    carry = work.start
    with Recompiles() as recompiles:
        for repeat in range(WARMUP + repeats):
            if repeat == WARMUP:
                recompiles.mark_warm()
            for phase, run in work.phases.items():
                begun = {name: clock() for name, clock in clocks.items()}
                carry = jax.block_until_ready(run(carry))
                for name, clock in clocks.items():
                    laps[name][phase].append(clock() - begun[name])
    if recompiles.after_warmup:
        raise RuntimeError(f"{recompiles.after_warmup} programs were compiled after the warm-up")
    return {
        name: {phase: seconds[WARMUP:] for phase, seconds in phases.items()}
        for name, phases in laps.items()
    }


def best(clock: Callable[[], float], run: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """Least seconds of x = run(x), of five, after one that compiles."""
    seconds = []
    for _ in range(6):
        start = clock()
        x = run(x).block_until_ready()
        seconds.append(clock() - start)
    return min(seconds[1:])


def summary(seconds: list[float]) -> dict[str, float]:
    return {
        "med": round(statistics.median(seconds), 4),
        "min": round(min(seconds), 4),
        "max": round(max(seconds), 4),
        "n": len(seconds),
    }


def row(item: str, args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """One measured item as a JSON object."""
    on_cpu = jax.default_backend() == "cpu"
    clock, name = (time.process_time, "cpu_s") if on_cpu else (time.perf_counter, "wall_s")
    work: Work = getattr(bench, item)()
    laps = measure(work, args.repeats)
    side, length = (2048, 2**26) if on_cpu else (8192, 2**30)
    matmul = (
        2 * side**3 / best(clock, jax.jit(lambda x: x @ x), jnp.zeros((side, side), args.dtype))
    )
    memory = 8 * length / best(clock, jax.jit(lambda x: x + 1, donate_argnums=0), jnp.zeros(length))
    total = {
        clock: [sum(x, 0.0) for x in zip(*phases.values(), strict=True)]
        for clock, phases in laps.items()
    }
    rate = {
        phase: work.flops[phase] / statistics.median(seconds)
        for phase, seconds in laps[name].items()
    }
    found = {
        "bench": item,
        "size": args.size,
        "dtype": args.dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "threads": args.threads,
        **work.settings,
        **{clock: summary(seconds) for clock, seconds in total.items()},
        "phases": {phase: summary(seconds) for phase, seconds in laps[name].items()},
        "gflops": {phase: round(x / 1e9, 1) for phase, x in rate.items()},
        "utilization": {phase: round(x / matmul, 3) for phase, x in rate.items()},
        "matmul_gflops": round(matmul / 1e9, 1),
        "memory_gbps": round(memory / 1e9, 1),
        "jax": jax.__version__,
    }
    if item == "sample":
        median = statistics.median(total[name])
        found["tokens_per_s"] = round(work.settings["rows"] * work.settings["response"] / median)
        found["bandwidth"] = round(bench.decode_bytes() / median / memory, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument(
        "--item", default="sft,reward,sample,ppo", help="one or several, with commas"
    )
    parser.add_argument("--threads", type=int, help="1: one thread on a CPU; by default all")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of activations; weights are float32",
    )
    parser.add_argument(
        "--micro-batches",
        type=int,
        help="parts of each gradient's batch; by default what is fast at this size",
    )
    parser.add_argument("--epochs", type=int, default=1, help="of PPO")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.threads == 1:
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
            + os.environ.get("XLA_FLAGS", "")
        )
    size = SIZES[args.size]
    bench = Bench(
        size._replace(model=dataclasses.replace(size.model, dtype=args.dtype)),
        args.micro_batches,
        args.epochs,
    )
    for item in args.item.split(","):
        print(json.dumps(row(item, args, bench)), flush=True)


if __name__ == "__main__":
    main()
