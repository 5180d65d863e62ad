"""Every step of a config compiled ahead of time for devices that need not be here: what fits, what
it sends, how fast it can be.

The compiler works in a process of its own, with an environment of its own:  python -m
instruct_jax.plan.plan < request
"""

import contextlib
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from instruct_jax.chain.settings import RunConfig
from instruct_jax.config import MESH
from instruct_jax.plan.collectives import collectives
from instruct_jax.plan.costs import Work
from instruct_jax.plan.programs import Planner, Program
from instruct_jax.plan.topology import GIB, CompilerError, Topology
from instruct_jax.runtime.progress import StageProgress
from instruct_jax.text import plural
from instruct_jax.text import table as text_table

Row = dict[str, Any]  # of one program; keys as in docs/plans.md, bytes are those of one device
# which have steps of their own
STAGES = ("pretrain", "sft", "reward", "ppo_start", "ppo", "ppo_ptx")


def plan(config: RunConfig, stages: Sequence[str], topology: Topology) -> list[Row]:
    """A row for each program of the stages; says on stderr what it compiles.

    The config has passed validate.check_mesh for so many devices.
    """
    total = sum(3 if stage in config.rl else 1 for stage in stages)
    with (
        tempfile.TemporaryFile("w+") as said,
        StageProgress("plan", step=0, total=total, console=Console(stderr=True)) as progress,
    ):
        child = subprocess.Popen(
            [sys.executable, "-m", "instruct_jax.plan.plan"],
            env=os.environ | topology.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        assert child.stdin is not None and child.stdout is not None
        with child:
            try:
                with contextlib.suppress(
                    BrokenPipeError
                ):  # it has ended already; its code says so below
                    child.stdin.write(pickle.dumps((config, tuple(stages), topology)))
                    child.stdin.close()
                rows: list[Row] = []
                for line in child.stdout:
                    found = json.loads(line)
                    if "next" in found:
                        progress.note(f"compiles {found['next']}")
                    else:
                        rows.append(found)
                        progress.update(len(rows), {})
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            said.seek(0)
            raise CompilerError(
                f"{topology.name}: the compiler stopped with code"
                f" {child.returncode}:\n{said.read()[-3000:]}"
            )
    return rows


def main() -> None:
    """In the process that compiles: reads a request, answers line by line."""
    config, stages, topology = pickle.load(sys.stdin.buffer)
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may talk there

    def answer(found: Row) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    for program in Planner(config, topology.describe()).programs(stages):
        answer({"next": f"{program.stage}: {program.step}"})
        answer(measure(program, topology))


def measure(program: Program, topology: Topology) -> Row:
    """Compiles it.

    `seconds` is the least that arithmetic, memory and links allow, whichever needs longest.
    """
    started = time.monotonic()
    waiting = {name: on_device(tree) for name, tree in program.elsewhere.items()}
    sizes = {f"{name} (waiting)": size for name, size in waiting.items()} | {
        k: on_device(tree) for k, tree in program.here.items()
    }
    row: Row = {
        "stage": program.stage,
        "step": program.step,
        "topology": topology.name,
        "devices": topology.devices,
        "parameters": program.parameters,
        "flops": program.work.flops,
        "memory": topology.memory,
        "elsewhere": sum(waiting.values()),
    }
    try:
        compiled = program.run.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row |= _refused(str(error), on_device(program.arguments))
    else:
        memory = compiled.memory_analysis()
        made = memory.output_size_in_bytes - memory.alias_size_in_bytes
        row |= {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes + made,
        }
        row |= _speed(compiled.as_text(), program.work, topology)
    if "temporaries" in row:
        sizes["temporaries"] = row["temporaries"]
        row["peak"] = row["elsewhere"] + row["arguments"] + row["temporaries"]
    row["fits"] = "refused" not in row and row["peak"] <= row["memory"]
    row["largest"] = [
        {"what": name, "bytes": size}
        for name, size in sorted(sizes.items(), key=lambda part: -part[1])[:4]
    ]
    return row | {"compile_seconds": round(time.monotonic() - started, 1)}


def on_device(tree: Any) -> int:
    """Bytes of a tree of jax.ShapeDtypeStruct with shardings on one device; keys are too small to
    count.
    """
    arrays = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def _speed(text: str, work: Work, topology: Topology) -> Row:
    found, kinds = collectives(text), {}
    for one in found:
        kind = kinds.setdefault(one.kind, {"times": 0, "bytes": 0})
        kind["times"] += one.times
        kind["bytes"] += one.total
    sent, computed = sum(one.sent for one in found), work.computed / topology.devices
    row: Row = {
        "collectives": kinds,
        "sent": sent,
        "traffic": work.traffic,
        "intensity": computed / work.traffic,
    }
    chip, links = topology.chip, topology.links
    if chip.flops is None or chip.bandwidth is None or links is None:
        return row
    needs = {
        "arithmetic": computed / chip.flops,
        "memory": work.traffic / chip.bandwidth,
        "links": sent / links,
    }
    bound = max(needs, key=lambda name: needs[name])
    mfu = work.flops / (needs[bound] * topology.devices * chip.flops)
    return row | {"seconds": needs[bound], "bound": bound, "needs": needs, "mfu": mfu}


def _refused(text: str, arguments: int) -> Row:
    """What a compiler says that found no place for a program; its largest arrays where it names
    them.
    """
    found: Row = {"arguments": arguments, "refused": text.splitlines()[0][:300]}
    if temporaries := re.search(
        r"temporaries \(([\d.]+[KMGT]?)\) exceeds", text
    ):  # "... HLO temporaries (58.20G) exceeds available HBM"
        found["temporaries"] = _size(temporaries[1])
    elif used := re.search(r"Used ([\d.]+[KMGT]?) of", text):  # "Used 21.07G of 15.75G hbm"
        found["temporaries"] = max(_size(used[1]) - arguments, 0.0)
    arrays = re.findall(r"Size: ([\d.]+[KMGT]?)\n\s+Operator: op_name=\"([^\"]*)\"", text)
    return found | {"arrays": [{"what": name, "bytes": _size(size)} for size, name in arrays]}


def _size(text: str) -> float:
    """Bytes of "58.20G"."""
    unit = " KMGT".index(text[-1]) if text[-1] in "KMGT" else 0
    return float(text.rstrip("KMGT")) * 1024.0**unit


def table(rows: Sequence[Row], config: RunConfig, topology: Topology) -> str:
    """The plan for people to read."""
    mesh = " x ".join(
        f"{axis} {size}"
        for axis, size in zip(MESH, config.mesh.shape(topology.devices), strict=True)
    )
    head = "stage", "step", "arguments", "temporaries", "waiting", "peak", "fits", "largest"
    memory = [
        (
            row["stage"],
            row["step"],
            *(_gib(row.get(key)) for key in ("arguments", "temporaries", "elsewhere", "peak")),
            "yes" if row["fits"] else "NO",
            ", ".join(f"{part['what']} {_gib(part['bytes'])}" for part in row["largest"][:2]),
        )
        for row in rows
    ]
    work = [
        (
            row["stage"],
            row["step"],
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e12:,.4g}",
            f"{row['intensity']:,.0f}",
            _gib(row["sent"]),
            ", ".join(
                f"{part['times']:,} {kind} of {_gib(part['bytes'])}"
                for kind, part in row["collectives"].items()
            )
            or "none",
            f"{row['seconds']:.3g} s ({row['bound']})" if "seconds" in row else "-",
            f"{row['mfu']:.0%}" if "mfu" in row else "-",
        )
        for row in rows
        if "sent" in row
    ]
    lines = [
        (
            f"{topology.name}: {plural(topology.devices, 'device')} of {_gib(topology.memory)} GiB;"
            f" mesh {mesh}"
        ),
        "",
        (
            "memory of one device, GiB; waiting: what is no argument of the step, but lies there"
            " meanwhile"
        ),
        *text_table(head, memory),
        "",
        (
            "work; sent and collectives: GiB of one device in one step; at best: the slowest of"
            " arithmetic, memory and links"
        ),
        *text_table(
            (
                "stage",
                "step",
                "parameters",
                "model TFLOPs",
                "FLOPs/byte",
                "sent",
                "collectives, GiB in all",
                "at best",
                "MFU",
            ),
            work,
        ),
    ]
    for row in rows:
        if not row["fits"]:
            over = f"{_gib(row.get('peak'))} GiB of {_gib(row['memory'])}"
            lines += [
                "",
                f"{row['stage']} {row['step']} does not fit: {over}.  The largest parts, GiB:",
            ]
            lines += [
                f"  {_gib(part['bytes']):>8}  {part['what']}"
                for part in row["largest"] + row.get("arrays", [])
            ]
            lines += [f"  {row['refused']}"] if "refused" in row else []
    if topology.chip.platform == "cpu" and topology.kind != "cpu":
        lines += [
            "",
            (
                f"compiled for a CPU in the place of {topology.kind}: without its fused attention,"
                " temporaries are larger than there"
            ),
        ]
    return "\n".join(lines)


def _gib(size: float | None) -> str:
    if size is None:
        return "-"
    return f"{size / GIB:,.0f}" if size >= 1000 * GIB else f"{size / GIB:.3g}"


if __name__ == "__main__":
    main()
