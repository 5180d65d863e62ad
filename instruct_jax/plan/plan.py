"""Every step of a config compiled ahead of time for devices that need not be here: what fits, what
it sends, how fast it can be.

The compiler works in a process of its own, with an environment of its own:
python -m instruct_jax.plan.plan < request
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
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from instruct_jax.chain.settings import RunConfig
from instruct_jax.config import MESH
from instruct_jax.plan.collectives import collectives
from instruct_jax.plan.costs import Work
from instruct_jax.plan.programs import Program, programs, work_of
from instruct_jax.plan.topology import GIB, CompilerError, Topology
from instruct_jax.runtime.progress import StageProgress
from instruct_jax.text import plural
from instruct_jax.text import table as text_table

Row = dict[str, Any]  # of one program; keys as in docs/plans.md, bytes are those of one device


def plan(config: RunConfig, stages: Sequence[str], topology: Topology) -> list[Row]:
    """A row for each program of the stages; says on stderr what it compiles.

    The config has passed preflight.check_mesh for so many devices.
    """
    request = pickle.dumps((config, tuple(stages), topology))
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "instruct_jax.plan.plan"],
            env=os.environ | topology.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert child.stdin is not None and child.stdout is not None
        with child:
            try:
                # a child that has ended already reads nothing; its exit code says so below
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(request)
                    child.stdin.close()
                rows = _receive(child.stdout)
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            log.seek(0)
            raise CompilerError(
                f"{topology.name}: the compiler stopped with code {child.returncode}:\n"
                f"{log.read()[-3000:]}"
            )
    return rows


def _receive(lines: Iterator[bytes]) -> list[Row]:
    """The rows that the compiling process sends: first how many, then each after its name."""
    total = int(next(lines, 0))
    rows = []
    with StageProgress("plan", step=0, total=total, console=Console(stderr=True)) as progress:
        for line in lines:
            answer = json.loads(line)
            if isinstance(answer, str):
                progress.note(f"compiles {answer}")
            else:
                rows.append(answer)
                progress.update(len(rows), {})
    return rows


def main() -> None:
    """In the process that compiles: reads a request, answers line by line."""
    config, stages, topology = pickle.load(sys.stdin.buffer)
    answers = sys.stdout
    sys.stdout = sys.stderr  # nothing else may print there

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    every = list(programs(config, stages, topology.describe()))
    answer(len(every))
    for program in every:
        answer(f"{program.stage}: {program.step}")
        answer(measure(program, topology))


def measure(program: Program, topology: Topology) -> Row:
    """Compiles it.

    `seconds` is the least that arithmetic, memory and links allow, whichever needs longest.
    """
    started = time.monotonic()
    sizes: dict[str, float] = {}
    counted: set[int] = set()
    for name, tree in program.here.items():
        sizes[name] = on_device(tree, counted)
    waiting = 0
    for name, tree in program.elsewhere.items():
        size = on_device(tree, counted)
        sizes[f"{name} (waiting)"] = size
        waiting += size
    work = work_of(program)
    row: Row = {
        "stage": program.stage,
        "step": program.step,
        "topology": topology.name,
        "devices": topology.devices,
        "parameters": program.parameters,
        "flops": work.flops,
        "memory": topology.memory,
        "elsewhere": waiting,
    }
    try:
        compiled = program.run.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row |= _refused(str(error), on_device(program.arguments))
    else:
        memory = compiled.memory_analysis()
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        row["arguments"] = memory.argument_size_in_bytes - given_again(program.arguments)
        row["temporaries"] = memory.temp_size_in_bytes + outputs
        row |= _speed(compiled.as_text(), work, topology)
    if "temporaries" in row:
        sizes["temporaries"] = row["temporaries"]
        row["peak"] = row["elsewhere"] + row["arguments"] + row["temporaries"]
    row["fits"] = "refused" not in row and row["peak"] <= row["memory"]
    row["largest"] = _largest(sizes)
    row["compile_seconds"] = round(time.monotonic() - started, 1)
    return row


def _largest(sizes: dict[str, float]) -> list[Row]:
    """The four largest parts by name."""
    named = [{"what": name, "bytes": size} for name, size in sizes.items() if size]
    return sorted(named, key=lambda part: -part["bytes"])[:4]


def on_device(tree: Any, counted: set[int] | None = None) -> int:
    """Bytes of abstract arrays with shardings on one device, those of `counted` (ids) left out.

    An array that is there twice counts once.  Keys are too small to count.
    """
    counted = set() if counted is None else counted
    size = 0
    for x in jax.tree.leaves(tree):
        if id(x) not in counted:
            counted.add(id(x))
            size += _bytes(x)
    return size


def given_again(arguments: Any) -> int:
    """Bytes of the arrays that a program takes more than once, beyond the first time: weights that
    two models share.  The compiler counts each time, and a device holds them once.
    """
    each_time = sum(_bytes(x) for x in jax.tree.leaves(arguments))
    return each_time - on_device(arguments)


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 0
    assert x.sharding is not None
    shard = x.sharding.shard_shape(x.shape)
    return math.prod(shard) * x.dtype.itemsize


def _speed(text: str, work: Work, topology: Topology) -> Row:
    """What the compiled program sends, and how fast it can be at best where rates are known."""
    kinds: dict[str, Row] = {}
    sent = 0.0
    for one in collectives(text):
        kind = kinds.setdefault(one.kind, {"times": 0, "bytes": 0})
        kind["times"] += one.times
        kind["bytes"] += one.total
        sent += one.sent
    computed = work.computed / topology.devices
    row: Row = {
        "collectives": kinds,
        "sent": sent,
        "traffic": work.traffic,
        "intensity": computed / work.traffic,
    }
    chip = topology.chip
    links = topology.links
    if chip.flops is None or chip.bandwidth is None or links is None:
        return row
    needs = {
        "arithmetic": computed / chip.flops,
        "memory": work.traffic / chip.bandwidth,
        "links": sent / links,
    }
    bound = max(needs, key=lambda name: needs[name])
    seconds = needs[bound]
    possible = seconds * topology.devices * chip.flops
    row["seconds"] = seconds
    row["bound"] = bound
    row["needs"] = needs
    row["mfu"] = work.flops / possible
    return row


def _refused(text: str, arguments: int) -> Row:
    """What a compiler says that found no place for a program; its largest arrays where it names
    them.
    """
    first_line = text.splitlines()[0]
    row: Row = {"arguments": arguments, "refused": first_line[:300]}
    # "... HLO temporaries (58.20G) exceeds available HBM", or "Used 21.07G of 15.75G hbm"
    temporaries = re.search(r"temporaries \(([\d.]+[KMGT]?)\) exceeds", text)
    used = re.search(r"Used ([\d.]+[KMGT]?) of", text)
    arrays = re.findall(r"Size: ([\d.]+[KMGT]?)\n\s+Operator: op_name=\"([^\"]*)\"", text)
    if temporaries is not None:
        row["temporaries"] = _size(temporaries[1])
    elif used is not None:
        row["temporaries"] = max(_size(used[1]) - arguments, 0.0)
    row["arrays"] = [{"what": name, "bytes": _size(size)} for size, name in arrays]
    return row


def _size(text: str) -> float:
    """Bytes of "58.20G"."""
    unit = " KMGT".index(text[-1]) if text[-1] in "KMGT" else 0
    number = float(text.rstrip("KMGT"))
    return number * 1024.0**unit


# --- the plan for people to read ---

MEMORY = (
    "memory of one device, GiB; waiting: what is no argument of the step, but lies there meanwhile"
)
MEMORY_HEAD = ("stage", "step", "arguments", "temporaries", "waiting", "peak", "fits", "largest")
WORK = (
    "work; sent and collectives: GiB of one device in one step; at best: the slowest of arithmetic,"
    " memory and links"
)
WORK_HEAD = (
    "stage",
    "step",
    "parameters",
    "model TFLOPs",
    "FLOPs/byte",
    "sent",
    "collectives, GiB in all",
    "at best",
    "MFU",
)


def table(rows: Sequence[Row], config: RunConfig, topology: Topology) -> str:
    """The plan as tables."""
    sizes = zip(MESH, config.mesh.shape(topology.devices), strict=True)
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes)
    devices = plural(topology.devices, "device")
    memory = [_memory(row) for row in rows]
    work = [_work(row) for row in rows if "sent" in row]
    lines = [
        f"{topology.name}: {devices} of {_gib(topology.memory)} GiB; mesh {mesh}",
        "",
        MEMORY,
        *text_table(MEMORY_HEAD, memory),
        "",
        WORK,
        *text_table(WORK_HEAD, work),
    ]
    for row in rows:
        if not row["fits"]:
            lines += _does_not_fit(row)
    if topology.chip.platform == "cpu" and topology.kind != "cpu":
        lines += [
            "",
            f"compiled for a CPU in the place of {topology.kind}: without its fused attention,"
            " temporaries are larger than there",
        ]
    return "\n".join(lines)


def _memory(row: Row) -> tuple[str, ...]:
    largest = []
    for part in row["largest"][:2]:
        size = _gib(part["bytes"])
        largest.append(f"{part['what']} {size}")
    return (
        row["stage"],
        row["step"],
        _gib(row.get("arguments")),
        _gib(row.get("temporaries")),
        _gib(row["elsewhere"]),
        _gib(row.get("peak")),
        "yes" if row["fits"] else "NO",
        ", ".join(largest),
    )


def _work(row: Row) -> tuple[str, ...]:
    sent = []
    for kind, part in row["collectives"].items():
        size = _gib(part["bytes"])
        sent.append(f"{part['times']:,} {kind} of {size}")
    seconds = "-"
    if "seconds" in row:
        seconds = f"{row['seconds']:.3g} s ({row['bound']})"
    return (
        row["stage"],
        row["step"],
        f"{row['parameters']:,}",
        f"{row['flops'] / 1e12:,.4g}",
        f"{row['intensity']:,.0f}",
        _gib(row["sent"]),
        ", ".join(sent) or "none",
        seconds,
        f"{row['mfu']:.0%}" if "mfu" in row else "-",
    )


def _does_not_fit(row: Row) -> list[str]:
    over = f"{_gib(row.get('peak'))} GiB of {_gib(row['memory'])}"
    step = f"{row['stage']} {row['step']}"
    lines = ["", f"{step} does not fit: {over}.  The largest parts, GiB:"]
    for part in row["largest"] + row.get("arrays", []):
        lines.append(f"  {_gib(part['bytes']):>8}  {part['what']}")
    if "refused" in row:
        lines.append(f"  {row['refused']}")
    return lines


def _gib(size: float | None) -> str:
    if size is None:
        return "-"
    gib = size / GIB
    return f"{gib:,.0f}" if gib >= 1000 else f"{gib:.3g}"


if __name__ == "__main__":
    main()
