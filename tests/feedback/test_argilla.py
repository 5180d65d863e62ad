"""What Argilla writes by itself is read, or refused by name."""

from typing import Any

import pytest

from instruct_jax.errors import DataError
from instruct_jax.feedback.argilla import from_argilla
from instruct_jax.feedback.converters import Import

FIELDS = {"prompt": "count", "Response 1": "one", "Response 2": "two", "Response 3": "three"}


def record(fields=FIELDS, user: Any = "7", **responses):
    given = {question: [{"value": value, "user_id": user}] for question, value in responses.items()}
    return {"fields": fields, "responses": given}


def read(*records, **options) -> Import:
    into = Import(**options)
    from_argilla([(f"file: record {i}", one) for i, one in enumerate(records, 1)], into)
    return into


def test_a_ranking_of_argilla_by_itself():
    """Values without ranks are in order; a hyphen for the field's underscore, as its documentation
    writes them.
    """
    fields = {"instruction": "count", "reply_1": "one", "reply_2": "two"}
    given = {
        "fields": fields,
        "responses": {
            "ranking": [{"value": ["reply-2", "reply-1"], "user_id": "7"}],
            "topic": [{"value": ["math"]}],
        },
    }
    into = read(given)
    assert into.rankings == [
        {
            "prompt": "count",
            "completions": ["one", "two"],
            "ranks": [2, 1],
            "labeler_id": "7",
        }
    ]
    assert into.left_out == {"question 'topic'": 1}


def test_values_that_are_no_fields_can_be_mapped():
    """--rename says which field a value of the ranking is."""
    given = record(x=["3", "1", "2"])
    renames = {str(i): f"Response {i}" for i in (1, 2, 3)}
    [ranking] = read(given, rename=renames).rankings
    assert ranking["completions"] == ["one", "two", "three"]
    assert ranking["ranks"] == [2, 3, 1]


def test_names_in_two_normal_forms():
    fields = {"prompt": "p", "re\u0301ponse-1": "one", "r\u00e9ponse-2": "two"}
    [ranking] = read(record(fields, x=["re\u0301ponse-2", "r\u00e9ponse-1"])).rankings
    assert ranking["ranks"] == [2, 1]


def test_argilla_1_lists_people():
    """Only what was submitted is read."""

    def response(user, status, first, second):
        ranks = [
            {"value": "response-2", "rank": second},
            {"value": "response-1", "rank": first},
        ]
        return {"user_id": user, "status": status, "values": {"ranks": {"value": ranks}}}

    given = {
        "fields": {"prompt": "count", "response-1": "one", "response-2": "two"},
        "responses": [
            response("ann", "submitted", 1, 2),
            response("bob", "discarded", 2, 1),
            response("cid", "draft", 2, 1),
            response("dan", "submitted", 2, 1),
            {"user_id": "eve", "status": "draft", "values": None},
        ],
        "external_id": "e1",
        "suggestions": [],
    }
    into = read(given)
    assert [(r["labeler_id"], r["ranks"]) for r in into.rankings] == [
        ("ann", [1, 2]),
        ("dan", [2, 1]),
    ]
    assert into.left_out == {
        "responses with status discarded": 1,
        "responses with status draft": 1,
    }


def test_a_text_is_the_demonstration_by_name_only():
    """A label is a text too."""
    given = record({"prompt": "count"}, response="one two", topic="math")
    assert read(given).left_out == {"question 'response'": 1, "question 'topic'": 1}
    [demonstration] = read(given, rename={"response": "demonstration"}).demonstrations
    assert (demonstration["prompt"], demonstration["completion"]) == ("count", "one two")


def test_any_user_id_is_a_name():
    [ranking] = read(record(user={"x": 1}, ranks=["Response 2", "Response 1"])).rankings
    assert ranking["labeler_id"] == "{'x': 1}"


def test_several_people_without_a_name():
    given = {
        "fields": FIELDS,
        "responses": {"demonstration": [{"value": "one"}, {"value": "two"}]},
    }
    assert [r["completion"] for r in read(given).demonstrations] == ["one", "two"]


def test_labels_and_spans_are_no_ranking():
    given = [
        record(topic=["math", "poems"], span=[{"start": 0, "end": 2, "label": "x"}]),
        record(topic=["math", "prose"]),
    ]
    assert read(*given).left_out == {"question 'topic'": 2, "question 'span'": 1}


RANKS = [{"value": "Response 1", "rank": 1}, {"value": "Response 2", "rank": None}]
REFUSED = {
    "no fields": ({"text": "x"}, "record 1: fields=null is no object"),
    "no fields ranked": (
        record(x=["3", "1", "2"]),
        "record 1: user_id 7: x=['3', '1', '2'] ranks values that are no fields; there are"
        " ['Response 1', 'Response 2', 'Response 3', 'prompt']",
    ),
    "some are no fields": (record(x=["Response 1", "other"]), "x=['Response 1', 'other'] ranks"),
    "unfinished": (record(ranks=RANKS), "ranks='Response 2' is not ranked"),
    "two rankings": (
        record(a=["Response 1", "Response 2"], b=["Response 2", "Response 1"]),
        "['a', 'b'] could each be the ranking",
    ),
    "two prompts": (
        record({"task": "t", "context": "c", "a": "x", "b": "y"}, ranks=["a", "b"]),
        "fields=['task', 'context'] could each be the prompt",
    ),
    "bad responses": ({"fields": FIELDS, "responses": {"x": 3}}, "x=3 is no list of objects"),
}


@pytest.mark.parametrize(("given", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_named(given, says):
    with pytest.raises(DataError) as error:
        read(given)
    assert says in str(error.value)
    good = record(ranks=["Response 2", "Response 1"])
    into = read(given, good, skip=True)
    assert len(into.rankings) == 1
    assert says in into.dropped[0]
