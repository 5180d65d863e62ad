"""What goes to Label Studio and Argilla comes back as it was; what these tools write by themselves
is read.
"""

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from feedback.test_agreement import answer

from instruct_jax.errors import DataError
from instruct_jax.feedback import converters
from instruct_jax.feedback.tasks import FLAGS, task

TURNS = [
    {"role": "user", "content": "Name a color."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Another."},
]
RANK = task(
    {
        "prompt": TURNS,
        "completions": ["Blue.", "Red.", "Green."],
        "models": ["a", "b", "a"],
        "ended": [True, True, False],
    }
)
TELL = task({"prompt": "Say hello.", "source": "us"})
TASKS = {of.id: of for of in (RANK, TELL)}


def answers():
    """A ranking with a tie by two people, a skip, a demonstration."""
    flags = [
        {name: name == "opinion" for name in FLAGS},
        dict.fromkeys(FLAGS, False),
        dict.fromkeys(FLAGS, False),
    ]
    first = answer(RANK.id, "ann", [1, 2, 1], likert=[7, 3, 7], flags=flags)
    second = answer(RANK.id, "bob@example.org", [2, 1, 3], likert=[1, 2, 3])
    skip = answer(RANK.id, "cid", None, skipped="unclear")
    told = answer(TELL.id, "ann", None)
    told = dataclasses.replace(told, kind="demonstrate", text="Hello!")
    return [first, second, skip, told]


TOOLS = {
    "label studio": (converters.to_label_studio, converters.from_label_studio),
    "argilla": (converters.to_argilla, converters.from_argilla),
}


@pytest.mark.parametrize(("to", "back"), TOOLS.values(), ids=TOOLS)
def test_there_and_back(to, back):
    rankings, demonstrations = back(json.loads(json.dumps(to(TASKS, answers()))))
    assert [(r["labeler_id"], r["ranks"], r["likert"]) for r in rankings] == [
        ("ann", [1, 2, 1], [7, 3, 7]),
        ("bob@example.org", [2, 1, 3], [1, 2, 3]),
    ]
    for ranking in rankings:
        assert (ranking["prompt"], ranking["completions"]) == (TURNS, RANK.completions)
        assert (ranking["models"], ranking["ended"]) == (RANK.models, [True, True, False])
    assert [name for name, value in rankings[0]["flags"][0].items() if value] == ["opinion"]
    [told] = demonstrations
    assert (told["prompt"], told["completion"], told["source"], told["labeler_id"]) == (
        "Say hello.",
        "Hello!",
        "us",
        "ann",
    )


def test_a_ranker_of_label_studio_without_buckets():
    """The example of its documentation: one list of ids in their new order."""
    items = [
        {"id": "blog", "title": "ten tips"},
        {"id": "mdn", "title": "arrows", "body": "a compact way"},
        {"id": "wiki", "title": "physics"},
    ]
    ranker = {
        "value": {"ranker": {"rank": ["mdn", "wiki", "blog"]}},
        "from_name": "rank",
        "to_name": "results",
        "type": "ranker",
    }
    tasks = [
        {
            "id": 1,
            "data": {"text": "arrow functions", "items": items},
            "annotations": [{"result": [ranker], "completed_by": 10}],
        }
    ]
    [ranking], _ = converters.from_label_studio(tasks)
    assert (ranking["prompt"], ranking["ranks"], ranking["labeler_id"]) == (
        "arrow functions",
        [3, 1, 2],
        "10",
    )
    assert ranking["completions"] == ["ten tips", "a compact way", "physics"]
    assert converters.from_label_studio([{"data": {"text": "no answer yet", "items": items}}]) == (
        [],
        [],
    )


def test_a_ranking_of_argilla_by_itself():
    """Values without ranks are in order; a hyphen for the field's underscore, as its documentation
    writes them.
    """
    record = {
        "fields": {"instruction": "count", "reply_1": "one", "reply_2": "two"},
        "responses": {
            "ranking": [{"value": ["reply-2", "reply-1"], "user_id": "7"}],
            "topic": [{"value": ["math"]}],
        },
    }
    [ranking], _ = converters.from_argilla([record])
    assert (ranking["prompt"], ranking["completions"], ranking["ranks"]) == (
        "count",
        ["one", "two"],
        [2, 1],
    )


def test_one_tie_has_nothing_to_learn():
    for to, back in TOOLS.values():
        assert back(to(TASKS, [answer(RANK.id, "ann", [1, 1, 1])])) == ([], [])


ITEMS = {"prompt": "p", "items": [{"id": "1", "body": "x"}, {"id": "2", "body": "y"}]}
NO_PROMPT = {"items": ITEMS["items"]}


def ranked(buckets, data=ITEMS):
    """One task of Label Studio with one annotation."""
    ranker = {"type": "ranker", "value": {"ranker": buckets}}
    return [{"data": data, "annotations": [{"result": [ranker]}]}]


FROM_STUDIO = {
    "no task": (["hello"], "[0].data"),
    "bucket": (ranked({"good": ["1"], "bad": ["2"]}), "name buckets rank-1"),
    "unranked": (ranked({"rank-1": ["1"], "_": ["2"]}), "'2' is not ranked"),
    "no prompt": (ranked({"rank-1": ["1"], "rank-2": ["2"]}, NO_PROMPT), "[0]: prompt"),
}


@pytest.mark.parametrize(("raw", "says"), FROM_STUDIO.values(), ids=FROM_STUDIO)
def test_what_cannot_be_read_is_named(raw, says):
    with pytest.raises(DataError) as error:
        converters.from_label_studio(raw)
    assert says in str(error.value)


def test_a_record_of_argilla_without_fields_is_named():
    with pytest.raises(DataError) as error:
        converters.from_argilla([{"text": "x"}])
    assert "[0].fields" in str(error.value)


def test_the_configuration_is_xml_that_names_all_that_is_written():
    tree = ElementTree.fromstring(converters.label_studio_config(3))
    named = {element.get("name") for element in tree.iter()}
    written = set()
    for one in converters.to_label_studio(TASKS, answers()):
        for annotation in one["annotations"]:
            written |= {result["from_name"] for result in annotation["result"]}
    assert written <= named
    assert {"likert-1", "flags-1", "ranks", "demonstration"} <= written
