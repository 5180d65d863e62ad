"""The steps of cleaning, each on a few records, and against slow twins on many."""

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_jax.cleaning import filters
from instruct_jax.cleaning.filters import Item, make_item


def item(prompt, kind="prompts", place="a:1", **fields) -> Item:
    """An item whose tokens are its words."""
    record = {"prompt": prompt, **fields}
    prompt_tokens = sum(len(text.split()) for text in filters.contents(prompt))
    completion_tokens = tuple(len(text.split()) for text in filters.completions(record))
    return make_item(kind, place, record, prompt_tokens, completion_tokens, None)


def items(*prompts, **fields) -> list[Item]:
    return [item(prompt, place=f"a:{number}", **fields) for number, prompt in enumerate(prompts, 1)]


TALKS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
RECORDS = st.builds(
    lambda kind, said, talk, user, answer: item(
        [{"role": "user", "content": text} for text in said] if talk else " ".join(said),
        kind,
        user_id=user,
        **({"completion": answer} if kind == "demonstrations" else {}),
    ),
    st.sampled_from(["prompts", "demonstrations"]),
    TALKS,
    st.booleans(),
    st.none() | st.sampled_from("uvw"),
    st.sampled_from("xy"),
)
MANY = st.lists(RECORDS, max_size=12)


def test_prompts_that_look_the_same_are():
    found = items(
        "Name a  caf\u00e9.\n",
        "Name a cafe\u0301.",
        "name a caf\u00e9.",
        [{"role": "user", "content": "Name a caf\u00e9. "}],
    )
    drops = filters.duplicates(found)
    assert {i: drop.of for i, drop in drops.items()} == {1: "a:1", 3: "a:1"} and drops[
        1
    ].detail == "the same prompt"


def test_system_messages_make_no_prompts_alike():
    system = {"role": "system", "content": "s" * 300}
    found = items(*([system, {"role": "user", "content": text}] for text in "ab"))
    assert [one.prompt for one in found] == ["a", "b"]
    assert not filters.shared_prefixes(found, 10)
    assert item([system]).prompt == "s" * 300


def test_another_answer_or_labeler_is_no_duplicate():
    answers = [
        item("p", "demonstrations", f"a:{i}", completion=text) for i, text in enumerate("xyx")
    ]
    assert list(filters.duplicates(answers)) == [2]
    ranked = [
        {"ranks": ranks, "labeler_id": labeler}
        for labeler in "mn"
        for ranks in ([1, 2], [2, 1], [1, 2])
    ]
    rankings = [item("p", "rankings", completions=["x", "y"], **fields) for fields in ranked]
    assert list(filters.duplicates(rankings)) == [2, 5]


def test_a_prompt_has_one_user_in_all_kinds():
    one, other = (
        item("p", place="a:1", user_id="u"),
        item("p", "demonstrations", "b:1", user_id="v", completion="x"),
    )
    drops = filters.duplicates([one, other, item("p", "demonstrations", "c:1", completion="x")])
    assert list(drops) == [1] and drops[1].of == "a:1" and "another user" in drops[1].detail


def test_prompts_that_begin_alike():
    found = [
        *items("abcdef", "abcxyz", "abcdef", "abc", "ab", "xbcdef"),
        item("abcd", "demonstrations", completion="x"),
    ]
    drops = filters.shared_prefixes(found, 3)
    assert {i: drop.of for i, drop in drops.items()} == {1: "a:1", 3: "a:1"}


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=12), st.integers(1, 4))
def test_no_two_of_those_that_stay_begin_alike(prompts, length):
    """Against all pairs; and who goes begins like one that stays."""
    found = items(*prompts)
    drops = filters.shared_prefixes(found, length)
    left = {one.prompt for one in filters.without(found, drops)}
    assert not any(
        a[:length] == b[:length]
        for a, b in itertools.combinations(left, 2)
        if min(len(a), len(b)) >= length
    )
    places = {one.place: one.prompt for one in filters.without(found, drops)}
    assert all(found[i].prompt[:length] == places[drop.of][:length] for i, drop in drops.items())


def test_the_length_of_prompt_and_longest_completion():
    found = [
        item("a b c"),
        item("a", "rankings", completions=["a", "a b c"], ranks=[1, 2]),
        item("a b"),
    ]
    assert [drop.detail for drop in filters.too_long(found, 2, 2).values()] == [
        "its prompt has 3 tokens, more than 2", "its completion has 3 tokens, more than 2"
    ]  # fmt: skip
    assert list(filters.too_long(found, None, 2)) == [1] and not filters.too_long(found, 3, None)


def test_the_cap_counts_prompts_of_a_user():
    found = []
    for user in ("u", None):
        for kind in ("demonstrations", "prompts"):
            for i, prompt in enumerate("aabbcab"):
                found.append(item(prompt, kind, user_id=user, completion=str(i)))
    assert list(filters.over_cap(found, 2)) == [4, 11]


@given(MANY, st.integers(0, 3), st.randoms())
def test_nobody_and_no_prompt_is_in_two_splits(found, seed, shuffle):
    """Of all kinds; and the order of the records changes neither what stays nor where it goes."""

    def divided(found):
        ordered = filters.in_order(found, seed)
        kept = filters.without(ordered, filters.duplicates(ordered))
        kept = filters.without(kept, filters.over_cap(kept, 2))
        return list(zip(kept, filters.split(kept, seed, 0.3, 0.3), strict=True))

    written = divided(found)
    shuffle.shuffle(found)
    assert divided(found) == written
    for of in ("user", "prompt"):
        splits = collections.defaultdict(set)
        for one, part in written:
            splits[getattr(one, of)].add(part)
        assert all(len(parts) == 1 for name, parts in splits.items() if name is not None), of


def test_turns_of_a_conversation_stay_together():
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "q"), ("assistant", "r"), ("user", "s"))
    ]
    for seed in range(20):
        of_nobody = [item("q"), item(turns)]
        assert len(set(filters.split(of_nobody, seed, 0.3, 0.3))) == 1
        of_a_user = [item("z", user_id="u"), item("q", user_id="u"), item(turns)]
        assert len(set(filters.split(of_a_user, seed, 0.3, 0.3))) == 1


def test_shares_of_users_and_more_data_moves_nobody():
    users = [item(f"p{i}", user_id=i) for i in range(10_000)]
    parts = filters.split(users, 0, 0.1, 0.2)
    counts = collections.Counter(parts)
    assert counts["valid"] == pytest.approx(1000, abs=120) and counts["test"] == pytest.approx(
        2000, abs=160
    )
    assert filters.split(users[:5000], 0, 0.1, 0.2) == parts[:5000]
    assert filters.split(users, 1, 0.1, 0.2) != parts
    assert set(filters.split(users, 0, 0, 0)) == {"train"}


def test_an_id_is_written_once():
    found = [
        *items("a", "b", "c", id=7),
        item("d"),
        item("e"),
        item("a", "demonstrations", id=7, completion="x"),
    ]
    assert [one.record.get("id") for one in filters.distinct_ids(found)] == [
        7,
        "7#2",
        "7#3",
        None,
        None,
        7,
    ]


def test_other_languages_where_it_is_sure():
    found = [
        Item("prompts", "a:1", {}, "p", "p", None, 1, (), language)
        for language in (("en", 0.9), ("de", 0.9), ("de", 0.4))
    ]
    assert {
        i: drop.detail for i, drop in filters.other_language(found, ["en", "fr"], 0.5).items()
    } == {1: "de, with probability 0.90"}
