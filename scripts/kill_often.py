"""Kills a run with SIGKILL at random moments of all its stages, starts it again with the same
command each time, and compares what comes out, bit for bit, with a run that was never killed:

    python scripts/kill_often.py --config tests/chain/tiny.yaml --out runs/kill_often --kills 50
    --seed 0 [--dotted.key value ...]

The kills are spread evenly over the stages.  Where a stage trains, every second one waits for a
checkpoint that is being written, every fourth for a random step; all others come at a random time,
in imports and set-up or in the first quarter of the stage.  A first run fills a compilation cache,
so that the others, and each restart, need not compile.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from instruct_jax.chain.graph import order
from instruct_jax.chain.read import load_run

LEFTOVERS = ("*.partial", "*.tmp", "*orbax-checkpoint-tmp*")
SEEN = ".killed"  # a file in what a kill left half written, so that it is counted once
TIMEOUT = 600  # seconds that one start may take


class Runs:
    """Starts of one command."""

    def __init__(self, arguments: list[str], stages: list[str], out: Path, cache: Path):
        self.out, self.stages = out, stages
        self._command = [sys.executable, "-m", "instruct_jax", "run", *arguments, "--out", str(out)]
        settings = {
            "DIR": str(cache.absolute()),
            "MIN_COMPILE_TIME_SECS": "0",
            "MIN_ENTRY_SIZE_BYTES": "0",
        }
        names = {"DIR": "JAX_COMPILATION_CACHE_DIR"}
        self._env = os.environ | {
            names.get(key, f"JAX_PERSISTENT_CACHE_{key}"): value for key, value in settings.items()
        }

    def start(self) -> subprocess.Popen:
        self._log = (self.out.parent / f"{self.out.name}.log").open("a")
        return subprocess.Popen(self._command, env=self._env, stdout=self._log, stderr=self._log)

    def finish(self) -> float:
        """Runs to the end; returns the seconds before the first stage began."""
        started = time.time()
        code = self.start().wait(TIMEOUT)
        if code:
            raise SystemExit(f"exit code {code}, see {self._log.name}")
        return (self.out / self.stages[0] / "inputs.json").stat().st_mtime - started

    def kill(self, stage: str, due: Callable[[float], bool], startup: float) -> str:
        """Kills the run when `due(seconds since the stage began or went on)`, or the stage is over;
        returns where it was.
        """
        # no other stage is to be done before it
        next_one = stage == self.stages[0] or (self.out / stage / "inputs.json").exists()
        began = time.monotonic() + startup if next_one else None
        process, limit = self.start(), time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < limit and not self.done(stage):
            if began is None and (self.out / stage / "inputs.json").exists():
                began = time.monotonic()
            if began is not None and due(time.monotonic() - began):
                break
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(
                f"{stage}: exit code {process.returncode} before the kill, see {self._log.name}"
            )
        half_written = [path for name in self.stages for path in writing(self.out / name)]
        for path in half_written:
            (path / SEEN).touch()
        return ("a checkpoint of " if half_written else "") + self.at()

    def at(self) -> str:
        """The stage that is next, or under way."""
        for name in self.stages:
            if (self.out / name / "inputs.json").exists() and not self.done(name):
                return name
        return "between stages"

    def done(self, stage: str) -> bool:
        return (self.out / stage / "done.json").exists()


def writing(stage: Path) -> list[Path]:
    """The half written checkpoint of the stage, if there is one that no earlier kill left."""
    return [
        path
        for path in stage.glob("checkpoints/*orbax-checkpoint-tmp*")
        if not (path / SEEN).exists()
    ]


def rows(stage: Path) -> int:
    """How many steps its metrics have."""
    path = stage / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def plan(
    whole: Runs, killed: Runs, kills: int, startup: float, rng: random.Random
) -> Iterator[tuple[str, str, Callable[[float], bool]]]:
    """(stage, moment, is it there) of each kill: the stages in their order, as many kills for each;
    those that a stage did not live to see are for the ones after it, and are left out where none
    is.
    """
    stages = whole.stages
    for i in range(kills):
        left = [name for name in stages[i * len(stages) // kills :] if not killed.done(name)]
        if not left:
            return
        stage, folder = left[0], killed.out / left[0]
        total = rows(whole.out / stage)
        # so many for each kill, and the stage is not over too soon
        steps = total * len(stages) // kills
        lasted = json.loads((whole.out / stage / "done.json").read_text())["seconds"]
        seconds = rng.uniform(-startup / 2, lasted / 4)
        reached = min(rows(folder) + rng.randint(1, max(steps, 1)), total - 1)
        if total and i % 2 == 0:
            yield (
                stage,
                "while it writes a checkpoint",
                lambda _, folder=folder: bool(writing(folder)),
            )
        elif total and i % 4 == 1:
            yield (
                stage,
                f"after step {reached}",
                lambda _, folder=folder, reached=reached: rows(folder) >= reached,
            )
        else:
            yield stage, f"{seconds:+.2f} s", lambda since, seconds=seconds: since >= seconds


def arrays(checkpoint: Path) -> dict[str, bytes]:
    """Name -> type, shape and bits of every array."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(checkpoint / "state").item_metadata.tree
        request = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(checkpoint / "state", restore_args=request)
    named = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): repr((x.dtype, x.shape)).encode() + x.tobytes()
        for path, x in named
    }


def compare(stages: list[str], whole: Path, killed: Path) -> dict[str, int]:
    """How many things are the same; SystemExit names the first that is not."""
    same: collections.Counter[str] = collections.Counter()

    def check(kind: str, name: object, a: object, b: object) -> None:
        if a != b:
            raise SystemExit(f"DIFFERENT: {kind} {name}")
        same[kind] += 1

    for pattern in LEFTOVERS:
        check("kinds of leftovers, all absent", pattern, [], list(killed.rglob(pattern)))
    for stage in stages:
        a, b = whole / stage, killed / stage
        done = [json.loads((folder / "done.json").read_text())["output"] for folder in (a, b)]
        check("outputs of stages", stage, *done)
        for path in sorted([*a.glob("*.json"), *a.glob("*.jsonl")]):
            if path.name not in (
                "done.json",
                "inputs.json",
                "sessions.jsonl",
                "phases.jsonl",
            ):  # these hold times, or hashes of times
                check("files", path, path.read_bytes(), (b / path.name).read_bytes())
        for name in ("metrics.jsonl", "phases.jsonl"):
            if (a / name).exists():
                rows = [
                    [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]
                    for folder in (a, b)
                ]
                check(
                    "files with each step once", b / name, rows[1], list(range(1, len(rows[0]) + 1))
                )
        if (a / "checkpoints").exists():
            steps = [
                sorted(entry.name for entry in (folder / "checkpoints").iterdir())
                for folder in (a, b)
            ]
            check("sets of checkpoints", stage, *steps)
            for step in steps[0]:
                ours, theirs = arrays(a / "checkpoints" / step), arrays(b / "checkpoints" / step)
                check("checkpoints", (stage, step), list(ours), list(theirs))
                for name in ours:
                    check("arrays", (stage, step, name), ours[name], theirs[name])
    return same


def main() -> None:
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax has remarks
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=lambda text: Path(text).absolute())
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, overrides = parser.parse_known_args()
    if args.out.exists():
        raise SystemExit(f"{args.out} is there already; remove it or choose another --out")
    args.out.mkdir(parents=True)
    started = time.monotonic()
    arguments = ["--config", args.config, *overrides]
    stages = order(load_run(args.config, [*overrides, "--out", str(args.out)]))
    first, whole, killed = (
        Runs(arguments, stages, args.out / name, args.out / "compiled")
        for name in ("first", "whole", "killed")
    )
    first.finish()
    startup = whole.finish()
    hit = collections.Counter()
    for stage, moment, due in plan(whole, killed, args.kills, startup, random.Random(args.seed)):
        where = killed.kill(stage, due, startup)
        hit[where] += 1
        print(f"kill {hit.total()}: {stage}, {moment}: hit {where}", flush=True)
    killed.finish()
    print(*(f"{count:4} x {where}" for where, count in hit.items()), sep="\n")
    same = compare(stages, whole.out, killed.out)
    print(*(f"same: {count} {kind}" for kind, count in same.items()), sep="\n")
    print(
        f"{hit.total()} kills, seed {args.seed}: the same, bit for bit, after"
        f" {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
