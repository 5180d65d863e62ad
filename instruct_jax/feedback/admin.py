"""The pages of admins: how far it is, who labels and how well, every answer, invitations,
instructions, and the export.
"""

import collections
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
from instruct_jax.feedback import accounts, agreement, instructions, plots, store
from instruct_jax.feedback import progress as tally
from instruct_jax.feedback.agreement import Screening, Share
from instruct_jax.feedback.records import export
from instruct_jax.feedback.tasks import FLAGS, clean
from instruct_jax.feedback.web import NOT_STORED, Site, Visit, route, to

HOURS, BINS = 48, 8  # of the pictures
ROWS = 50  # answers on a page
FILES = tuple(export([], {}))


def routes(site: Site) -> list[Route]:
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
    """What takes a look at every answer."""

    seconds: dict[str, float]  # of each labeler, the median
    agreement: dict[str, Share]  # of each labeler with all others
    groups: dict[str, Share]
    over_time: list[tuple[float, Share]]
    screening: dict[str, Screening]


@functools.lru_cache(maxsize=1)
def _measured(path: Path, answers: int) -> Measured:
    """Of all answers; their number is only the key of the cache: it is done again when there are
    more.
    """
    db = store.open_store(path)
    found = store.answers(db)
    db.close()
    times = collections.Counter(answer.task_id for answer in found)
    doubles = [answer for answer in found if times[answer.task_id] > 1]
    return Measured(
        tally.median_seconds(found),
        agreement.by_labeler(doubles),
        agreement.by_group(doubles),
        agreement.over_time(doubles, BINS),
        agreement.screening(found),
    )


def overview(visit: Visit) -> Response:
    return _overview(visit)


def _overview(visit: Visit, status: int = 200, problem: str = "", link: str = "") -> Response:
    rows, hours = tally.accounts(visit.db), tally.per_hour(visit.db, visit.now, HOURS)
    found = _measured(visit.site.path, sum(row.answers for row in rows))
    per_labeler = [(row.name, float(row.answers)) for row in rows if row.answers]
    pictures = [
        (
            f"Answers per hour, last {HOURS} hours",
            plots.bars(hours, f"{HOURS} h ago", "now", f"{hours[-1]} answers in the last hour"),
        ),
        (
            "Agreement over time",
            plots.shares(_over_time(found.over_time), _said(found.groups["training"])),
        ),
        (
            "Agreement of each labeler with the others",
            plots.shares(
                [(name, *share[:3]) for name, share in found.agreement.items()],
                f"{len(found.agreement)} labelers",
            ),
        ),
        ("Answers of each labeler", plots.named_bars(per_labeler, f"{len(per_labeler)} labelers")),
    ]
    values = {
        "progress": tally.progress(visit.db),
        "rows": rows,
        "found": found,
        "pictures": pictures,
        "files": FILES,
        "said": _said,
    }
    return visit.page("admin.html", status, problem=problem, link=link, **values)


def _over_time(points: Sequence[tuple[float, Share]]) -> list[tuple[str, float, float, float]]:
    """The points of the picture, named by the day, or by the hour where all are of two days."""
    form = "%m-%d" if points and points[-1][0] - points[0][0] > 2 * 86400 else "%H:%M"
    return [
        (time.strftime(form, time.gmtime(at)), share.mean, share.low, share.high)
        for at, share in points
    ]


def _said(share: Share | None) -> str:
    """A share in words."""
    if share is None or not math.isfinite(share.mean):
        return "–"
    return f"{share.mean:.0%} ({share.low:.0%} to {share.high:.0%}, {share.pairs} pairs)"


def invite(visit: Visit) -> Response:
    """The link is shown once: the store has only its hash."""
    name, held_out = visit.form.get("name", "").strip(), visit.form.get("group") == "held-out"
    group: store.Group = "held-out" if held_out else "training"
    try:
        token = accounts.invite(
            visit.db, name, group, admin=visit.form.get("admin") == "yes", now=visit.now
        )
    except ConfigError as error:
        return _overview(visit, 422, problem=str(error))
    return _overview(visit, link=f"{store.setting(visit.db, 'url') or ''}/join/{token}")


def close(visit: Visit) -> Response:
    accounts.close(visit.db, visit.form.get("name", ""))
    return to("/admin")


def edit_instructions(visit: Visit) -> Response:
    return visit.page("edit.html", versions=instructions.versions(visit.db))


def write_instructions(visit: Visit) -> Response:
    text = clean(visit.form.get("text", ""))
    if not text:
        return visit.problem(422, NOT_STORED + "The instructions are empty.")
    instructions.write(visit.db, text, visit.name, visit.now)
    return to("/instructions")


def browse(visit: Visit) -> Response:
    """The answers, the newest first; those of one labeler with ?labeler=NAME."""
    asked = visit.request.query_params
    labeler, page = (
        asked.get("labeler") or None,
        int(asked["page"]) if asked.get("page", "").isdecimal() else 0,
    )
    found = store.answers(visit.db, labeler=labeler, last=ROWS + 1, before=page * ROWS)
    return visit.page(
        "answers.html",
        answers=found[::-1][:ROWS],
        more=len(found) > ROWS,
        labeler=labeler,
        number=page,
    )


def one_answer(visit: Visit) -> Response:
    asked = visit.request.query_params
    for answer in store.answers(
        visit.db, labeler=asked.get("labeler", ""), task=asked.get("task", "")
    ):
        return visit.page(
            "answer.html",
            answer=answer,
            order=range(len(answer.completions)),
            names=FLAGS,
            blind=False,
        )
    return visit.problem(404, "There is no such answer.")


def download(visit: Visit) -> Response:
    """A file of the export, as `label export` writes it."""
    name = visit.request.path_params["name"]
    if name not in FILES:
        return visit.problem(404, "There is no such file.")
    records = export(store.answers(visit.db), store.tasks(visit.db))[name]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(text, media_type="application/jsonl", headers=headers)
