"""What Label Studio writes by its own templates is read, or refused by name."""

import pytest

from instruct_jax.errors import DataError
from instruct_jax.feedback.converters import Import
from instruct_jax.feedback.label_studio import from_label_studio

ITEMS = [
    {"id": "a", "title": "Model A", "body": "Blue."},
    {"id": "b", "title": "Model B", "body": "What?"},
    {"id": "c", "title": "Model C", "body": "Red."},
]
DATA = {"prompt": "Name a colour.", "items": ITEMS}
PAIR = {"prompt": "Name a colour.", "answer1": "Blue.", "answer2": "What?"}


def result(kind, value, name, to="prompt"):
    return {"type": kind, "value": value, "from_name": name, "to_name": to, "origin": "manual"}


def ranker(buckets, name="ranks", to="completions"):
    return result("ranker", {"ranker": buckets}, name, to)


def pairwise(selected, to="answer1,answer2"):
    return result("pairwise", {"selected": selected}, "comparison", to)


def rating(stars, name, to):
    return result("rating", {"rating": stars}, name, to)


def area(name, *texts):
    return result("textarea", {"text": list(texts)}, name)


def task(data, *results, **annotation):
    return {"data": data, "annotations": [{"result": list(results), **annotation}]}


def read(*tasks, **options) -> Import:
    into = Import(**options)
    from_label_studio([(f"file: record {i}", one) for i, one in enumerate(tasks, 1)], into)
    return into


def test_a_ranker_without_buckets():
    """The example of its documentation: one list of ids in their new order."""
    items = [
        {"id": "blog", "title": "ten tips"},
        {"id": "mdn", "title": "arrows", "body": "a compact way"},
        {"id": "wiki", "title": "physics"},
    ]
    data = {"text": "arrow functions", "items": items}
    given = task(data, ranker({"rank": ["mdn", "wiki", "blog"]}, "rank", "results"), completed_by=1)
    [ranking] = read(given).rankings
    assert ranking == {
        "prompt": "arrow functions",
        "completions": ["ten tips", "a compact way", "physics"],
        "ranks": [3, 1, 2],
        "labeler_id": "1",
    }


def test_a_ranker_whose_name_ends_in_a_digit():
    [ranking] = read(task(DATA, ranker({"ranker-1": ["c", "a", "b"]}, "ranker-1"))).rankings
    assert ranking["ranks"] == [2, 3, 1]


def test_buckets_are_ranks():
    [ranking] = read(task(DATA, ranker({"_": [], "rank-1": ["a"], "rank-3": ["c", "b"]}))).rankings
    assert ranking["ranks"] == [1, 2, 2]
    good_and_bad = task(DATA, ranker({"_": [], "bad": ["a"], "good": ["c", "b"]}))
    [ranking] = read(good_and_bad, rename={"good": "rank-1", "bad": "rank-2"}).rankings
    assert ranking["ranks"] == [2, 1, 1]


def test_the_list_may_be_in_a_field_of_another_name():
    for field in ("answers", "whatever"):
        data = {"prompt": "p", field: ITEMS}
        [ranking] = read(task(data, ranker({"ranks": ["c", "a", "b"]}, to="answers"))).rankings
        assert ranking["completions"] == ["Blue.", "What?", "Red."]


@pytest.mark.parametrize(
    ("selected", "ranks"), [("left", [1, 2]), ("right", [2, 1]), ("answer2", [2, 1])]
)
def test_the_template_of_pairs(selected, ranks):
    [ranking] = read(task({**PAIR, "source": "us"}, pairwise(selected))).rankings
    assert ranking == {
        "prompt": "Name a colour.",
        "completions": ["Blue.", "What?"],
        "ranks": ranks,
        "source": "us",
    }


def test_objects_that_are_named_otherwise_than_their_fields():
    given = task(PAIR, pairwise("right", to="txt-1,txt-2"))
    [ranking] = read(given, rename={"answer1": "txt-1", "answer2": "txt-2"}).rankings
    assert (ranking["completions"], ranking["ranks"]) == (["Blue.", "What?"], [2, 1])
    assert "answer1" not in ranking


def test_ratings_of_outputs_are_a_ranking():
    given = task(PAIR, rating(2, "r2", "answer2"), rating(5, "r1", "answer1"))
    [ranking] = read(given).rankings
    assert (ranking["completions"], ranking["ranks"]) == (["Blue.", "What?"], [1, 2])
    two = [rating(1, "honest1", "answer1"), rating(5, "honest2", "answer2")]
    both = task(PAIR, *given["annotations"][0]["result"], *two)
    [ranking] = read(both, only=["honest1", "honest2"]).rankings
    assert ranking["ranks"] == [2, 1]


def test_the_text_area_that_is_the_demonstration():
    text = {"prompt": "Say hello."}
    assert read(task(text, area("response", "Hello!"))).demonstrations == [
        {"prompt": "Say hello.", "completion": "Hello!"}
    ]
    for answer in ("demonstration", "answer"):
        given = task(text, area(answer, "Hello!"), area("comment", "took a while"))
        options = {} if answer == "demonstration" else {"only": ["answer"]}
        [demonstration] = read(given, **options).demonstrations
        assert demonstration["completion"] == "Hello!"
    [demonstration] = read(given, rename={"answer": "demonstration"}).demonstrations
    assert demonstration["completion"] == "Hello!"


def test_a_comment_is_never_the_demonstration():
    """Where one annotation leaves the answer empty, its comment is all that it has."""
    text = {"prompt": "Say hello."}
    given = [
        task(text, area("demonstration", "Hello!"), area("comment", "easy")),
        task(text, area("comment", "no idea")),
    ]
    into = read(*given)
    assert [record["completion"] for record in into.demonstrations] == ["Hello!"]
    assert into.left_out == {"textarea 'comment'": 2}
    beside = task(DATA, ranker({"ranks": ["a", "b", "c"]}), area("comment", "easy"))
    assert not read(beside, only=["ranks"]).demonstrations


def test_one_that_was_skipped_or_is_not_annotated_is_counted():
    into = read(
        task(DATA, ranker({"rank-1": ["a"]}), was_cancelled=True),
        task(DATA),
        {"data": DATA},
        task(PAIR, result("choices", {"choices": ["easy"]}, "difficulty"), result(["x"], 3, "y")),
    )
    assert not into.rankings
    assert into.left_out == {
        "annotations that were skipped in Label Studio": 1,
        "annotations without a result": 1,
        "tasks without an annotation": 1,
        "choices 'difficulty'": 1,
        "['x'] 'y'": 1,
    }


def test_an_unfinished_one_can_be_skipped():
    unfinished = task(DATA, ranker({"_": ["b"], "rank-1": ["a"], "rank-2": ["c"]}))
    finished = task(DATA, ranker({"ranks": ["a", "b", "c"]}))
    into = read(finished, unfinished, {"data": 1}, finished, skip=True)
    assert len(into.rankings) == 2
    assert [message[:15] for message in into.dropped] == ["file: record 2:", "file: record 3:"]


REFUSED = {
    "no task": ({"prompt": "p"}, "record 1: data=null is no object"),
    "no list": ({"data": DATA, "annotations": 3}, "annotations=3 is no list of objects"),
    "bucket": (task(DATA, ranker({"good": ["a"], "bad": []})), "--rename BUCKET=rank-1"),
    "unranked": (
        task(DATA, ranker({"_": ["b"], "rank-1": ["a"], "rank-2": ["c"]})),
        "record 1: annotations[0]: ranks.ranker='b' is not ranked",
    ),
    "no list of items": (task(DATA, ranker({"ranks": 5})), "ranks.ranker=5 is no list of items"),
    "no such item": (task(DATA, ranker({"ranks": ["a", "b", "c", "d"]})), "['d'] are no items"),
    "no prompt": (
        task({"items": ITEMS}, ranker({"ranks": ["a", "b", "c"]})),
        "--rename FIELD=prompt",
    ),
    "two prompts": (
        task({"question": "q", "context": "c", "items": ITEMS}, ranker({"ranks": ["a", "b", "c"]})),
        "data=['question', 'context'] could each be the prompt",
    ),
    "no items": (task(PAIR, ranker({"ranks": ["a", "b"]})), "--rename FIELD=items"),
    "two rankers": (
        task(DATA, ranker({"x": ["a", "b", "c"]}, "x"), ranker({"y": ["b", "a", "c"]}, "y")),
        "['x', 'y'] could each be the ranking",
    ),
    "undecided": (task(PAIR, pairwise(None)), "comparison='None' is none of left, right"),
    "no field": (
        task(PAIR, pairwise("left", "txt-1,txt-2")),
        "comparison='txt-1' is no field of data; there are ['answer1', 'answer2', 'prompt']",
    ),
    "rated twice": (
        task(PAIR, *(rating(3, f"{x}{i}", f"answer{i}") for i in (1, 2) for x in "ab")),
        "answer1=['a1', 'b1'] rate the same output",
    ),
    "two areas": (
        task(PAIR, area("answer", "Red."), area("comment", "easy")),
        "['answer', 'comment'] could each be the demonstration; name those to read, such as"
        " --only 'answer'",
    ),
    "an area beside a ranking": (
        task(DATA, ranker({"ranks": ["a", "b", "c"]}), area("comment", "easy")),
        "from_name='comment' may be a comment beside ['ranks'], or the demonstration",
    ),
    "two texts": (task(PAIR, area("answer", "Red.", "Blue.")), "answer=['Red.', 'Blue.'] is not"),
    "two results": (task(PAIR, area("answer", "Red."), area("answer", "Blue.")), "two results"),
    "no body": (
        task(
            {"prompt": "p", "items": [{**ITEMS[0], "body": ""}, *ITEMS[1:]]},
            ranker({"ranks": ["a", "b", "c"]}),
        ),
        "completions[0]='' is empty",
    ),
}


@pytest.mark.parametrize(("given", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_named(given, says):
    with pytest.raises(DataError) as error:
        read(given)
    assert says in str(error.value)
    assert str(error.value).startswith("file: record 1")


def test_an_output_that_others_rated_must_be_rated():
    three = {**PAIR, "answer3": "Red."}
    full = task(three, *(rating(i, f"r{i}", f"answer{i}") for i in (1, 2, 3)))
    short = task(three, *(rating(i, f"r{i}", f"answer{i}") for i in (1, 2)))
    with pytest.raises(DataError, match=r"record 2: .*answer3=null is no rating"):
        read(full, short)
    assert len(read(full, short, skip=True).rankings) == 1
