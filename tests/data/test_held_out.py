"""Conversations are held out whole, of every kind of records, by hash."""

import pytest

from instruct_jax.data.held_out import hold_out, hold_out_texts, split


def test_conversations_are_held_out_whole_and_of_every_kind():
    def records(kind: str) -> list[dict]:
        return [
            {"prompt": [{"role": "user", "content": f"question {i}"}], "id": f"{kind} {i} {k}"}
            for i in range(100)
            for k in range(3)
        ]

    def questions(part: list[dict]) -> set[str]:
        return {record["prompt"][0]["content"] for record in part}

    train, held_out = hold_out(records("rankings"), 0.2, seed=0)
    assert len(train) + len(held_out) == 300 and 45 <= len(held_out) <= 75
    assert not questions(train) & questions(held_out)
    assert questions(hold_out(records("prompts"), 0.1, seed=0)[1]) < questions(held_out)
    assert questions(hold_out(records("prompts"), 0.2, seed=1)[1]) != questions(held_out)
    assert hold_out(records("prompts")[:1], 0.2, seed=0)[1] == []


def test_a_system_message_that_all_share_makes_them_no_single_conversation():
    system = {"role": "system", "content": "Be brief."}
    records = [
        {"prompt": [system, {"role": "user", "content": f"question {i}"}]} for i in range(100)
    ]
    train, held_out = hold_out(records, 0.2, seed=0)
    assert len(train) + len(held_out) == 100 and 10 <= len(held_out) <= 30


def test_further_records_and_another_order_change_nothing():
    """New rankings leave every record where it was, so what was learned before stands."""
    prompts = [{"prompt": f"question {i}"} for i in range(200)]
    some = {"texts": [], "demonstrations": prompts, "rankings": [], "prompts": prompts[:50]}
    before = split(some, 0.2, seed=0)
    after = split(some | {"rankings": prompts[100:], "prompts": prompts[::-1]}, 0.2, seed=0)
    assert before.demonstrations == after.demonstrations
    assert before.held_out_demonstrations == after.held_out_demonstrations
    assert before.held_out_prompts == [r for r in prompts[:50] if r in after.held_out_prompts]
    assert all(r in after.held_out_prompts for r in after.held_out_rankings)
    assert all(r in before.held_out_demonstrations for r in after.held_out_rankings)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_of_two_conversations_one_is_held_out(share):
    records = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "id": "later turn"}]
    train, held_out = hold_out(records, share, seed=0)
    assert train and held_out and len(train) + len(held_out) == 3


def test_what_is_named_twice_weighs_twice_and_is_measured_once():
    once = [{"prompt": f"question {i}", "completion": "x"} for i in range(10)]
    train, held_out = hold_out(once * 2, 0.3, seed=0)
    assert held_out and len(train) + 2 * len(held_out) == 20
    assert all(train.count(record) == 2 for record in train)
    assert not any(record in train for record in held_out)


def test_the_end_of_a_long_text_is_held_out():
    text = "".join(f"line {i}\n" for i in range(20_000))
    [train], [held_out] = hold_out_texts([{"text": text, "id": "one"}], 0.1, seed=0)
    assert train["text"] + held_out["text"] == text and train["text"].endswith("\n")
    assert len(held_out["text"]) == pytest.approx(0.1 * len(text), abs=20)
    assert held_out["id"] == "one"
