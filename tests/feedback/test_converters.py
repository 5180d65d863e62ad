"""What goes to Label Studio and Argilla comes back as it was."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from feedback.test_agreement import answer

from instruct_jax.errors import ConfigError
from instruct_jax.feedback import argilla, converters, label_studio
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
    "label studio": (label_studio.to_label_studio, label_studio.from_label_studio),
    "argilla": (argilla.to_argilla, argilla.from_argilla),
}


def there_and_back(to, back, given) -> converters.Import:
    tasks = json.loads(json.dumps(to(TASKS, given)))
    into = converters.Import()
    back([(f"file: record {i}", task) for i, task in enumerate(tasks, 1)], into)
    return into


@pytest.mark.parametrize(("to", "back"), TOOLS.values(), ids=TOOLS)
def test_there_and_back(to, back):
    into = there_and_back(to, back, answers())
    rankings, demonstrations = into.rankings, into.demonstrations
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


def test_one_tie_has_nothing_to_learn():
    for to, back in TOOLS.values():
        into = there_and_back(to, back, [answer(RANK.id, "ann", [1, 1, 1])])
        assert (into.rankings, into.demonstrations) == ([], [])
        assert into.left_out["rankings that are one tie"] == 1


def test_the_configuration_is_xml_that_names_all_that_is_written():
    tree = ElementTree.fromstring(label_studio.label_studio_config(3))
    named = {element.get("name") for element in tree.iter()}
    written = set()
    for one in label_studio.to_label_studio(TASKS, answers()):
        for annotation in one["annotations"]:
            written |= {result["from_name"] for result in annotation["result"]}
    assert written <= named
    assert {"likert-1", "flags-1", "ranks", "demonstration"} <= written


def test_the_words_of_rename():
    words = ["answer=demonstration", "a=b=rank-1"]
    assert converters.parse_renames(words) == {"answer": "demonstration", "a=b": "rank-1"}
    for bad in (["answer"], ["=x"], ["x="], ["x=y", "x=z"]):
        with pytest.raises(ConfigError, match="--rename"):
            converters.parse_renames(bad)


def test_an_option_that_names_nothing_is_refused():
    into = converters.Import(only=["ranks", "nowhere"], rename={"r\u00e9ponse": "prompt"})
    for name in ("ranks", "re\u0301ponse"):  # the same name in two normal forms
        into.name(name)
    with pytest.raises(ConfigError, match=r"--only nowhere: nothing .* there are \['ranks', "):
        into.check_options()
