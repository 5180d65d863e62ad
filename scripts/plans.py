"""The smallest TPU slice on which each stage of the paper fits, and how long it needs at best: the
tables of docs/plans.md.

    python scripts/plans.py runs/plans [--sizes 1.3b 6b 175b] [--kinds v5p v6e v5e]

Every try is a call of `instruct-jax plan --json`, kept in the folder, so that a second call goes on
where the first one was stopped, and several can share the work; one that has all its plans prints
the tables.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import RunConfig
from instruct_jax.plan.topology import GIB, parse_topology

ROOT = Path(__file__).parents[1]
SLICES = {  # of which Google lends the v5e and v6e up to 256 chips
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
# as `check` prints them; the reward model has 6b
PARAMETERS = {"1.3b": 1.517e9, "6b": 6.659e9, "175b": 174.6e9}
STAGES = {"sft": "SFT", "reward": "reward model", "ppo_ptx": "PPO-ptx"}
DEMONSTRATIONS, RANKINGS = 12_725, 33_207  # prompts for training, paper Table 6
# most that mesh.tensor can be: it divides the heads of both models
WIDTH_OF_MESH = {"1.3b": 8, "6b": 32, "175b": 32}


class Try(NamedTuple):
    """One way to put a stage on a slice."""

    topology: str
    overrides: tuple[str, ...]
    mesh: str

    def file(self, size: str, stage: str) -> str:
        return f"{size}-{stage}-{self.topology.replace(':', '-')}-{self.mesh.replace(' ', '')}.json"


def tries(config: RunConfig, size: str, kind: str, stage: str) -> Iterator[Try]:
    """From the smallest slice up, those that arithmetic does not rule out: fsdp takes as many
    devices as a batch has rows, tensor the rest, and twice as many where PPO may want smaller
    copies of the policy; every device reads one row at a time.
    """
    rows = {
        "sft": config.sft.batch,
        "reward": config.reward.batch,
        "ppo_ptx": config.ppo.minibatch,
    }[stage]
    for shape in SLICES[kind]:
        topology = parse_topology(f"{kind}:{shape}")
        n = topology.devices
        splits = [
            tensor
            for tensor in (1, 2, 4, 8, 16, 32)
            if n // rows <= tensor <= min(n, WIDTH_OF_MESH[size])
        ]
        splits = [
            tensor for tensor in splits if held(config, size, stage, n, tensor) < topology.memory
        ]
        for tensor in splits[: 2 if stage == "ppo_ptx" else 1]:
            fsdp = n // tensor
            yield Try(
                topology.name,
                (*mesh(fsdp, tensor), *micro_batches(config, stage, fsdp)),
                f"fsdp {fsdp} x tensor {tensor}",
            )


def held(config: RunConfig, size: str, stage: str, n: int, tensor: int) -> float:
    """Bytes that one device needs for certain: states (docs/scale.md); while PPO samples, the cache
    and the policy in bfloat16, twice.
    """
    policy, judge = PARAMETERS[size], PARAMETERS["6b"]
    if stage != "ppo_ptx":
        return 12 * (policy if stage == "sft" else judge) / n
    m = config.model
    cache = (
        4
        * m.layers
        * m.groups
        * m.head_size
        * (config.text.max_prompt + config.ppo.sampler.max_tokens)
        * config.ppo.batch
    )
    return (20 * policy + 16 * judge + cache) / n + 4 * policy / tensor


def mesh(fsdp: int, tensor: int) -> Iterator[str]:
    for axis, devices in {"data": 1, "fsdp": fsdp, "tensor": tensor, "context": 1}.items():
        yield from (f"--mesh.{axis}", str(devices))


def micro_batches(config: RunConfig, stage: str, fsdp: int) -> Iterator[str]:
    batch = config.ppo.minibatch if stage == "ppo_ptx" else getattr(config, stage).batch
    yield from (f"--{stage}.micro_batches", str(batch // fsdp))
    yield from ("--sample_batch", str(max(config.sample_batch, fsdp)))


def planned(folder: Path, size: str, stage: str, one: Try) -> list[dict[str, Any]]:
    """The rows of a plan, made unless the folder has them."""
    path = folder / one.file(size, stage)
    if not path.exists():
        config = ROOT / f"configs/instructgpt_{size}.yaml"
        command = [
            sys.executable,
            "-m",
            "instruct_jax",
            "plan",
            "--config",
            str(config),
            "--topology",
            one.topology,
            "--stages",
            stage,
        ]
        print(f"{size} {stage} on {one.topology}, {one.mesh}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*command, "--json", *one.overrides], stdout=subprocess.PIPE, text=True
        )
        if done.returncode not in (0, 3):
            raise SystemExit(f"exit code {done.returncode}")
        path.write_text(done.stdout)
    return json.loads(path.read_text())["steps"]


def smallest(
    folder: Path, size: str, kind: str, stage: str
) -> tuple[Try, list[dict[str, Any]]] | None:
    config = load_config(RunConfig, ROOT / f"configs/instructgpt_{size}.yaml")
    for one in tries(config, size, kind, stage):
        rows = planned(folder, size, stage, one)
        if all(row["fits"] for row in rows):
            return one, rows
    return None


def times(config: RunConfig, stage: str) -> int:
    """How often the paper makes the step."""
    sft, reward = config.sft, config.reward
    return {
        "sft": sft.epochs * math.ceil(DEMONSTRATIONS / sft.batch),
        "reward": reward.epochs * math.ceil(RANKINGS / reward.batch),
        "ppo_ptx": config.ppo.iterations,
    }[stage]


def tables(folder: Path, sizes: list[str], kinds: list[str]) -> Iterator[str]:
    yield (
        "| size | stage | chips | slice | mesh | peak GiB | of | a step, at best | bound by | MFU"
        " at best | steps | all, at best |"
    )
    yield "|---|---|---|--:|---|--:|--:|--:|---|--:|--:|--:|"
    for size in sizes:
        config = load_config(RunConfig, ROOT / f"configs/instructgpt_{size}.yaml")
        for stage, name in STAGES.items():
            if stage == "reward" and size != "6b":
                continue  # the paper has one reward model for all
            for kind in kinds:
                found = smallest(folder, size, kind, stage)
                if found is None:
                    yield (
                        f"| {size.upper()} | {name} | {kind} | none up to {SLICES[kind][-1]} | | |"
                        " | | | | | |"
                    )
                    continue
                one, rows = found
                worst = max(rows, key=lambda row: row["peak"])
                seconds = sum(row["seconds"] for row in rows)
                peak_flops = rows[0]["devices"] * (
                    parse_topology(one.topology).chip.flops or math.inf
                )
                mfu = sum(row["flops"] for row in rows) / (seconds * peak_flops)
                bound = ", ".join(
                    dict.fromkeys(
                        row["bound"] for row in sorted(rows, key=lambda row: -row["seconds"])
                    )
                )
                yield (
                    f"| {size.upper()} | {name} | {kind} | {one.topology.partition(':')[2]} |"
                    f" {one.mesh} | {worst['peak'] / GIB:.1f} | {worst['memory'] / GIB:.1f} |"
                    f" {seconds:.3g} s | {bound} | {mfu:.0%} | {times(config, stage):,} |"
                    f" {seconds * times(config, stage) / 3600:.3g} h |"
                )


def whole(folder: Path, sizes: list[str], kinds: list[str]) -> Iterator[str]:
    """The paper's run, its stages one after the other, each on its smallest slice."""
    yield (
        "| size | chips | SFT | reward model | PPO's start | PPO-ptx | hours in all, at best |"
        " chip-hours |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for size in sizes:
        config = load_config(RunConfig, ROOT / f"configs/instructgpt_{size}.yaml")
        for kind in kinds:
            found = [
                smallest(folder, "6b" if stage == "reward" else size, kind, stage)
                for stage in STAGES
            ]
            if None in found:
                continue
            plans = dict(zip(STAGES, [one[1] for one in found if one], strict=True))
            hours = {
                stage: times(config, stage) * sum(row["seconds"] for row in rows) / 3600
                for stage, rows in plans.items()
            }
            assert config.ppo_start is not None
            # the same step (paper C.3: a tenth of the rows more)
            start = hours["sft"] * config.ppo_start.epochs / config.sft.epochs
            parts = hours["sft"], hours["reward"], start, hours["ppo_ptx"]
            chips = [plans[stage][0]["devices"] for stage in ("sft", "reward", "sft", "ppo_ptx")]
            spent = sum(n * part for n, part in zip(chips, parts, strict=True))
            yield (
                f"| {size.upper()} | {kind} | {' | '.join(f'{part:.3g}' for part in parts)} |"
                f" {sum(parts):.3g} | {spent:,.0f} |"
            )


def detail(folder: Path, sizes: list[str], kinds: list[str]) -> Iterator[str]:
    """What an iteration of PPO-ptx is made of."""
    yield (
        "| size | slice | step | arguments | temporaries | waiting | peak | sent | FLOPs/byte | at"
        " best | bound by | MFU at best |"
    )
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|"
    for size in sizes:
        for kind in kinds:
            found = smallest(folder, size, kind, "ppo_ptx")
            for row in found[1] if found else []:
                gib = " | ".join(
                    f"{row[key] / GIB:.1f}"
                    for key in ("arguments", "temporaries", "elsewhere", "peak", "sent")
                )
                yield (
                    f"| {size.upper()} | {row['topology']} | {row['step']} | {gib} |"
                    f" {row['intensity']:,.0f} | {row['seconds']:.3g} s | {row['bound']} |"
                    f" {row['mfu']:.0%} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", default=[*PARAMETERS], choices=[*PARAMETERS])
    parser.add_argument("--kinds", nargs="+", default=["v5p", "v6e", "v5e"], choices=[*SLICES])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = args.folder, args.sizes, args.kinds
    print(*tables(*asked), "", *whole(*asked), "", *detail(*asked), sep="\n")


if __name__ == "__main__":
    main()
