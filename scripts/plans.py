"""The smallest TPU slice on which each stage of the paper fits, and how long it needs at best: the
tables of docs/plans.md.

    python scripts/plans.py runs/plans [--sizes 1.3b 6b 175b] [--kinds v5p v6e v5e]

Every plan is a call of `instruct-jax plan --json`, and is kept in the folder.  So a second call
resumes where the first one was stopped, and several can share the work.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instruct_jax.chain.ppo import PpoStage
from instruct_jax.chain.read import load_run
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
# stages of the configs, and as the tables call them
STAGES = {"sft": "SFT", "reward": "reward model", "ppo_ptx": "PPO-ptx"}
DEMONSTRATIONS, RANKINGS = 12_725, 33_207  # prompts for training, paper Table 6
# most that mesh.tensor can be: it divides the heads of both models
WIDTH_OF_MESH = {"1.3b": 8, "6b": 32, "175b": 32}


Row = dict[str, Any]  # of `plan --json`


class Try(NamedTuple):
    """One way to put a stage on a slice."""

    topology: str
    overrides: tuple[str, ...]
    mesh: str

    def file(self, size: str, stage: str) -> str:
        return f"{size}-{stage}-{self.topology.replace(':', '-')}-{self.mesh.replace(' ', '')}.json"


def config_of(size: str) -> RunConfig:
    return load_run(ROOT / f"configs/instructgpt_{size}.yaml")


def rows_of(config: RunConfig, stage: str) -> int:
    """Rows of one optimizer step."""
    settings: Any = config.stages[stage]
    return settings.minibatch if stage == "ppo_ptx" else settings.batch


def tries(config: RunConfig, size: str, kind: str, stage: str) -> Iterator[Try]:
    """From the smallest slice up, those that arithmetic does not rule out: fsdp takes as many
    devices as a batch has rows, tensor the rest, and twice as many where PPO may want smaller
    copies of the policy; every device reads one row at a time.
    """
    rows = rows_of(config, stage)
    for shape in SLICES[kind]:
        topology = parse_topology(f"{kind}:{shape}")
        n = topology.devices
        splits = []
        for tensor in (1, 2, 4, 8, 16, 32):
            enough = n // rows <= tensor <= min(n, WIDTH_OF_MESH[size])
            if enough and held(config, size, stage, n, tensor) < topology.memory:
                splits.append(tensor)
        for tensor in splits[: 2 if stage == "ppo_ptx" else 1]:
            fsdp = n // tensor
            overrides = (*mesh(fsdp, tensor), *micro_batches(config, stage, fsdp))
            yield Try(topology.name, overrides, f"fsdp {fsdp} x tensor {tensor}")


def held(config: RunConfig, size: str, stage: str, n: int, tensor: int) -> float:
    """Bytes that one device needs for certain: states (docs/scale.md); while PPO samples, the cache
    and the policy in bfloat16, twice.
    """
    policy, reward = PARAMETERS[size], PARAMETERS["6b"]
    if stage != "ppo_ptx":
        return 12 * (policy if stage == "sft" else reward) / n
    m, settings = config.model, config.stages[stage]
    assert isinstance(settings, PpoStage)
    slots = (config.text.max_prompt + settings.sampler.max_tokens) * settings.batch
    cache = 4 * m.layers * m.groups * m.head_size * slots
    return (20 * policy + 16 * reward + cache) / n + 4 * policy / tensor


def mesh(fsdp: int, tensor: int) -> Iterator[str]:
    for axis, devices in {"data": 1, "fsdp": fsdp, "tensor": tensor, "context": 1}.items():
        yield from (f"--mesh.{axis}", str(devices))


def micro_batches(config: RunConfig, stage: str, fsdp: int) -> Iterator[str]:
    yield from (f"--{stage}.micro_batches", str(rows_of(config, stage) // fsdp))
    yield from ("--sample_batch", str(max(config.sample_batch, fsdp)))


def planned(folder: Path, size: str, stage: str, one: Try) -> list[Row]:
    """The rows of a plan, made unless the folder has them."""
    path = folder / one.file(size, stage)
    if not path.exists():
        config = str(ROOT / f"configs/instructgpt_{size}.yaml")
        command = [sys.executable, "-m", "instruct_jax", "plan", "--json", "--config", config]
        command += ["--topology", one.topology, "--stages", stage, *one.overrides]
        print(f"{size} {stage} on {one.topology}, {one.mesh}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 3):
            raise SystemExit(f"exit code {done.returncode}")
        path.write_text(done.stdout)
    return json.loads(path.read_text())["steps"]


def smallest(folder: Path, size: str, kind: str, stage: str) -> tuple[Try, list[Row]] | None:
    """The first try on which all programs of the stage fit."""
    for one in tries(config_of(size), size, kind, stage):
        rows = planned(folder, size, stage, one)
        if all(row["fits"] for row in rows):
            return one, rows
    return None


def times(config: RunConfig, stage: str) -> int:
    """How often the paper makes the step."""
    settings: Any = config.stages[stage]
    if stage == "ppo_ptx":
        return settings.iterations
    records = DEMONSTRATIONS if stage == "sft" else RANKINGS
    return settings.epochs * math.ceil(records / settings.batch)


TABLE = """\
| size | stage | chips | slice | mesh | peak GiB | of | a step, at best | bound by | MFU at best \
| steps | all, at best |
|---|---|---|--:|---|--:|--:|--:|---|--:|--:|--:|"""


def tables(folder: Path, sizes: list[str], kinds: list[str]) -> Iterator[str]:
    """The smallest slice of each kind for each stage."""
    yield TABLE
    for size in sizes:
        for stage in STAGES:
            if stage == "reward" and size != "6b":
                continue  # the paper has one reward model for all
            for kind in kinds:
                yield table_row(folder, size, stage, kind)


def table_row(folder: Path, size: str, stage: str, kind: str) -> str:
    cells = [size.upper(), STAGES[stage], kind]
    found = smallest(folder, size, kind, stage)
    if found is None:
        cells.append(f"none up to {SLICES[kind][-1]}")
        return line(cells) + " |" * 8
    one, rows = found
    worst = max(rows, key=lambda row: row["peak"])
    slowest_first = sorted(rows, key=lambda row: -row["seconds"])
    bounds = dict.fromkeys(row["bound"] for row in slowest_first)
    seconds = sum(row["seconds"] for row in rows)
    rate = parse_topology(one.topology).chip.flops or math.inf
    mfu = sum(row["flops"] for row in rows) / (seconds * rows[0]["devices"] * rate)
    steps = times(config_of(size), stage)
    cells += [
        one.topology.partition(":")[2],
        one.mesh,
        f"{worst['peak'] / GIB:.1f}",
        f"{worst['memory'] / GIB:.1f}",
        f"{seconds:.3g} s",
        ", ".join(bounds),
        f"{mfu:.0%}",
        f"{steps:,}",
        f"{seconds * steps / 3600:.3g} h",
    ]
    return line(cells)


def line(cells: list[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def whole(folder: Path, sizes: list[str], kinds: list[str]) -> Iterator[str]:
    """The paper's run, its stages one after the other, each on its smallest slice."""
    yield (
        "| size | chips | SFT | reward model | PPO's start | PPO-ptx | hours in all, at best |"
        " chip-hours |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for size in sizes:
        for kind in kinds:
            plans = smallest_of_all(folder, size, kind)
            if plans is not None:
                yield whole_row(size, kind, plans)


def smallest_of_all(folder: Path, size: str, kind: str) -> dict[str, list[Row]] | None:
    """Stage -> rows of its plan; None where one of them fits nowhere."""
    plans = {}
    for stage in STAGES:
        found = smallest(folder, "6b" if stage == "reward" else size, kind, stage)
        if found is None:
            return None
        plans[stage] = found[1]
    return plans


def whole_row(size: str, kind: str, plans: dict[str, list[Row]]) -> str:
    config = config_of(size)
    hours = {}
    for stage, rows in plans.items():
        seconds = sum(row["seconds"] for row in rows)
        hours[stage] = times(config, stage) * seconds / 3600
    sft: Any = config.stages["sft"]
    start: Any = config.stages["ppo_start"]
    # the same step as that of SFT (paper C.3: a tenth of the rows more)
    hours_of_start = hours["sft"] * start.epochs / sft.epochs
    parts = [hours["sft"], hours["reward"], hours_of_start, hours["ppo_ptx"]]
    chips = [plans[stage][0]["devices"] for stage in ("sft", "reward", "sft", "ppo_ptx")]
    spent = sum(n * part for n, part in zip(chips, parts, strict=True))
    cells = [size.upper(), kind]
    cells += [f"{part:.3g}" for part in parts]
    cells += [f"{sum(parts):.3g}", f"{spent:,.0f}"]
    return line(cells)


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
                yield detail_row(size, row)


def detail_row(size: str, row: Row) -> str:
    cells = [size.upper(), row["topology"], row["step"]]
    for key in ("arguments", "temporaries", "elsewhere", "peak", "sent"):
        cells.append(f"{row[key] / GIB:.1f}")
    cells += [
        f"{row['intensity']:,.0f}",
        f"{row['seconds']:.3g} s",
        row["bound"],
        f"{row['mfu']:.0%}",
    ]
    return line(cells)


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
