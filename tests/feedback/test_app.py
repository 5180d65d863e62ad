"""The pages as HTTP: who sees what, what is refused, and that a form is one answer however it is
sent.
"""

import json
import re
import time

import pytest
from serving import PASSWORD, Client, joined, served

from instruct_jax.feedback import accounts, store, tasks
from instruct_jax.feedback.accounts import TRIES
from instruct_jax.feedback.records import export

RANKINGS = [
    {
        "prompt": f"question {i}",
        "completions": ["one", "two", "three"],
        "models": ["secret model"] * 3,
    }
    for i in range(40)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, connection to its store)"""
    folder = tmp_path_factory.mktemp("labeling")
    db = store.create_store(folder / "labels.db")
    store.add_tasks(db, [tasks.task(record) for record in RANKINGS])
    with served(folder) as (address, _):
        yield address, db
    db.close()


@pytest.fixture
def newcomer(server, request):
    """Makes labelers with an account, each logged in."""
    address, db = server
    made = []

    def make(name="labeler"):
        name = f"{name} of {request.node.name}"[:60]
        made.append(
            joined(address, accounts.invite(db, name, "training", admin=False, now=time.time()))
        )
        return name, made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def admin(server):
    address, db = server
    client = joined(
        address, accounts.invite(db, f"boss {time.time()}", "training", admin=True, now=time.time())
    )
    yield client
    client.close()


def answers_of(server, name):
    return [answer.ranks for answer in store.answers(server[1], labeler=name)]


@pytest.mark.parametrize(
    "path", ["/", "/login", "/static/task.js", "/static/style.css", "/no such page", "/join/x"]
)
def test_every_response_is_guarded(path, server):
    client = Client(server[0])
    client._ask("GET", path.replace(" ", "%20"), None)
    client.close()
    assert "default-src 'none'; script-src 'self'" in client.headers["content-security-policy"]
    assert client.headers["x-content-type-options"] == "nosniff" and "server" not in client.headers
    assert not re.search(r"(?:src|href|action)=\"(?!/|#)", client.reply), (
        "something of another host"
    )
    if path == "/login":
        assert (
            "httponly" in client.headers["set-cookie"]
            and "samesite=lax" in client.headers["set-cookie"]
        )


def test_an_invitation_works_once(server):
    address, db = server
    token = accounts.invite(db, "once", "training", admin=False, now=time.time())
    assert token not in "".join(map(str, map(tuple, db.execute("SELECT * FROM labelers")))), (
        "the store holds the token itself"
    )
    client = Client(address).get(f"/join/{token}")
    assert client.post(password="short", again="short").status == 422
    assert client.post(password=PASSWORD, again=PASSWORD + "!").status == 422
    assert client.post(password=PASSWORD, again=PASSWORD).status == 303
    assert PASSWORD not in str(
        tuple(db.execute("SELECT password FROM labelers WHERE name = 'once'").fetchone())
    )
    for used in (token, "wrong"):
        client._ask("GET", f"/join/{used}", None)
        assert client.status == 404 and "Ask for a new one" in client.reply
    lapsed = accounts.invite(
        db, "late", "training", admin=False, now=time.time() - accounts.INVITATION
    )
    client._ask("GET", f"/join/{lapsed}", None)
    assert client.status == 404
    client.close()


def test_tries_to_log_in_are_limited(server, newcomer):
    name, _ = newcomer()
    other, _ = newcomer("other")
    client = Client(server[0]).get("/login")
    assert [client.post(name=name, password="wrong").status for _ in range(TRIES)] == [401] * TRIES
    assert client.post(name=name, password=PASSWORD).status == 429
    assert client.post(name=other, password=PASSWORD).status == 303
    client.close()


def test_visitors_see_nothing(server):
    client = Client(server[0])
    for path in (
        "/",
        "/task",
        f"/task/{tasks.task(RANKINGS[0]).id}",
        "/instructions",
        "/admin",
        "/admin/export/rankings.jsonl",
    ):
        client._ask("GET", path, None)
        assert (client.status, client.headers["location"]) == (303, "/login")
    client._ask("POST", f"/task/{tasks.task(RANKINGS[0]).id}", "rank-0=1")
    assert client.status == 401 and "Nothing was stored. You are logged out" in client.reply
    client.close()


def test_labelers_see_only_what_is_theirs(server, newcomer):
    _, ann = newcomer("ann")
    _, ben = newcomer("ben")
    ann.get("/task")
    assert "secret model" not in ann.text
    for path in (
        ann.path,
        "/admin",
        "/admin/answers",
        "/admin/export/rankings.jsonl",
        "/admin/instructions",
    ):
        ben._ask("GET", path, None)
        assert ben.status == 404, path
    ben.get("/task")
    assert ben.path != ann.path
    assert (
        ben.post(
            ann.path, **{f"{what}-{at}": "1" for what in ("rank", "likert") for at in range(3)}
        ).status
        == 404
    )
    assert ben.post("/admin/invite", name="x").status == 404


def test_a_form_must_be_ours(server, newcomer):
    name, ann = newcomer("ann")
    _, ben = newcomer("ben")
    ben.get("/task")
    key = re.findall(r'name="key" value="(\w+)"', ben.text)[0]
    ann.get("/task")
    for wrong in ("", "0" * 64, key, "ü"):
        ann.post(
            **{
                "key": wrong,
                "rank-0": "1",
                "rank-1": "2",
                "rank-2": "3",
                "likert-0": "1",
                "likert-1": "1",
                "likert-2": "1",
            }
        )
        assert ann.status == 403 and "Nothing was stored" in ann.reply
    assert ann.post("/logout", key=key).status == 403
    assert answers_of(server, name) == []
    assert ann.rank(1, 2, 3).status == 303 and len(answers_of(server, name)) == 1


def test_the_same_form_twice_is_one_answer(server, newcomer):
    name, ann = newcomer()
    ann.get("/task")
    assert [ann.rank(1, 2, 2).status for _ in range(3)] == [303] * 3 and len(
        answers_of(server, name)
    ) == 1
    assert ann.rank(2, 2, 1).status == 409, (
        "changed after it was stored: it is not stored, and must not look so"
    )


def test_two_tabs(server, newcomer):
    """Both show one task; what is sent first stays, and the other tab says so."""
    name, ann = newcomer()
    other = Client(server[0])
    other.cookie = ann.cookie
    assert ann.get("/task").path == other.get("/task").path
    assert ann.rank(1, 1, 2).status == 303
    assert (
        other.rank(2, 2, 1).status == 409 and "Nothing was stored. You have answered" in other.reply
    )
    other.close()
    (ranks,) = answers_of(server, name)
    assert ranks is not None and sorted(ranks) == [1, 1, 2]


def test_the_back_button_shows_the_stored_answer(newcomer):
    _, ann = newcomer()
    path = ann.get("/task").path
    assert ann.headers["cache-control"] == "no-store" and ann.rank(1, 2, 3).status == 303
    ann.get(path)
    assert (
        "Your answer, as it is stored" in ann.text
        and 'class="task"' not in ann.text
        and "secret model" not in ann.text
    )
    assert ann.headers["cache-control"] == "no-store" and path in ann.get("/").text


def test_an_answer_that_is_refused_stays_on_the_page(server, newcomer):
    name, ann = newcomer()
    ann.get("/task").post(
        **{"rank-0": "2", "likert-0": "5", "note-0": "<i>why</i>", "flag-0-violent": "yes"}
    )
    assert ann.status == 422 and re.search("Nothing was stored. (Rank|Give) output", ann.reply)
    assert (
        'name="flag-0-violent" value="yes" checked' in ann.reply
        and "&lt;i&gt;why&lt;/i&gt;" in ann.reply
    )
    assert re.search(r'value="2" selected', ann.reply) and re.search(
        r'name="likert-0" value="5" checked', ann.reply
    )
    assert (
        ann.post(**{"note-0": "x" * 5_000_000}).status == 413 and "Nothing was stored" in ann.reply
    )
    assert answers_of(server, name) == []


def test_a_store_that_fails_stores_nothing_and_says_so(server, newcomer):
    """As with a full disk: the page says so, the form is not lost, and goes through once the store
    works again.
    """
    _, db = server
    name, ann = newcomer()
    ann.get("/task")
    db.execute(
        "CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'database or disk"
        " is full'); END"
    )
    ann.rank(1, 2, 3)
    db.execute("DROP TRIGGER full")
    assert (
        ann.status == 500
        and "Nothing was stored" in ann.reply
        and "disk" not in ann.reply
        and "content-security-policy" in ann.headers
    )
    assert answers_of(server, name) == []
    assert ann.rank(1, 2, 3).status == 303 and len(answers_of(server, name)) == 1


def test_logging_out_ends_copied_sessions(server, newcomer):
    _, ann = newcomer()
    copied = Client(server[0])
    copied.cookie = ann.cookie
    copied._ask("GET", "/", None)
    assert copied.status == 200
    assert ann.get("/").post("/logout").status == 303
    copied._ask("GET", "/", None)
    assert copied.status == 303
    copied.close()


def test_an_account_that_is_closed_or_invited_again(server, newcomer, admin):
    address, _db = server
    name, ann = newcomer("ann")
    again, ben = newcomer("ben")
    admin.get("/admin")
    assert admin.post("/admin/close", name=name).status == 303
    admin.post("/admin/invite", name=again, group="training")
    link = re.findall(r'id="link">(.*?)<', admin.reply)[0]
    for client in (ann, ben):
        client._ask("GET", "/", None)
        assert client.status == 303
    client = Client(address).get("/login")
    assert (
        client.post(name=name, password=PASSWORD).status
        == client.post(name=again, password=PASSWORD).status
        == 401
    )
    client.close()
    joined(address, link.rpartition("/")[2]).close()
    assert (
        admin.post("/admin/invite", name=again, group="held-out").status == 422
        and "another group" in admin.reply
    )


def test_the_work_goes_on_after_a_new_log_in(server, newcomer):
    """The page that was open when the session ended can still send its answer."""
    name, ann = newcomer()
    ann.get("/task")
    page, path, ann.cookie = ann.text, ann.path, ""
    assert ann.rank(1, 2, 3).status == 401
    ann.get("/login").post(name=name, password=PASSWORD)
    ann.text, ann.path = page, path
    assert ann.rank(1, 2, 3).status == 303 and len(answers_of(server, name)) == 1


def test_what_an_admin_downloads_is_the_export(server, newcomer, admin):
    _, db = server
    newcomer()[1].get("/task").rank(1, 2, 3)
    wanted = export(store.answers(db), store.tasks(db))
    assert wanted["rankings.jsonl"]
    for name, records in wanted.items():
        admin._ask("GET", f"/admin/export/{name}", None)
        assert [
            json.loads(line) for line in admin.reply.splitlines()
        ] == records and "attachment" in admin.headers["content-disposition"]
    admin._ask("GET", "/admin/export/labels.db", None)
    assert admin.status == 404
    link = re.findall(r'href="(/admin/answer\?[^"]*)"', admin.get("/admin/answers").text)[0]
    assert "secret model" in admin.get(link.replace("&amp;", "&")).text


def test_comparisons_demonstrations_and_new_instructions(tmp_path):
    db = store.create_store(tmp_path / "labels.db")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a question"}]
    pair = {"prompt": "which?", "completions": ["left", "right"], "models": ["secret", "model"]}
    store.add_tasks(
        db,
        [
            tasks.task(pair, compare=True),
            *(tasks.task({"prompt": prompt}) for prompt in (talk, "demonstrate")),
        ],
    )
    invitations = [
        accounts.invite(db, name, "training", admin=name == "boss", now=time.time())
        for name in ("ann", "boss")
    ]
    with served(tmp_path) as (address, _):
        ann, boss = (joined(address, token) for token in invitations)
        assert "Compare two outputs" in ann.get("/task").text and "secret" not in ann.text
        assert (
            ann.post(better="").status == 422
            and ann.post(better="0", seconds="0.001").status == 303
        )
        first = re.findall(r'<h2 id="output-0">Output A</h2>\s*<div[^>]*>(\w+)', ann.text)[0]
        (found,) = store.answers(db)
        assert (
            found.ranks == ([1, 2] if first == "left" else [2, 1])
            and found.likert == [None, None]
            and found.seconds == 0.001
            and found.models == ["secret", "model"]
        )
        assert (
            "Be brief." in ann.get("/task").text
            and ann.post(text=" \r\n").status == 422
            and ann.post(text="A\r\npoem. ").status == 303
        )
        assert (
            store.answers(db)[-1].text == "A\npoem."
            and "have changed" not in ann.get("/").text
            and "a question" in ann.text
        )
        assert "have changed" not in ann.get("/task").text
        boss.get("/admin/instructions")
        assert (
            boss.post(text="  \r\n").status == 422
            and boss.post(text="Be *kind*.\r\n").status == 303
        )
        assert (
            "have changed" in ann.get("/").text and "<em>kind</em>" in ann.get("/instructions").text
        )
        assert (
            "have changed" in ann.get("/task").text
            and ann.post(action="skip", reason="why not").status == 303
        )
        assert "Nothing to do" in ann.get("/task").text
        ann.close()
        boss.close()
    assert [(answer.skipped, answer.instructions) for answer in store.answers(db)] == [
        (None, 1),
        (None, 1),
        ("why not", 2),
    ]
    db.close()


def test_the_admin_sees_agreement_and_screening(tmp_path):
    """Two people rank two screening tasks: alike, and once as the researchers did."""
    db = store.create_store(tmp_path / "labels.db")
    for i, known in enumerate(([1, 2], [2, 1])):
        store.add_tasks(
            db,
            [
                tasks.task(
                    {"prompt": f"{i}", "completions": ["good", "bad"], "known": {"ranks": known}}
                )
            ],
        )
    invitations = [
        accounts.invite(db, name, "training", admin=name == "boss", now=time.time())
        for name in ("ann", "boss")
    ]
    with served(tmp_path) as (address, _):
        ann, boss = (joined(address, token) for token in invitations)
        assert "Nothing yet." in boss.get("/admin").text
        for client in (ann, boss):
            for _ in range(2):
                shown = re.findall(
                    r'<h2 id="output-\d" tabindex="-1">Output .</h2>\s*<div[^>]*>(\w+)',
                    client.get("/task").text,
                )
                assert client.rank(*(1 if text == "good" else 2 for text in shown)).status == 303
        rows = re.findall(
            r"<tr>(?:(?!</tr>).)*", boss.get("/admin").text.partition('id="labelers"')[2], re.DOTALL
        )[1:]
        cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
        ann.close()
        boss.close()
    db.close()
    assert [row[1:3] for row in cells] == [["2", "0"]] * 2
    assert [row[4] for row in cells] == ["100% (100% to 100%, 2 pairs)"] * 2
    assert [row[5].partition(" (")[0] for row in cells] == ["50%"] * 2
    assert boss.text.count("<svg") == 4 and "4 answers in the last hour" in boss.text
