"""What all pages share: requests and their forms, who may see a page, and what keeps it safe."""

import contextlib
import dataclasses
import hmac
import logging
import queue
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

import jinja2
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.accounts import Labeler
from instruct_jax.feedback.sanitize import visible

logger = logging.getLogger(__name__)

LONGEST_FORM = 4 * 2**20  # bytes
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src"
        " 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# More threads would only wait for each other: pages are made under the GIL, and answers are written
# one at a time.
THREADS = 8
NOT_STORED = "Nothing was stored. "


@dataclasses.dataclass(frozen=True)
class Site:
    """What all requests share."""

    path: Path  # of the store
    secret: str
    lease: float  # seconds
    pages: jinja2.Environment
    threads: CapacityLimiter  # how many work at once
    idle: "queue.SimpleQueue[sqlite3.Connection]"  # connections that no thread uses


@dataclasses.dataclass(frozen=True)
class Visit:
    """One request of a visitor."""

    site: Site
    db: sqlite3.Connection
    request: Request
    form: Mapping[str, str]  # of a POST; otherwise empty
    me: Labeler | None  # None: not logged in
    now: float  # unix seconds

    @property
    def name(self) -> str:
        """The name of the labeler, on pages that are only for labelers."""
        assert self.me is not None
        return self.me.name

    @property
    def key(self) -> str:
        """The CSRF token.

        It is the same after a new log-in, so that a page that was open meanwhile can still send its
        answer.
        """
        who = self.request.session.setdefault("visitor", secrets.token_urlsafe(16))
        if self.me is not None:
            who = f"{self.me.name}\n{self.me.generation}"
        return accounts.form_key(self.site.secret, who)

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """The page that a template makes."""
        page = self.site.pages.get_template(template)
        text = page.render(me=self.me, key=self.key, **values)
        # not cached, so that "back" shows what is stored by now
        return HTMLResponse(text, status, {"Cache-Control": "no-store"})

    def problem(self, status: int, message: str) -> Response:
        """A page that says what is wrong."""
        return self.page("problem.html", status, message=message)


Handler = Callable[[Visit], Response]
Who = Literal["anyone", "labeler", "admin"]


def open_site(path: Path, lease: float) -> Site:
    """Compiles the pages, and opens the store; a lease of a task lasts so many seconds."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("instruct_jax.feedback", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"visible": visible, "clock": clock, "moment": moment}
    for name in pages.list_templates(extensions=["html"]):
        pages.get_template(name)  # compiled now, so that the first labelers do not wait for it
    db = store.open_store(path)
    idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
    idle.put(db)
    return Site(
        path=path,
        secret=str(store.setting(db, "secret")),
        lease=lease,
        pages=pages,
        threads=CapacityLimiter(THREADS),
        idle=idle,
    )


def plain_page(status: int, message: str) -> Response:
    """A page that needs neither store nor visitor."""
    return HTMLResponse(
        f'<!doctype html><html lang="en"><title>{message}</title><p id="problem"'
        f' role="alert">{message}</p>',
        status,
    )


def clock(seconds: float) -> str:
    """Minutes and seconds, m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def moment(unix: float) -> str:
    """Date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(unix))


def to(path: str) -> Response:
    """Sends the browser to a page with a GET, so that a reload sends no form again."""
    return RedirectResponse(path, 303)


def route(
    site: Site,
    path: str,
    handler: Handler,
    *,
    post: Handler | None = None,
    who: Who = "labeler",
) -> Route:
    """The route of a page: GET, and POST where there is one.

    Handlers run in threads, and only for visitors who may see the page.
    """
    handlers = {"GET": handler, "HEAD": handler}
    if post is not None:
        handlers["POST"] = post

    async def endpoint(request: Request) -> Response:
        form = await _read_form(request) if request.method == "POST" else {}
        arguments = (site, request, form, handlers[request.method], who)
        try:
            return await to_thread.run_sync(_answer, *arguments, limiter=site.threads)
        except Exception:
            # a full disk, or a bug: the labeler must learn that the answer is not stored
            logger.exception("%s %s failed", request.method, request.url.path)
            return plain_page(500, f"{NOT_STORED}Something failed here. Go back and send it again.")

    return Route(path, endpoint, methods=list(handlers))


async def _read_form(request: Request) -> dict[str, str] | None:
    """The fields of an urlencoded form; None where it is too long or broken."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_FORM:
            return None
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, max_num_fields=1000, errors="strict"
        )
    except ValueError:
        return None
    return dict(fields)


def _answer(
    site: Site,
    request: Request,
    form: dict[str, str] | None,
    handler: Handler,
    who: Who,
) -> Response:
    """Calls the handler, or refuses the request: no log-in, no admin, a bad form or a bad token."""
    session = request.session
    is_post = request.method == "POST"
    with _connection(site) as db:
        name = session.get("name", "")
        generation = session.get("generation", -1)
        me = accounts.labeler(db, name, generation)
        visit = Visit(site, db, request, form or {}, me, time.time())

        def refuse(status: int, message: str) -> Response:
            return visit.problem(status, NOT_STORED + message)

        if who != "anyone" and me is None:
            if not is_post:
                return to("/login")
            return refuse(
                401,
                "You are logged out. Log in in another tab, come back to this page and send it"
                " again.",
            )
        if who == "admin" and not (me and me.admin):
            return visit.problem(404, "There is no such page.")
        if form is None:
            return refuse(
                413, "The form is longer than this page takes, or broken. Shorten the texts."
            )
        key = form.get("key", "").encode()
        if is_post and not hmac.compare_digest(key, visit.key.encode()):
            return refuse(
                403,
                "The page is older than your log-in, or its cookie is missing. Load it again.",
            )
        return handler(visit)


@contextlib.contextmanager
def _connection(site: Site) -> Iterator[sqlite3.Connection]:
    """A connection that no other thread uses meanwhile."""
    try:
        db = site.idle.get_nowait()
    except queue.Empty:
        db = store.open_store(site.path)
    try:
        yield db
    finally:
        site.idle.put(db)


def guarded(app: ASGIApp) -> ASGIApp:
    """The same app, but every response carries HEADERS."""

    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, send_more if scope["type"] == "http" else send)

    return with_headers
