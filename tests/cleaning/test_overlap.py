"""Overlap with evaluation sets by n-grams of words."""

import pytest
from cleaning.test_filters import item

from instruct_jax.cleaning.overlap import evaluation_text, field_schema, hits, overlapping, words
from instruct_jax.data.readers import read, write_jsonl
from instruct_jax.errors import DataError

QUESTION = "A robe takes 2 bolts of blue fiber and half that much white fiber."  # 14 words
SETS = evaluation_text([("e:1", QUESTION), ("e:2", "What is love?"), ("e:3", "")], 13)


def drops(*items, common=10):
    return overlapping(items, [hits(one, SETS) for one in items], common)


def test_words():
    assert words("It's  a Test_case, isn't it?\n\u00c9t\u00e9!") == [
        "its",
        "a",
        "testcase",
        "isnt",
        "it",
        "\u00e9t\u00e9",
    ]


def test_thirteen_words_in_a_row():
    said = QUESTION.lower().replace(".", "!")
    found = drops(
        item(f"Solve: {said} how many?"),
        item("x", completion=said),
        item(said.replace("half", "a")),
        item("other"),
    )
    assert list(found) == [0, 1] and found[0].of == found[1].of == "e:1"
    assert (
        found[0].detail
        == "n-grams in common: 2, the first: a robe takes 2 bolts of blue fiber and half that much"
        " white"
    )


def test_short_texts_are_compared_whole():
    turns = [
        {"role": "user", "content": "what is LOVE"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
    ]
    found = drops(
        item("What is love"),
        item("What is love to you?"),
        item("x", completion="What is love?"),
        item(turns),
        item(""),
    )
    assert {i: drop.of for i, drop in found.items()} == {0: "e:2", 3: "e:2"}


def test_what_many_prompts_hold_is_a_common_phrase():
    many = [item(f"{QUESTION} {i}") for i in range(4)]
    assert not drops(*many, common=3) and len(drops(*many, common=4)) == 4
    assert len(drops(*(many[:3] * 3), common=3)) == 9  # copies of one prompt are one


def test_fields_of_evaluation_sets(tmp_path):
    rows = [{"q": "a"}, {"q": ["b", "c"]}, {"q": [{"role": "user", "content": "d"}]}]
    write_jsonl(tmp_path / "e.jsonl", rows)
    assert [record["texts"] for record in read(field_schema("q"), tmp_path / "e.jsonl")] == [
        ["a"],
        ["b", "c"],
        ["d"],
    ]
    for bad in ({"r": "a"}, {"q": 1}, {"q": []}):
        write_jsonl(tmp_path / "e.jsonl", [*rows, bad])
        with pytest.raises(DataError, match=r"e.jsonl:4: q=.* is no text; .*overlap.files"):
            read(field_schema("q"), tmp_path / "e.jsonl")
