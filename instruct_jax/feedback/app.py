"""The pages of labelers: to log in, take a task, answer it, and see their own answers."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from instruct_jax.feedback import accounts, admin, instructions, store, tasks
from instruct_jax.feedback.accounts import Labeler
from instruct_jax.feedback.sanitize import rendered
from instruct_jax.feedback.tasks import FLAGS, LIKERT, LabelTask, ReplyError, letter
from instruct_jax.feedback.web import NOT_STORED, Visit, guarded, open_site, plain_page, route, to

SESSION = 7 * 86400  # seconds that a log-in lasts after the last page
SHOWN = 50  # answers of a labeler on the first page, the last ones


def create_app(path: Path, *, lease: float = 3600.0, https: bool = False) -> Starlette:
    """The web app over the store at `path`.

    Leases last so many seconds; with `https` the session's cookie travels by TLS only.
    """
    site = open_site(path, lease)
    routes = [
        route(site, "/", home),
        route(site, "/login", login_page, post=log_in, who="anyone"),
        route(site, "/logout", home, post=log_out),
        route(site, "/join/{token}", join_page, post=join, who="anyone"),
        route(site, "/instructions", read_instructions),
        route(site, "/task", next_task),
        route(site, "/task/{id}", task_page, post=answer),
        *admin.routes(site),
        Mount("/static", StaticFiles(packages=[("instruct_jax.feedback", "static")])),
    ]
    cookie = {
        "session_cookie": cookie_name(site.secret),
        "max_age": SESSION,
        "same_site": "lax",
        "https_only": https,
    }
    session = Middleware(SessionMiddleware, secret_key=site.secret, **cookie)
    return Starlette(
        routes=routes,
        middleware=[Middleware(guarded), session],
        exception_handlers={404: _absent},
    )


def cookie_name(secret: str) -> str:
    """The name of the session's cookie.

    Each store has another one, as cookies do not tell the ports of a machine apart.
    """
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f"labeling_{digest[:8]}"


def home(visit: Visit) -> Response:
    """The first page of a labeler."""
    return visit.page(
        "home.html",
        stored=store.count(visit.db, visit.name),
        answers=store.answers(visit.db, labeler=visit.name, last=SHOWN),
        changed=instructions.changed(visit.db, visit.name),
    )


def login_page(visit: Visit) -> Response:
    """The form to log in."""
    return to("/") if visit.me else visit.page("login.html", problem="", name="")


def log_in(visit: Visit) -> Response:
    """Begins a session, or shows the form again with what is wrong."""
    name = visit.form.get("name", "").strip()
    password = visit.form.get("password", "")[: accounts.LONGEST]
    client = visit.request.client
    address = client.host if client else ""
    try:
        me = accounts.log_in(visit.db, name, password, address, visit.now)
    except accounts.TooManyTries:
        problem = "Too many tries. Wait for 15 minutes, or ask for a new invitation."
        return visit.page("login.html", 429, name=name, problem=problem)
    if me is None:
        problem = "No account has this name and password."
        return visit.page("login.html", 401, name=name, problem=problem)
    return _begin_session(visit, me)


def _begin_session(visit: Visit, me: Labeler) -> Response:
    visit.request.session.clear()
    visit.request.session.update(name=me.name, generation=me.generation)
    return to("/")


def log_out(visit: Visit) -> Response:
    """Ends all sessions of the labeler.

    Sessions live in cookies, and only a new generation ends those that somebody copied.
    """
    accounts.end_sessions(visit.db, visit.name)
    visit.request.session.clear()
    return to("/login")


def join_page(visit: Visit) -> Response:
    """The form with which an invited labeler chooses a password."""
    return _join_page(visit, 200, "")


def _join_page(visit: Visit, status: int, problem: str) -> Response:
    token = visit.request.path_params["token"]
    name = accounts.invited(visit.db, token, visit.now)
    if name is None:
        return visit.problem(
            404, "This invitation is used, has lapsed, or is not complete. Ask for a new one."
        )
    return visit.page(
        "join.html",
        status,
        name=name,
        problem=problem,
        shortest=accounts.SHORTEST,
        longest=accounts.LONGEST,
    )


def join(visit: Visit) -> Response:
    """Accepts an invitation and begins a session."""
    password = visit.form.get("password", "")
    if not accounts.SHORTEST <= len(password) <= accounts.LONGEST:
        limits = f"{accounts.SHORTEST} to {accounts.LONGEST} characters"
        return _join_page(visit, 422, f"The password must have {limits}.")
    if password != visit.form.get("again"):
        return _join_page(visit, 422, "The two passwords differ.")
    token = visit.request.path_params["token"]
    me = accounts.accept(visit.db, token, password, visit.now)
    if me is None:
        return _join_page(visit, 404, "")
    return _begin_session(visit, me)


def read_instructions(visit: Visit) -> Response:
    """The newest instructions."""
    newest = instructions.versions(visit.db)[0]
    return visit.page("instructions.html", version=newest.version, text=rendered(newest.text))


def next_task(visit: Visit) -> Response:
    """Sends the labeler to the next task, where one is left."""
    task_id = store.lease(visit.db, visit.name, visit.now, visit.site.lease)
    if task_id is None:
        return visit.page("done.html")
    return to(f"/task/{task_id}")


def task_page(visit: Visit) -> Response:
    """The form of a task that the labeler has, or the answer that the labeler gave."""
    task_id = visit.request.path_params["id"]
    lease = store.open_lease(visit.db, task_id, visit.name)
    if lease is None:
        return _own_answer(visit, task_id)
    half_over = lease.until < visit.now + visit.site.lease / 2
    if half_over or lease.instructions != instructions.newest(visit.db):
        store.renew(visit.db, task_id, visit.name, visit.now, visit.site.lease)
    return _task_form(visit, lease.task)


def _own_answer(visit: Visit, task_id: str) -> Response:
    given = store.answers(visit.db, labeler=visit.name, task=task_id)
    if not given:
        return visit.problem(404, "There is no such task for you.")
    [answer] = given
    order = _order(visit, task_id, len(answer.completions))
    return visit.page("answer.html", answer=answer, order=order, names=FLAGS, blind=True)


def _order(visit: Visit, task_id: str, k: int) -> list[int]:
    return tasks.shown_order(k, task_id, visit.name, visit.site.secret)


def _task_form(
    visit: Visit,
    task: LabelTask,
    status: int = 200,
    problem: ReplyError | None = None,
) -> Response:
    order = _order(visit, task.id, len(task.completions))
    outputs = []
    for at, i in enumerate(order):
        outputs.append((letter(at), task.completions[i]))
    return visit.page(
        f"{task.kind}.html",
        status,
        task=task,
        outputs=outputs,
        form=visit.form.get("form") or secrets.token_urlsafe(16),
        values=visit.form,
        problem=problem,
        flags=FLAGS,
        likert=LIKERT,
        changed=instructions.changed(visit.db, visit.name),
        stored=store.count(visit.db, visit.name),
    )


def answer(visit: Visit) -> Response:
    """Stores the answer, and shows the next task only then.

    Every other page that may come back says that nothing was stored.
    """
    task_id = visit.request.path_params["id"]
    form = _identity(visit.form)
    lease = store.open_lease(visit.db, task_id, visit.name)
    if lease is None:
        stored_form = store.form_of(visit.db, task_id, visit.name)
        if stored_form is None:
            return visit.problem(404, NOT_STORED + "There is no such task for you.")
        return to("/task") if stored_form == form else _twice(visit)
    order = _order(visit, task_id, len(lease.task.completions))
    try:
        reply = tasks.reply(lease.task, order, visit.form)
    except ReplyError as error:
        return _task_form(visit, lease.task, 422, error)
    measured = visit.form.get("seconds", "")
    seconds = tasks.seconds_spent(measured, visit.now - lease.opened)
    stored = store.submit(
        visit.db,
        task_id,
        visit.name,
        form,
        reply,
        shown=order,
        seconds=seconds,
        now=visit.now,
    )
    return to("/task") if stored else _twice(visit)


def _identity(form: Mapping[str, str]) -> str:
    """A hash of a form and all that was entered.

    A form that is sent again is the same answer; one that was changed since, or comes from another
    tab, is another answer.
    """
    entered = [(name, form[name]) for name in form if name not in ("key", "seconds")]
    text = json.dumps(sorted(entered))
    return hashlib.sha256(text.encode()).hexdigest()


def _twice(visit: Visit) -> Response:
    return visit.problem(
        409,
        NOT_STORED
        + "You have answered this task already, perhaps in another tab. That answer stays.",
    )


def _absent(request: Request, error: Exception) -> Response:
    return plain_page(404, "There is no such page.")
