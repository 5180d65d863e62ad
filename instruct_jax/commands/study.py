"""A study: matched runs (arms) that share a base config and differ in what each one names, over the
same seeds.

Every arm is an ordinary run folder, OUT/ARM/seed_N, made by an ordinary `instruct-jax run` in a
process of its own.
"""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_jax.chain.load import load_config
from instruct_jax.chain.preflight import check_config
from instruct_jax.chain.read import load_run
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.errors import ConfigError, RunError, require
from instruct_jax.runtime.signals import Interrupted

Arm = dict[str, Any]
PROGRAM = [sys.executable, "-m", "instruct_jax"]


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    out: str  # the folder of all its runs
    base: str  # the config that every arm begins with; looked for beside the study's own file
    arms: dict[
        str, Arm
        # NAME: {dotted key of the run's config: value}, in the order in which they run; `stages:
        # [a,
        # b]` runs only these
    ]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        require(
            len(self.arms) >= 1 and len(self.seeds) >= 1,
            "arms and seeds must each name at least one",
        )
        require(
            len(set(self.seeds)) == len(self.seeds), f"seeds={list(self.seeds)} names one twice"
        )
        for name in self.arms:
            require(name == Path(name).name, f"arms.{name} names a folder, so it may hold no /")


@dataclasses.dataclass(frozen=True)
class ArmRun:
    arm: str
    seed: int
    command: list[str]  # what stands behind `instruct-jax`
    stages: tuple[str, ...]
    folder: Path  # of its last round

    @property
    def done(self) -> bool:
        """Are all of its stages finished, and the report where it runs them all?"""
        for name in self.stages:
            note = self.folder / name / "done.json"
            if not note.exists():
                return False
        runs_all = "--stages" not in self.command
        return not runs_all or (self.folder / "report.html").exists()


def load_study(path: Path, overrides: list[str]) -> tuple[StudyConfig, list[ArmRun]]:
    """The study and its runs, seed after seed; ConfigError names the arm whose config cannot be
    built.
    """
    study = load_config(StudyConfig, path, overrides)
    runs = []
    for seed in study.seeds:
        runs += _runs(study, path, seed)
    return study, runs


def _runs(study: StudyConfig, path: Path, seed: int) -> Iterator[ArmRun]:
    base = path.parent / study.base
    for name, arm in study.arms.items():
        folder = Path(study.out) / name / f"seed_{seed}"
        values: Arm = {"out": str(folder), "seed": seed}
        for key, value in arm.items():
            if not (key == "stages" and isinstance(value, list)):
                values[key] = _filled(value, study.out, seed)
        overrides = []
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            overrides += [f"--{key}", text]
        try:
            config = load_run(base, overrides)
            picked = arm.get("stages")
            stages = tuple(picked if isinstance(picked, list) else config.stages)
            require(len(stages) > 0, "stages=[] must name at least one")
            check_config(config, stages)
        except ConfigError as error:
            reason = str(error).removeprefix("command line: ")
            raise ConfigError(f"{path}: arms.{name}: {reason}") from error
        if isinstance(picked, list):
            overrides = ["--stages", ",".join(stages), *overrides]
        last = rounds_of(config)[-1]
        run = [n for n in stages if n in last.stages]
        command = ["run", "--config", str(base), *overrides]
        yield ArmRun(name, seed, command, tuple(run), Path(last.out))


def _filled(value: Any, out: str, seed: int) -> Any:
    """`{out}` and `{seed}` in any text of a value stand for the study's folder and the seed of the
    run.
    """
    if isinstance(value, dict):
        return {key: _filled(part, out, seed) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, out, seed) for part in value]
    if isinstance(value, str):
        value = value.replace("{out}", out)
        return value.replace("{seed}", str(seed))
    return value


def run_study(study: StudyConfig, runs: list[ArmRun]) -> None:
    """Runs what is not done.

    The first run that fails ends the study; the same command resumes there.
    """
    for number, run in enumerate(runs):
        if run.done:
            continue
        command = shlex.join(run.command)
        print(f"[{number + 1}/{len(runs)}] instruct-jax {command}", flush=True)
        code = _wait(run.command, Path(study.out) / "compiled")
        if code == 130 or (code == 0 and not run.done):
            raise Interrupted("the study was stopped; the same command resumes it", code)
        if code:
            raise RunError(
                f"arms.{run.arm}, seed {run.seed}: exit code {code}, see above; fix it and run the"
                " same command again"
            )


def _wait(command: list[str], compiled: Path) -> int:
    """Exit code of the command.

    Signals are the child's to answer: it saves and leaves (0 after SIGTERM), then so does the
    study.
    """
    # most arms run the same programs
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled.absolute())}
    with subprocess.Popen([*PROGRAM, *command], env=env) as child:
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:  # Ctrl-C reached the child as well
                    continue
        finally:
            signal.signal(signal.SIGTERM, before)
