"""What labelers are asked and what comes back, as pure functions; and somebody's text made
harmless.
"""

import pytest

from instruct_jax.errors import FieldError
from instruct_jax.feedback.sanitize import rendered, visible
from instruct_jax.feedback.tasks import (
    FLAGS,
    ReplyError,
    dense,
    reply,
    seconds_spent,
    shown_order,
    task,
)

SAMPLE = {
    "prompt": "p",
    "completions": ["x", "y", "z"],
    "models": ["m", None, "n"],
    "use_case": "u",
    "id": 7,
}


def test_the_kind_of_a_task():
    assert (
        task({"prompt": "p"}).kind
        == task({"prompt": "p", "completions": None}).kind
        == "demonstrate"
    )
    assert (
        task(SAMPLE).kind == "rank"
        and task({"prompt": "p", "completions": ["x", ""]}, compare=True).kind == "compare"
    )
    assert task(SAMPLE).extra == {"use_case": "u", "id": 7} and task(SAMPLE).models == [
        "m",
        None,
        "n",
    ]


def test_an_id_is_of_the_content():
    assert task(SAMPLE).id == task({**SAMPLE, "use_case": "v", "id": 8, "ranks": [1, 1, 1]}).id
    others = [
        SAMPLE | change
        for change in (
            {"prompt": "q"},
            {"completions": ["y", "x", "z"]},
            {"models": None},
            {"known": {"ranks": [1, 2, 3]}},
        )
    ]
    assert len({task(each).id for each in [SAMPLE, *others]}) == 5


def test_a_sample_may_hold_the_same_reply_twice():
    """Models say the same; nobody has ranked it yet, nor do scores beside it."""
    twice = task(SAMPLE | {"completions": ["x", "y", "x"], "scores": [0.5, 0.1, 0.2]})
    assert (twice.kind, twice.completions) == ("rank", ["x", "y", "x"])


BAD = {
    "one completion": ({"completions": ["x"]}, "completions=['x'] has K = 1"),
    "ten": ({"completions": ["x"] * 10}, "has K = 10"),
    "an empty one": ({"completions": ["x", " ", "z"]}, "completions[1]=' ' is empty"),
    "no list": ({"completions": "x"}, "completions='x' must be a list"),
    "models": ({"models": ["m"]}, "models=['m'] must hold the names of 3 models"),
    "known ranks": ({"known": {"ranks": [1, 2]}}, "has 2 ranks for 3 completions"),
    "always the same": ({"completions": ["x", "x", "x"]}, "is one tie"),
    "known is a tie": ({"known": {"ranks": [1, 1, 1]}}, "is one tie"),
    "known flag": (
        {"known": {"flags": [{"rude": True}, {}, {}]}},
        "must hold true or false of ['denigrates'",
    ),
    "known of nothing": ({"known": {}}, "must hold ranks, flags or both"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples(name):
    change, message = BAD[name]
    with pytest.raises(FieldError) as error:
        task(SAMPLE | change)
    assert message in str(error.value)


def test_a_comparison_is_of_two():
    with pytest.raises(FieldError, match="has K = 3; give two completions"):
        task(SAMPLE, compare=True)


def test_the_order_is_a_labelers_own():
    """The same at every visit; each output comes first for about as many labelers."""
    orders = [shown_order(4, "t", f"labeler {i}", "secret") for i in range(400)]
    assert orders == [shown_order(4, "t", f"labeler {i}", "secret") for i in range(400)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert all(70 < sum(order[0] == i for order in orders) < 130 for i in range(4))
    assert shown_order(9, "t", "a", "s") != shown_order(9, "t", "a", "other") and shown_order(
        9, "t", "a", "s"
    ) != shown_order(9, "u", "a", "s")


def test_what_was_shown_goes_back_to_its_place():
    """z, x, y are shown as A, B, C."""
    form = {
        "rank-0": "3",
        "rank-1": "1",
        "rank-2": "3",
        "likert-0": "2",
        "likert-1": "7",
        "likert-2": "3",
        "flag-0-violent": "yes",
    }
    found = reply(task(SAMPLE), [2, 0, 1], form | {"note-1": "\r\n good\r\nvery\x00 "})
    assert (
        found.ranks == [1, 2, 2]
        and found.likert == [7, 3, 2]
        and found.notes == [" good\nvery", "", ""]
    )
    assert [[name for name in FLAGS if flags[name]] for flags in found.flags] == [
        [],
        [],
        ["violent"],
    ]


@pytest.mark.parametrize(("better", "ranks"), [("0", [2, 1]), ("1", [1, 2]), ("tie", [1, 1])])
def test_a_comparison(better, ranks):
    """y, x are shown as A, B."""
    of = task({"prompt": "p", "completions": ["x", "y"]}, compare=True)
    assert reply(of, [1, 0], {"better": better}).ranks == ranks


FULL = {f"{what}-{at}": "1" for what in ("rank", "likert") for at in range(3)}
REFUSED = {
    "no rank": (FULL | {"rank-2": ""}, "Rank output C too", 3),
    "a rank beyond K": (FULL | {"rank-1": "4"}, "Rank output B too", 3),
    "no quality": (FULL | {"likert-1": ""}, "Give output B an overall quality", 1),
    "eight": (FULL | {"likert-0": "8"}, "Give output A", 0),
    "no reason": ({"action": "skip", "reason": " \r\n"}, "Write the reason", 0),
    "long notes": (FULL | {"note-2": "x" * 100_001}, "Shorten the notes on output C", 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_replies_that_are_refused(name):
    form, message, at = REFUSED[name]
    with pytest.raises(ReplyError, match=message) as error:
        reply(task(SAMPLE), [0, 1, 2], form)
    assert error.value.at == at


def test_dense():
    assert dense([5, 2, 5, 9]) == [2, 1, 2, 3]


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [("12.5", 12.5), ("", 60.0), ("nan", 60.0), ("-1", 60.0), ("1e9", 60.0), ("x", 60.0)],
)
def test_seconds(measured, seconds):
    assert seconds_spent(measured, 60.0) == seconds


def test_text_stays_text():
    assert visible("<b>&\"'") == "&lt;b&gt;&amp;&#34;&#39;"
    assert visible("a\r\n\tb") == "a\n\tb"
    for char in "\u202e\u2066\u200b\x1b\x00\ufeff\U000e0041\u2028\ue000":
        shown = visible(f"a{char}b")
        assert char not in shown and f"{ord(char):04x}" in shown
    assert visible("نم\u200cی 👩\u200d🚀") == "نم\u200cی 👩\u200d🚀"


def test_markdown_holds_no_markup():
    html = rendered("# a\n<script>x</script>\n\n[x](javascript:alert(1)) [y](https://example.org)")
    assert (
        "<h1>a</h1>" in html
        and "<script" not in html
        and 'href="javascript' not in html
        and 'href="https://example.org"' in html
    )
