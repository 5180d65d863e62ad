"""The command `label`: serves the labeling page, and does all else with its store."""

import argparse
import importlib.util
import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from instruct_jax.data import readers, schemas
from instruct_jax.errors import ConfigError, require
from instruct_jax.feedback import accounts, progress, store, tasks
from instruct_jax.runtime.folders import require_local
from instruct_jax.text import plural

EXTRA = ("itsdangerous", "krippendorff", "markdown_it", "starlette", "uvicorn")
# seconds; longer than a proxy keeps its idle connections, so that none is closed under a request
KEEP_ALIVE = 75
ACTIONS = ("serve", "invite", "close", "add", "export", "import", "agreement", "status")
OTHER_TOOLS = ("label-studio", "argilla")
FORMS = ("records", "datasets", *OTHER_TOOLS)


def label(argv: Sequence[str]) -> None:
    """Runs one action of the command; without a name it is `serve`."""
    known = (*ACTIONS, "-h", "--help")
    named = bool(argv) and (argv[0] in known or not argv[0].startswith("-"))
    args = _parser().parse_args(argv if named else ["serve", *argv])
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    require(not missing, f"the labeling page needs {', '.join(missing)}; pip install '.[label]'")
    for key in ("store", "out"):
        if key in args:
            require_local(getattr(args, key), f"--{key}")
    args.work(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="instruct-jax label",
        description="The labeling page (docs/labeling.md).",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(
        required=True,
        metavar="ACTION",
        title="actions (each has its own --help; without one it is serve)",
    )

    def action(
        name: str,
        work: Callable[[argparse.Namespace], None],
        text: str,
    ) -> argparse.ArgumentParser:
        new = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        new.set_defaults(work=work)
        if name != "import":
            text = "such as labels.db, one SQLite file"
            new.add_argument("--store", required=True, type=Path, metavar="FILE", help=text)
        return new

    serve = action("serve", _serve, "serves the page; --samples are added to the store first")
    _samples_arguments(serve, required=False)
    _serve_arguments(serve)

    invite = action(
        "invite",
        _invite,
        "makes an account, and prints the link with which its owner begins; again for one who"
        " forgot the password",
    )
    close = action("close", _close, "ends an account; its answers stay")
    for each in (invite, close):
        each.add_argument("name", metavar="NAME", help="with which the labeler logs in")
    invite.add_argument(
        "--group",
        choices=("training", "held-out"),
        default="training",
        help="held-out labelers make no training data",
    )
    invite.add_argument(
        "--admin", action="store_true", help="may see and do all that the admin's pages show"
    )

    add = action(
        "add", _add, "adds samples to a store; those that it has already are left as they are"
    )
    _samples_arguments(add, required=True)

    export = action(
        "export",
        _export,
        "writes rankings.jsonl, demonstrations.jsonl, comparisons.jsonl and what was skipped, or"
        " another form",
    )
    export.add_argument(
        "--format",
        choices=FORMS,
        default="records",
        help="records that the stages read (default), folders of Hugging Face datasets, or what"
        " Label Studio or Argilla takes in",
    )
    import_ = action(
        "import",
        _import,
        "writes the answers given in Label Studio or Argilla as rankings.jsonl and"
        " demonstrations.jsonl",
    )
    import_.add_argument(
        "file", type=Path, metavar="FILE", help="the JSON that the other tool exports"
    )
    import_.add_argument("--format", choices=OTHER_TOOLS, required=True, help="which tool")
    import_.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="reads this question (control) and others named so, and leaves the rest out",
    )
    import_.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="of a question, a field, a bucket, or a value of a ranking: answer=demonstration,"
        " question=prompt, good=rank-1, 1=Response 1; once for each",
    )
    _on_bad_record_argument(import_, "answers")
    for each in (export, import_):
        each.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="a new folder")

    action(
        "agreement",
        _agreement,
        "says how far labelers agree: with each other, with held-out labelers, with researchers",
    )
    action("status", _status, "says how far the tasks and the labelers are")
    return parser


def _samples_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--samples",
        action="append",
        metavar="FILE",
        required=required,
        help="prompts, with completions or without",
    )
    parser.add_argument(
        "--task",
        choices=("rank", "compare"),
        default="rank",
        help="what is done with completions (default rank)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the new tasks, for several labelers (default 0)",
    )
    parser.add_argument(
        "--labelers", type=int, default=3, metavar="N", help="who get each of these (default 3)"
    )
    _on_bad_record_argument(parser, "samples")


def _on_bad_record_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--on_bad_record",
        choices=("error", "skip"),
        default="error",
        help=f"skip: leave bad {what} out, and list them",
    )


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (default 127.0.0.1, this machine only)",
    )
    parser.add_argument("--port", type=int, default=8000, help="(default 8000; 0 takes a free one)")
    parser.add_argument(
        "--url",
        help="where labelers find the page, such as https://label.example.org; invitations begin"
        " with it",
    )
    parser.add_argument(
        "--lease",
        type=float,
        default=60.0,
        metavar="MINUTES",
        help="a task that is not answered goes to others (default 60)",
    )


def _serve(args: argparse.Namespace) -> None:
    require(args.lease > 0, f"--lease {args.lease} must be positive: minutes")
    require(
        args.url is None or args.url.startswith(("http://", "https://")),
        f"--url {args.url} must begin with https:// or http://",
    )
    if args.samples:
        _add(args)
    import uvicorn

    from instruct_jax.feedback.app import create_app

    with closing(store.open_store(args.store)) as db, _listen(args.host, args.port) as listening:
        host, port = listening.getsockname()[:2]
        if args.url:
            url = args.url.rstrip("/")
        else:
            name = f"[{host}]" if ":" in host else host
            url = f"http://{name}:{port}"
        app = create_app(args.store, lease=60 * args.lease, https=url.startswith("https://"))
        config = uvicorn.Config(
            app,
            timeout_keep_alive=KEEP_ALIVE,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        store.set_setting(db, "url", url)
        print(f"{url}  ({reach(host)})")
        if not db.execute("SELECT 1 FROM labelers WHERE admin").fetchone():
            print(f"no admin yet: instruct-jax label invite NAME --admin --store {args.store}")
        print("Ctrl-C stops it; answers that were stored stay stored", flush=True)
        server.run([listening])


def _listen(host: str, port: int) -> socket.socket:
    require(0 <= port < 65536, f"--port {port} must lie in [0, 65535]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); choose another"
        ) from error


def reach(host: str) -> str:
    """Who can reach a page that listens on this address, in words."""
    if ipaddress.ip_address(host).is_loopback:
        return (
            "this machine only; labelers elsewhere come by a reverse proxy with TLS, see"
            " docs/labeling.md"
        )
    return (
        f"listens on {host}: other machines reach it, and passwords travel unencrypted unless a"
        " reverse proxy with TLS stands before it"
    )


def _add(args: argparse.Namespace) -> None:
    require(
        0 <= args.overlap <= 1, f"--overlap {args.overlap} must lie in [0, 1]: a share of the tasks"
    )
    require(
        args.labelers >= 2,
        f"--labelers {args.labelers} must be at least 2: those who get the same task",
    )

    compare = args.task == "compare"

    def checked(raw: schemas.Record) -> schemas.Record:
        """The record as it is, where it makes a task."""
        tasks.task(raw, compare=compare)
        return raw

    new_tasks = []
    for path in args.samples:
        for raw in readers.read(checked, path, on_bad_record=args.on_bad_record):
            new_tasks.append(tasks.task(raw, compare=compare))
    with closing(store.create_store(args.store)) as db:
        added = store.add_tasks(db, new_tasks, labelers=args.labelers, overlap=args.overlap)
    rest = "; the others were there" if added < len(new_tasks) else ""
    print(f"{args.store}: {added} new tasks of {len(new_tasks)} samples{rest}")


def _invite(args: argparse.Namespace) -> None:
    with closing(store.open_store(args.store)) as db:
        now = time.time()
        token = accounts.invite(db, args.name, args.group, admin=args.admin, now=now)
        url = store.setting(db, "url") or "http://127.0.0.1:8000"
        print(f"{url}/join/{token}")
    print(
        f"for {args.name}: works once, within 14 days; send it so that only {args.name} reads it",
        file=sys.stderr,
    )


def _close(args: argparse.Namespace) -> None:
    with closing(store.open_store(args.store)) as db:
        require(
            accounts.exists(db, args.name),
            f"NAME={args.name!r} has no account in {args.store}; `label status` lists them",
        )
        accounts.close(db, args.name)
    print(f"{args.name} cannot log in any more")


def _export(args: argparse.Namespace) -> None:
    from instruct_jax.feedback import files

    with closing(store.open_store(args.store)) as db:
        answers = store.answers(db)
        written = files.write(args.format, answers, store.tasks(db), args.out)
    _print(args.out, written)


def _import(args: argparse.Namespace) -> None:
    from instruct_jax.feedback import converters, files

    into = converters.Import(
        only=args.only,
        rename=converters.parse_renames(args.rename),
        skip=args.on_bad_record == "skip",
    )
    _print(args.out, files.read(args.format, args.file, args.out, into))
    if into.left_out:
        print(f"left out: {', '.join(into.left_out_lines())}")
    if into.dropped:
        print(f"dropped: {plural(len(into.dropped), 'bad answer')}", *into.dropped, sep="\n  ")


def _print(out: Path, written: dict[str, int]) -> None:
    for name, count in written.items():
        print(f"{out / name}: {count} records")


def _agreement(args: argparse.Namespace) -> None:
    from instruct_jax.feedback import agreement

    with closing(store.open_store(args.store)) as db:
        print(agreement.as_text(store.answers(db)))


def _status(args: argparse.Namespace) -> None:
    with closing(store.open_store(args.store)) as db:
        for line in progress.by_kind(db):
            print(
                f"{line.kind}: {line.tasks} tasks, {line.finished} finished, {line.answers}"
                f" answers, {line.skipped} skipped"
            )
        for row in progress.by_labeler(db):
            print(f"{row.name}: {row.team}, {row.answers} answers, {row.skipped} skipped")
