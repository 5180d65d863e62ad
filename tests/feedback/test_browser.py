"""The labeling page in a real browser: invitation, log-in, ranking by keyboard and by drag, ties,
skips, demonstrations, export.
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from instruct_jax.cli import main
from instruct_jax.data import readers
from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.tasks import task

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is only for tests: pip install playwright"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe is only for tests: pip install axe-playwright-python",
)
from serving import PASSWORD, served, write  # noqa: E402

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROME = next(filter(None, map(shutil.which, NAMES)), None)
# docs/pictures, to make those of docs/labeling.md
PICTURES = Path(os.environ.get("INSTRUCT_JAX_PICTURES", tempfile.gettempdir()))
pytestmark = pytest.mark.skipif(
    CHROME is None, reason="no Chromium on this machine: install the package chromium"
)

NASTY = (
    "<script>document.title = 'broken'</script><img src=x onerror=alert(1)> \u202egnp.exe\u202c"
    " \x1b[31m"
)
SAMPLES = [
    {
        "prompt": "Explain in two sentences why the sky is blue.",
        "completions": [
            (
                "Sunlight is scattered by the air. Blue light is scattered most, so we see it from"
                " all sides."
            ),
            "The sky is blue because it reflects the sea.",
            "It is blue.",
            "Air scatters short waves more than long ones. Blue waves are short.",
        ],
        "models": ["a", "b", "b", "a"],
    },
    {"prompt": "What is in this file?", "completions": [NASTY, "I cannot open it."]},
    {"prompt": "Write a poem about a frog."},
    {"prompt": "Asdf?"},
]

PAIR = {"prompt": "Which is prime?", "completions": ["Seven.", "Eight."], "models": ["a", "b"]}
# quality, fails the task, rank of the outputs of the first sample
JUDGED = [(7, False, 1), (2, True, 3), (4, False, 2), (7, False, 1)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store that is served; its address; the address of an invitation."""
    folder = tmp_path_factory.mktemp("labeling")
    samples = write(folder / "samples.jsonl", SAMPLES)
    with served(folder, "--samples", str(samples)) as (address, _):
        db = store.open_store(folder / "labels.db")
        store.add_tasks(db, [task(PAIR, compare=True)])
        token = accounts.invite(db, "ann", "training", admin=True, now=time.time())
        db.close()
        yield folder, address, f"{address}/join/{token}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as start:
        options = ["--no-sandbox", "--disable-background-networking"]
        found = start.chromium.launch(executable_path=CHROME, args=options)
        yield found
        found.close()


def accessible(page) -> None:
    """No complaint of axe in light on a desk, nor in dark on a phone."""
    for scheme, width in (("light", 1200), ("dark", 360)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        found = axe.Axe().run(page).response["violations"]
        assert not found, (
            page.url,
            scheme,
            width,
            [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["any"]) for each in found],
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "wider than the screen"
        )
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1200, "height": 900})


def ranks(page) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('.card select')].sort((a, b) => a.name < b.name ? -1 :"
        " 1).map(s => s.value)"
    )


def joins(page, address: str, invitation: str) -> None:
    """By the link of an invitation; out, and in again by name and password."""
    page.goto(invitation)
    accessible(page)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{address}/login")
    accessible(page)
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")
    page.get_by_role("link", name="Instructions", exact=True).click()
    page.wait_for_url(f"{address}/instructions")
    accessible(page)


def ranks_by_keyboard(page) -> None:
    """The first task by the keyboard alone: qualities, flags and ranks, with a tie."""
    page.get_by_role("link", name="Go on with the next task").press("Enter")
    page.wait_for_url("**/task/*")
    accessible(page)
    ranked = []  # as the outputs were shown
    for letter in "ABCD":
        shown = page.locator(".step:not([hidden]) .text").inner_text()
        quality, failed, rank = JUDGED[SAMPLES[0]["completions"].index(shown)]
        page.get_by_role("group", name=f"Overall quality of output {letter}").get_by_label(
            "1", exact=True
        ).press("Space")
        for _ in range(quality - 1):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
        if failed:
            page.keyboard.press("Space")
        if letter == "A":
            page.screenshot(path=PICTURES / "labeling-rating.png")
        page.get_by_role(
            "button", name="Go on to the ranking" if letter == "D" else "Next output"
        ).press("Enter")
        assert page.evaluate("document.activeElement.tagName") == "H2"
        ranked.append(rank)
    for letter, rank in zip("ABCD", ranked, strict=True):
        page.get_by_role("group", name=f"Output {letter}", exact=True).focus()
        for key in {1: ["1"], 2: ["ArrowRight", "ArrowRight"], 3: ["4", "ArrowLeft"]}[rank]:
            page.keyboard.press(key)
    assert ranks(page) == list(map(str, ranked))
    accessible(page)
    page.screenshot(path=PICTURES / "labeling-ranking.png")
    page.reload()  # the draft is still there
    assert ranks(page) == list(map(str, ranked))
    page.get_by_role("group", name="Output C", exact=True).press("0")
    page.get_by_role("button", name="Store this answer").press("Enter")
    page.get_by_text("Rank output C too").wait_for()
    page.get_by_role("group", name="Output C", exact=True).press(str(ranked[2]))
    page.get_by_role("button", name="Store this answer").press("Enter")


def ranks_by_drag(page) -> None:
    """The second by drag; what a model wrote is text."""
    page.get_by_text("What is in this file?").wait_for()
    shown = page.locator("main").text_content()
    assert (
        "<script>document.title" in shown
        and "\\u202egnp.exe\\u202c \\u001b[31m" in shown
        and page.title() == "Rate and rank 2 outputs"
    )
    for letter in "AB":
        page.get_by_role("group", name=f"Overall quality of output {letter}").get_by_label(
            "4"
        ).check()
        page.get_by_role(
            "button", name="Go on to the ranking" if letter == "B" else "Next output"
        ).click()
    for letter, rank in (("A", 2), ("B", 1)):
        start = page.get_by_role("heading", name=f"Output {letter}", level=4).bounding_box()
        end = page.locator(f".column[data-rank='{rank}']").bounding_box()
        page.mouse.move(start["x"] + 10, start["y"] + 10)
        page.mouse.down()
        page.mouse.move(end["x"] + 30, end["y"] + 40, steps=4)
        page.mouse.up()
    assert ranks(page) == ["2", "1"]
    page.set_viewport_size({"width": 360, "height": 700})
    page.get_by_label("Place of output A").select_option("1")
    assert ranks(page) == ["1", "1"] and page.locator(".column[data-rank='1'] .card").count() == 2
    page.get_by_label("Place of output A").select_option("2")


def loses_replies(page) -> None:
    """A server that cannot be reached, then one whose reply is lost: the page says so, and the same
    form is one answer.
    """
    page.route("**/task/*", lambda route: route.abort())
    page.get_by_role("button", name="Store this answer").click()
    page.get_by_text("Your answer is still here. Send it again.").wait_for()
    page.unroute_all()
    page.evaluate("() => { document.getElementById('problem').textContent = '' }")
    page.route("**/task/*", lambda route: (route.fetch(max_redirects=0), route.abort()))
    page.get_by_role("button", name="Store this answer").click()
    page.get_by_text("Your answer is still here. Send it again.").wait_for()
    page.unroute_all()
    assert ranks(page) == ["2", "1"]
    page.get_by_role("button", name="Store this answer").click()


def demonstrates_skips_and_compares(page) -> None:
    page.get_by_text("about a frog").wait_for()
    accessible(page)
    page.get_by_label("The reply that the assistant should give").fill(
        "Green and round,\nit makes no sound."
    )
    page.get_by_role("button", name="Store this answer").click()
    page.get_by_text("Asdf?").wait_for()
    page.get_by_text("Skip this task").click()
    page.get_by_label("Why?").fill("The prompt is very unclear.")
    page.get_by_role("button", name="Skip it").click()
    page.get_by_text("Which is prime?").wait_for()
    page.get_by_text("Rate both outputs too").click()
    accessible(page)
    shown = page.locator(".pair .text").all_inner_texts()
    page.get_by_label(f"Output {'AB'[shown.index('Seven.')]} is better").press("Space")
    page.get_by_role("button", name="Store this answer").press("Enter")
    page.get_by_text("no task is waiting").wait_for()


def looks_back(page, address: str) -> None:
    page.go_back()  # the back button shows what is stored, and no form
    assert (
        "Your answer, as it is stored" in page.content() and not page.locator("form.task").count()
    )
    page.goto(f"{address}/")
    accessible(page)
    page.get_by_role("link", name="Explain in two").click()
    accessible(page)
    assert "Rank 3, quality 2; Fails to follow" in page.content() and ">a<" not in page.content()
    assert page.evaluate("localStorage.length") == 0, "drafts of stored answers are gone"


def check_export(folder) -> None:
    assert (
        main(
            ["label", "export", "--store", str(folder / "labels.db"), "--out", str(folder / "out")]
        )
        == 0
    )
    first, second = sorted(
        readers.read_rankings(folder / "out/rankings.jsonl"),
        key=lambda record: len(record["completions"]),
    )[::-1]
    assert (
        list(
            zip(
                first["likert"],
                [flags["fails_task"] for flags in first["flags"]],
                first["ranks"],
                strict=True,
            )
        )
        == JUDGED
    )
    assert (
        first["models"] == ["a", "b", "b", "a"]
        and sum(sum(flags.values()) for flags in first["flags"]) == 1
    )
    assert (
        sorted(second["ranks"]) == [1, 2]
        and second["completions"][0] == NASTY
        and first["labeler_id"] == "ann"
    )
    assert (
        readers.read_demonstrations(folder / "out/demonstrations.jsonl")[0]["completion"]
        == "Green and round,\nit makes no sound."
    )
    compared = json.loads((folder / "out/comparisons.jsonl").read_text())
    assert (
        compared["ranks"] == [1, 2]
        and compared["models"] == ["a", "b"]
        and compared["likert"] == [None, None]
    )
    assert (
        json.loads((folder / "out/skipped.jsonl").read_text())["skipped"]
        == "The prompt is very unclear."
    )


def test_a_labelers_day(place, browser, monkeypatch):
    folder, address, invitation = place
    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    problems: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )

    joins(page, address, invitation)
    ranks_by_keyboard(page)
    ranks_by_drag(page)
    loses_replies(page)
    demonstrates_skips_and_compares(page)
    looks_back(page, address)
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
    unloaded = "Failed to load resource: "
    assert problems == [
        f"{unloaded}the server responded with a status of 422 (Unprocessable Entity)",
        *[f"{unloaded}net::ERR_FAILED"] * 2,
    ]
    context.close()
    check_export(folder)


def test_an_admins_pages(place, browser):
    """After a labeler's day: every page is accessible, an invitation made here works, and new
    instructions reach the labelers.
    """
    folder, address, _ = place
    context = browser.new_context()
    page = context.new_page()
    db = store.open_store(folder / "labels.db")
    page.goto(
        f"{address}/join/{accounts.invite(db, 'boss', 'training', admin=True, now=time.time())}"
    )
    db.close()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("The same again").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/")
    page.get_by_role("link", name="Admin").click()
    page.get_by_label("Name").fill("ben <b>")
    page.get_by_label("Group").select_option("held-out")
    page.get_by_role("button", name="Make the link").click()
    assert page.locator("#link").inner_text().startswith(f"{address}/join/")
    accessible(page)
    page.goto(f"{address}/admin/answers")
    accessible(page)
    page.get_by_role("link", name="Explain in two").click()
    assert "by a" in page.locator("main").inner_text()
    accessible(page)
    page.goto(f"{address}/admin/instructions")
    accessible(page)
    page.get_by_label("Markdown").fill(
        "Be **kind**. <script>document.title = 'broken'</script> [no](javascript:alert(1))"
    )
    page.get_by_role("button", name="Store as version 2").click()
    page.wait_for_url(f"{address}/instructions")
    assert (
        page.locator("strong").inner_text() == "kind"
        and page.title() == "Instructions"
        and not page.get_by_role("link", name="no").count()
    )
    context.close()
