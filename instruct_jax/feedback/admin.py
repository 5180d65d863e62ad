"""The pages of admins.

They show progress, labelers and how far they agree, every answer, invitations, instructions, and
the export.
"""

import collections
import contextlib
import functools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response
from starlette.routing import Route

from instruct_jax.errors import ConfigError
from instruct_jax.feedback import accounts, agreement, instructions, plots, progress, store
from instruct_jax.feedback.agreement import Screening, Share
from instruct_jax.feedback.records import FILES, export
from instruct_jax.feedback.tasks import FLAGS, clean
from instruct_jax.feedback.web import NOT_STORED, Site, Visit, route, to

HOURS, BINS = 48, 8  # of the plots
ROWS = 50  # answers on a page


def routes(site: Site) -> list[Route]:
    """The routes of the pages of admins."""
    return [
        route(site, "/admin", overview, who="admin"),
        route(site, "/admin/invite", overview, post=invite, who="admin"),
        route(site, "/admin/close", overview, post=close, who="admin"),
        route(site, "/admin/instructions", edit_instructions, post=write_instructions, who="admin"),
        route(site, "/admin/answers", browse, who="admin"),
        route(site, "/admin/answer", one_answer, who="admin"),
        route(site, "/admin/export/{name}", download, who="admin"),
    ]


class Measured(NamedTuple):
    """Measures that take all answers to compute."""

    seconds: dict[str, float]  # the median of each labeler
    agreement: dict[str, Share]  # of each labeler with all others
    groups: dict[str, Share]
    over_time: list[tuple[float, Share]]
    screening: dict[str, Screening]


@functools.lru_cache(maxsize=1)
def _measured(path: Path, answers: int) -> Measured:
    """The measures of the store at `path`.

    `answers`, how many there are, is the key of the cache: the measures are made again when there
    are more.
    """
    with contextlib.closing(store.open_store(path)) as db:
        given = store.answers(db)
    per_task = collections.Counter(answer.task_id for answer in given)
    shared = [answer for answer in given if per_task[answer.task_id] > 1]
    return Measured(
        progress.median_seconds(given),
        agreement.by_labeler(shared),
        agreement.by_group(shared),
        agreement.over_time(shared, BINS),
        agreement.screening(given),
    )


def overview(visit: Visit) -> Response:
    """Progress, plots, labelers, invitations and the export on one page."""
    return _overview(visit)


def _overview(visit: Visit, status: int = 200, problem: str = "", link: str = "") -> Response:
    rows = progress.by_labeler(visit.db)
    answers = sum(row.answers for row in rows)
    measured = _measured(visit.site.path, answers)
    hours = progress.per_hour(visit.db, visit.now, HOURS)
    in_last_hour = f"{hours[-1]} answers in the last hour"
    over_time = _over_time(measured.over_time)
    in_training = _in_words(measured.groups["training"])
    per_labeler = [(row.name, float(row.answers)) for row in rows if row.answers]
    agreeing = []
    for name, share in measured.agreement.items():
        agreeing.append((name, share.mean, share.low, share.high))
    pictures = [
        (
            f"Answers per hour, last {HOURS} hours",
            plots.bars(hours, f"{HOURS} h ago", "now", in_last_hour),
        ),
        (
            "Agreement over time",
            plots.shares(over_time, in_training),
        ),
        (
            "Agreement of each labeler with the others",
            plots.shares(agreeing, f"{len(agreeing)} labelers"),
        ),
        (
            "Answers of each labeler",
            plots.named_bars(per_labeler, f"{len(per_labeler)} labelers"),
        ),
    ]
    return visit.page(
        "admin.html",
        status,
        problem=problem,
        link=link,
        progress=progress.by_kind(visit.db),
        rows=rows,
        measured=measured,
        pictures=pictures,
        files=FILES,
        in_words=_in_words,
    )


def _over_time(points: Sequence[tuple[float, Share]]) -> list[tuple[str, float, float, float]]:
    """The points of the plot, named by the day, or by the hour where they span two days or less."""
    form = "%H:%M"
    times = [at for at, _ in points]
    if times and times[-1] - times[0] > 2 * 86400:
        form = "%m-%d"
    named = []
    for at, share in points:
        when = time.strftime(form, time.gmtime(at))
        named.append((when, share.mean, share.low, share.high))
    return named


def _in_words(share: Share | None) -> str:
    if share is None or not math.isfinite(share.mean):
        return "–"
    interval = f"{share.low:.0%} to {share.high:.0%}"
    return f"{share.mean:.0%} ({interval}, {share.pairs} pairs)"


def invite(visit: Visit) -> Response:
    """Shows the link once, as the store has only its hash."""
    name = visit.form.get("name", "").strip()
    group: store.Group = "held-out" if visit.form.get("group") == "held-out" else "training"
    is_admin = visit.form.get("admin") == "yes"
    try:
        token = accounts.invite(visit.db, name, group, admin=is_admin, now=visit.now)
    except ConfigError as error:
        return _overview(visit, 422, problem=str(error))
    url = store.setting(visit.db, "url") or ""
    return _overview(visit, link=f"{url}/join/{token}")


def close(visit: Visit) -> Response:
    """Ends an account."""
    accounts.close(visit.db, visit.form.get("name", ""))
    return to("/admin")


def edit_instructions(visit: Visit) -> Response:
    """The form of a new version of the instructions, and all older ones."""
    return visit.page("edit.html", versions=instructions.versions(visit.db))


def write_instructions(visit: Visit) -> Response:
    """Adds a version of the instructions."""
    text = clean(visit.form.get("text", ""))
    if not text:
        return visit.problem(422, NOT_STORED + "The instructions are empty.")
    instructions.write(visit.db, text, visit.name, visit.now)
    return to("/instructions")


def browse(visit: Visit) -> Response:
    """The answers, the newest first; those of one labeler with ?labeler=NAME."""
    query = visit.request.query_params
    labeler = query.get("labeler") or None
    number = query.get("page", "")
    page = int(number) if number.isdecimal() else 0
    # one more than fits, to know whether there is a next page
    given = store.answers(
        visit.db,
        labeler=labeler,
        last=ROWS + 1,
        before=page * ROWS,
    )
    newest_first = given[::-1]
    return visit.page(
        "answers.html",
        answers=newest_first[:ROWS],
        more=len(given) > ROWS,
        labeler=labeler,
        number=page,
    )


def one_answer(visit: Visit) -> Response:
    """One answer in full."""
    query = visit.request.query_params
    labeler = query.get("labeler", "")
    task = query.get("task", "")
    given = store.answers(visit.db, labeler=labeler, task=task)
    if not given:
        return visit.problem(404, "There is no such answer.")
    [answer] = given
    order = range(len(answer.completions))
    return visit.page("answer.html", answer=answer, order=order, names=FLAGS, blind=False)


def download(visit: Visit) -> Response:
    """A file of the export, as `label export` writes it."""
    name = visit.request.path_params["name"]
    if name not in FILES:
        return visit.problem(404, "There is no such file.")
    files = export(store.answers(visit.db), store.tasks(visit.db))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in files[name]]
    text = "".join(lines)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return Response(text, media_type="application/jsonl", headers=headers)
