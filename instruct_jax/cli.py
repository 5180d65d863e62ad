"""The commands.  Exit codes: 0 done, or stopped by SIGTERM; 1 a loss that is not finite or a lost
host; 2 bad config or data, or a disk that takes no more; 3 a plan that does not fit; 130 Ctrl-C.
Every mistake is one message.

Nothing heavy is imported before the command is known, so that --help is quick.
"""

import argparse
import contextlib
import errno
import importlib.util
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NO_WRITING = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
KEYS = "Any key of the file can be set here: --ppo.kl_coef 0.05 --model.kv_heads null --seed=3"
KEYS_OF_CLEAN = "Any key of the file can be set here: --seed 1 --per_user null --overlap.ngram 8"
CHAT = (
    "Keys of the config of a run can be set here too: --text.template, --data.pad_token,"
    " --data.eos_token, --mesh.tensor 2"
)
Commands = argparse._SubParsersAction  # what add_subparsers returns


class _ShowVersion(argparse.Action):
    """--version: prints "instruct-jax 0.2.0 (jax 0.10.2, python 3.11.7)" and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import importlib.metadata
        import platform

        ours = importlib.metadata.version("instruct-jax")
        jax = importlib.metadata.version("jax")
        print(f"instruct-jax {ours} (jax {jax}, python {platform.python_version()})")
        parser.exit()


class _Once(argparse.Action):
    """An option that is given once: the last of two would win without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice; give it once, a list as a,b")
        setattr(namespace, self.dest, values)


class Terminated(BaseException):
    """SIGTERM; no Exception, so that nothing on its way takes it for an error of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        args, rest = _parser().parse_known_args(argv)
    except SystemExit as done:  # --help, or a wrong command
        return int(done.code or 0)
    _silence_libraries()
    try:
        return args.work(args, rest) or 0
    except (KeyboardInterrupt, Terminated) as stop:
        name, code = ("SIGTERM", 0) if isinstance(stop, Terminated) else ("Ctrl-C", 130)
        print(
            f"stopped by {name}; run the same command again to resume from the last checkpoint",
            file=sys.stderr,
        )
        return code
    except Exception as error:
        return _explain(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instruct-jax",
        description="InstructGPT in JAX: the whole of learning from human feedback.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version",
        action=_ShowVersion,
        nargs=0,
        help="the versions of this project, jax and python",
    )
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands (each has its own --help)"
    )
    _commands_of_configs(commands)
    for add in (_add_import, _add_export, _add_sample, _add_chat):
        add(commands)
    for add in (_add_label, _add_study, _add_replay, _add_data, _add_report):
        add(commands)
    return parser


def _commands_of_configs(commands: Commands) -> None:
    for name, work, text in (
        ("run", _run, "runs a config, all of it or some stages; the same command again resumes"),
        (
            "check",
            _check,
            "validates a config and its data and prints what would run; runs nothing",
        ),
        (
            "plan",
            _plan,
            (
                "compiles every step of a config for devices that need not be here: does it fit,"
                " and how fast can it be"
            ),
        ),
    ):
        needed = " --topology KIND:SIZE" if name == "plan" else ""
        usage = f"instruct-jax {name} --config FILE{needed} [--stages a,b] [--dotted.key value ...]"
        command = commands.add_parser(
            name, help=text, description=text, usage=usage, epilog=KEYS, allow_abbrev=False
        )
        command.add_argument(
            "--config",
            action=_Once,
            required=True,
            metavar="FILE",
            help="a YAML file, such as configs/quickstart.yaml",
        )
        text = "only these stages of the config, by their names there"
        command.add_argument("--stages", action=_Once, metavar="a,b", help=text)
        if name != "plan":
            text = "makes these stages again, and all that was made from them"
            command.add_argument("--redo", action=_Once, metavar="a,b", help=text)
        if name == "run":
            hosts = command.add_argument_group(
                "several processes",
                "start the same command on every host; TPU VMs, SLURM, Open MPI and Kubernetes need"
                " none of these",
            )
            hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
            hosts.add_argument("--processes", type=int, metavar="N", help="how many there are")
            hosts.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
        if name == "check":
            text = (
                "also the tokens of the first N records of each kind (3), and what is learned of"
                " them"
            )
            command.add_argument(
                "--show-tokens", metavar="N", nargs="?", type=int, const=3, help=text
            )
        if name == "plan":
            text = (
                "v5e:4x4, v5p:4x4x4, v6e:4x4 (a slice), a100:8, h100:8, h200:8, cpu:8 (a number of"
                " devices)"
            )
            command.add_argument("--topology", required=True, metavar="KIND:SIZE", help=text)
            command.add_argument(
                "--json", action="store_true", help="the plan as JSON instead of tables"
            )
        command.set_defaults(work=work)


def _add_import(commands: Commands) -> None:
    text = (
        "reads a model of Hugging Face, once for many runs: they start from it by base: OUT:import"
    )
    usage = (
        "instruct-jax import FOLDER_OR_NAME --out OUT [--model.dtype bfloat16] [--data.pad_token"
        " TOKEN]"
    )
    command = commands.add_parser(
        "import", help=text, description=text, usage=usage, allow_abbrev=False
    )
    command.add_argument(
        "base",
        metavar="FOLDER_OR_NAME",
        help="a folder with config.json and safetensors, or OWNER/NAME of the hub",
    )
    command.add_argument(
        "--out",
        required=True,
        metavar="OUT",
        help="a new run folder whose stage import is the model",
    )
    command.set_defaults(work=_import)


def _add_export(commands: Commands) -> None:
    text = "writes a model of a run as a folder that transformers, vllm and peft load"
    usage = "instruct-jax export RUN:STAGE --out FOLDER [--dtype bfloat16] [--mesh.fsdp 1]"
    command = commands.add_parser(
        "export", help=text, description=text, usage=usage, allow_abbrev=False
    )
    command.add_argument("model", metavar="RUN:STAGE", help="a stage, such as runs/quickstart:ppo")
    command.add_argument("--stage", help=argparse.SUPPRESS)  # the spelling of before
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights in it"
    )
    command.add_argument(
        "--adapter",
        action="store_true",
        help="only the adapters of a run with lora, as a folder of peft",
    )
    command.set_defaults(work=_export)


def _add_sample(commands: Commands) -> None:
    text = (
        "writes completions of prompts by one model or several, for people to rank"
        " (instruct-jax label)"
    )
    usage = (
        "instruct-jax sample MODEL [MODEL ...] --prompts FILE --out samples.jsonl [--completions 4]"
        " [--max_tokens 256]"
    )
    command = commands.add_parser(
        "sample", help=text, description=text, usage=usage, allow_abbrev=False
    )
    command.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="RUN, RUN:STAGE, or a Hugging Face folder or OWNER/NAME",
    )
    command.add_argument(
        "--prompts",
        required=True,
        action="append",
        metavar="FILE",
        help="prompts records, or a data set (docs/records.md)",
    )
    command.add_argument("--out", required=True, metavar="FILE", type=Path, help="a new file")
    command.add_argument(
        "--completions",
        type=int,
        default=4,
        metavar="K",
        help="of each model to each prompt (default 4)",
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="0 takes the likeliest token (default 1)",
    )
    command.add_argument(
        "--max_tokens",
        type=int,
        metavar="N",
        help="the longest completion (default 256, or half of the context)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.set_defaults(work=_sample)


def _add_chat(commands: Commands) -> None:
    text = "talks with a model in the terminal, or with two side by side"
    usage = (
        "instruct-jax chat MODEL [MODEL] [--reward MODEL] [--temperature 0.7] [--max_tokens N]"
        " [--model.dtype bfloat16]"
    )
    command = commands.add_parser(
        "chat", help=text, description=text, usage=usage, epilog=CHAT, allow_abbrev=False
    )
    command.add_argument(
        "model", metavar="MODEL", help="RUN, RUN:STAGE, or a Hugging Face folder or OWNER/NAME"
    )
    command.add_argument(
        "other", metavar="MODEL", nargs="?", help="a second one, which answers too"
    )
    command.add_argument(
        "--reward",
        metavar="MODEL",
        help="RUN, or a folder for sequence classification: shows the reward of each reply",
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="0 takes the likeliest token (default 1)",
    )
    command.add_argument(
        "--max_tokens",
        type=int,
        metavar="N",
        help="the longest reply (default 256, or half of the context)",
    )
    command.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens that are remembered, replies included (default the model's, or 4096)",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.set_defaults(work=_chat)


def _add_label(commands: Commands) -> None:
    text = (
        "serves the page on which people rank samples and write demonstrations; invites them, and"
        " exports their answers"
    )
    commands.add_parser("label", help=text, add_help=False).set_defaults(work=_label)


def _add_study(commands: Commands) -> None:
    text = (
        "runs the arms of a study, one after the other, and compares them; the same command again"
        " resumes"
    )
    command = commands.add_parser(
        "study",
        help=text,
        description=text,
        usage="instruct-jax study --config FILE [--out FOLDER] [--seeds [0,1]]",
    )
    command.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a YAML file, such as configs/over_optimisation.yaml",
    )
    command.set_defaults(work=_study)


def _add_replay(commands: Commands) -> None:
    text = (
        "runs a step that was not finite again, from what the run kept of it; exit code 1 where it"
        " still is not finite"
    )
    command = commands.add_parser("replay", help=text, description=text, allow_abbrev=False)
    command.add_argument(
        "folder",
        metavar="FOLDER",
        type=Path,
        help="a run folder, or the STAGE/nonfinite_step_N in it that the run named",
    )
    command.set_defaults(work=_replay)


def _add_data(commands: Commands) -> None:
    text = "works on files of records before a run (docs/hygiene.md)"
    command = commands.add_parser("data", help=text, description=text, allow_abbrev=False)
    actions = command.add_subparsers(required=True, metavar="ACTION", title="actions")
    text = (
        "drops duplicates and what is too long, splits by user, masks personal data; writes train,"
        " valid and test files and a summary"
    )
    usage = "instruct-jax data clean --config FILE [--overwrite] [--dotted.key value ...]"
    command = actions.add_parser(
        "clean", help=text, description=text, usage=usage, epilog=KEYS_OF_CLEAN, allow_abbrev=False
    )
    command.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML file, such as configs/clean.yaml"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="makes the folder again where it exists"
    )
    command.set_defaults(work=_clean)


def _add_report(commands: Commands) -> None:
    text = "builds report.html of a run folder again"
    command = commands.add_parser("report", help=text, description=text, allow_abbrev=False)
    command.add_argument(
        "folder", metavar="FOLDER", type=Path, help="a run folder, such as runs/quickstart"
    )
    command.set_defaults(work=_report)


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM raises Terminated.  While a stage trains, its loop takes the signal, to finish the
    step and save; jax does, of several processes.
    """

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_sigterm_stops()
def _run(args: argparse.Namespace, overrides: list[str]) -> None:
    config, stages = _load(args, overrides)
    from instruct_jax.chain.preflight import check_config, check_mesh, validate
    from instruct_jax.chain.rounds import rounds_of

    redo = _names(args.redo) or ()
    check_config(config, stages, redo)
    first, *later = rounds_of(config)
    validate(first, stages, redo)
    import jax

    from instruct_jax.runtime import hosts

    hosts.initialize(args.coordinator, args.processes, args.process)
    check_mesh(first, jax.device_count(), stages)
    from instruct_jax.chain.run import run

    try:
        folder = run(first, stages, redo)
        for number, following in enumerate(later, 2):
            if hosts.is_main():
                print(f"round {number} of {len(later) + 1}", flush=True)
            own = stages and [name for name in stages if name in following.stages]
            again = [name for name in redo if name in following.stages]
            validate(following, own, again)
            folder = run(following, own, again)
    except jax.errors.JaxRuntimeError as error:
        explained = hosts.explained(error)
        if explained is None:
            raise
        raise explained from error
    if hosts.is_main():
        report = f", see {folder / 'report.html'}" if stages is None else ""
        print(f"done: {folder}{report}")


def _import(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.chain.preflight import check_mesh, validate
    from instruct_jax.chain.read import imported_as

    config = imported_as(args.base, args.out, overrides)
    stages = list(config.stages)
    _refuse_other_run(config, args.out)
    validate(config, stages)
    import jax

    check_mesh(config, jax.device_count(), stages)
    from instruct_jax.chain.run import run

    print(f"done: {run(config, stages)}; start from it by base: {args.out}:{stages[0]}")


def _refuse_other_run(config: Any, out: str) -> None:
    """ConfigError where `out` is the folder of a run with other stages."""
    from instruct_jax.errors import ConfigError
    from instruct_jax.runtime.folders import check_run, read_config

    if not check_run(Path(out)):
        return
    there = list(read_config(Path(out) / "config.yaml").get("stages", {}))
    if there != list(config.stages):
        raise ConfigError(
            f"--out {out} is a run with the stages {', '.join(there)}; choose a new folder"
        )


def _export(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.errors import ConfigError

    if args.stage is not None:
        raise ConfigError(
            f"--stage {args.stage}: name the stage behind the run: instruct-jax export"
            f" {args.model}:{args.stage} --out {args.out}"
        )
    from instruct_jax.commands.export import export

    export(args.model, args.out, args.dtype, overrides, adapter=args.adapter)
    print(f"done: {args.out}")


def _sample(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.commands.sample import sample

    options = {
        key: getattr(args, key) for key in ("completions", "temperature", "max_tokens", "seed")
    }
    count = sample(args.models, args.prompts, args.out, overrides, **options)
    print(f"done: {count} prompts in {args.out}")


def _chat(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.commands.chat import chat

    names = [args.model] if args.other is None else [args.model, args.other]
    options = {
        key: getattr(args, key)
        for key in ("reward", "temperature", "max_tokens", "context", "seed")
    }
    with contextlib.suppress(BrokenPipeError):
        chat(names, overrides, **options)


@_sigterm_stops()
def _label(args: argparse.Namespace, rest: list[str]) -> int:
    from instruct_jax.feedback.command import label

    try:
        label(rest)
    except SystemExit as done:  # --help, or a wrong action
        return int(done.code or 0)
    except (KeyboardInterrupt, Terminated):
        print("stopped", file=sys.stderr)
    return 0


def _study(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.commands.study import load_study, run_study

    study, runs = load_study(Path(args.config), overrides)
    run_study(study, runs)
    from instruct_jax.report.study import build_study

    print(f"done: {study.out}, see {build_study(Path(study.out), runs)}")


def _check(args: argparse.Namespace, overrides: list[str]) -> None:
    if _is_study(args):
        from instruct_jax.commands.study import load_study

        print(
            *(
                f"instruct-jax {shlex.join(run.command)}"
                for run in load_study(Path(args.config), overrides)[1]
            ),
            sep="\n",
        )
        return
    config, stages = _load(args, overrides)
    from instruct_jax.commands.check import check

    with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
        print(check(config, stages, _names(args.redo) or ()), flush=True)
        if args.show_tokens is not None:
            from instruct_jax.commands.show_tokens import show_tokens

            show_tokens(config, args.show_tokens)


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    config, stages = _load(args, overrides)
    from instruct_jax.chain.context import Run
    from instruct_jax.chain.kinds import KINDS
    from instruct_jax.chain.preflight import check_config, check_mesh, check_stages
    from instruct_jax.errors import require
    from instruct_jax.plan.plan import plan, table
    from instruct_jax.plan.programs import with_programs
    from instruct_jax.plan.topology import check_compiler, parse_topology

    check_config(config, stages)
    topology = parse_topology(args.topology)
    check_compiler(topology)
    check_mesh(config, topology.devices, stages)
    chosen = with_programs(config, stages)
    kinds = [name for name, kind in KINDS.items() if kind.programs is not None]
    require(
        bool(chosen),
        f"--stages {','.join(stages or config.stages)} has no steps to compile; name stages of kind"
        f" {', '.join(kinds[:-1])} or {kinds[-1]}",
    )
    check_stages(Run(config, Path(config.out), abstract=True), chosen)
    rows = plan(config, chosen, topology)
    if args.json:
        found = {"topology": topology.name, "devices": topology.devices, "steps": rows}
        print(json.dumps(found))
    else:
        print(table(rows, config, topology))
    return 0 if all(row["fits"] for row in rows) else 3


def _replay(args: argparse.Namespace, rest: list[str]) -> int:
    import math

    from instruct_jax.errors import ConfigError

    if rest:
        raise ConfigError(f"replay takes one folder and nothing else; remove {' '.join(rest)}")
    from instruct_jax.commands.replay import replay

    place, row = replay(args.folder)
    print(place, *(f"  {name} {value:.6g}" for name, value in row.items()), sep="\n")
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    print(f"not finite again: {', '.join(bad)}" if bad else "all metrics are finite now")
    return 1 if bad else 0


def _clean(args: argparse.Namespace, overrides: list[str]) -> None:
    from instruct_jax.chain.load import load_config
    from instruct_jax.cleaning.clean import CleanConfig, clean

    config = load_config(CleanConfig, args.config, overrides)
    print(clean(config, overwrite=args.overwrite))
    print(f"done: {config.out}, see {config.out}/summary.md")


def _report(args: argparse.Namespace, rest: list[str]) -> None:
    from instruct_jax.errors import RunError

    if rest:
        raise RunError(f"report takes one run folder and nothing else; remove {' '.join(rest)}")
    if not (args.folder / "config.yaml").is_file():
        raise RunError(
            f"{args.folder} is no run folder, it has no config.yaml: give the folder named by `out`"
            " in the config"
        )
    from instruct_jax.report.page import build

    print(build(args.folder))


def _is_study(args: argparse.Namespace) -> bool:
    from instruct_jax.chain.load import read_yaml

    return "arms" in read_yaml(Path(args.config))


def _load(args: argparse.Namespace, overrides: list[str]):
    from instruct_jax.chain.read import load_run
    from instruct_jax.errors import ConfigError

    if _is_study(args):
        raise ConfigError(
            f"{args.config}: `arms` make it a study, not a run; use instruct-jax study --config"
            f" {args.config}"
        )
    return load_run(args.config, overrides), _names(args.stages)


def _names(text: str | None) -> list[str] | None:
    """The names of --stages a,b; None where the option is not given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def _explain(error: Exception) -> int:
    """The exit code of an error that is no bug, after its message.  A bug is raised again."""
    from instruct_jax.errors import InstructError
    from instruct_jax.runtime import hosts
    from instruct_jax.runtime.signals import Interrupted

    if isinstance(error, Interrupted):
        if hosts.is_main():
            print(error, file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in NO_WRITING and error.filename:
        print(
            f"error: cannot write {error.filename}: {error.strerror}.  Make room on the disk, or"
            " let this user write there, and run the same command again: it resumes from the last"
            " checkpoint",
            file=sys.stderr,
        )
        return hosts.exit_now(2)
    error = hosts.without_devices(error) or error
    if isinstance(error, InstructError):
        print(f"error: {error}", file=sys.stderr)
        return hosts.exit_now(error.exit_code)
    if hosts.is_multihost():
        traceback.print_exception(error)
        return hosts.exit_now(1)
    raise error


def _silence_libraries() -> None:
    """Their start-up remarks ("PyTorch was not found") and progress notes would bury our own;
    errors still show.
    """
    defaults = _without_tpu() | {
        "TRANSFORMERS_VERBOSITY": "error",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "GRPC_VERBOSITY": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import absl.logging  # of orbax

    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


def _without_tpu() -> dict[str, str]:
    """With libtpu installed and no TPU in the machine, jax would look for one at length and
    complain; other accelerators stay.
    """
    wanted = importlib.util.find_spec("libtpu") and not importlib.util.find_spec("jax_plugins")
    return (
        {"JAX_PLATFORMS": "cpu"}
        if wanted and not [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
        else {}
    )
