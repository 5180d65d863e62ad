"""Records to ids: one path for every stage, and one rule for what is too long."""

import logging

import numpy as np
import pytest
from wordtok import BOS, EOS, PAD, gpt2_folder, ids, words

from instruct_jax.data.batches import prompt_batches, ranking_batches, token_batches
from instruct_jax.data.encode import (
    TextFormat,
    encode_demonstrations,
    encode_given_rankings,
    encode_prompts,
    encode_rankings,
    encode_texts,
)
from instruct_jax.data.packing import pack
from instruct_jax.data.tokenize import load_tokenizer
from instruct_jax.errors import DataError

FORM = TextFormat(template="task : {prompt} reply :", max_prompt=8, max_completion=4)
PROMPT = [BOS, *ids("task : a b reply :")]


def test_prompt_and_completion_are_the_same_ids_on_every_path():
    tok = words()
    demonstration = {"prompt": "a b", "completion": "c d"}
    ranking = {"prompt": "a b", "completions": ["c d", "e"], "ranks": [1, 2]}
    [(sft, learn)] = encode_demonstrations(tok, [demonstration], FORM).items
    [(ranked, ranks)] = encode_rankings(tok, [ranking], FORM).items
    [prompt] = encode_prompts(tok, [demonstration], FORM).items
    assert prompt == PROMPT
    assert sft == ranked[0] == prompt + ids("c d") + [EOS]
    assert ranked[1] == prompt + ids("e") + [EOS] and ranks == [1, 2]

    tokens = token_batches(pack([(sft, learn)], 16, pad=PAD), batch=1, seed=0).batch_at(0)
    completions = ranking_batches([(ranked, ranks)], batch=1, seed=0, pad=PAD).batch_at(0)
    asked = prompt_batches([prompt], batch=1, seed=0, pad=PAD, sizes=[12]).batch_at(0)
    sampled = [*asked.tokens[asked.mask], *ids("c d"), EOS]  # what PPO would score
    assert (
        tokens.tokens[tokens.segments > 0].tolist()
        == completions.tokens[0, 0][completions.mask[0, 0]].tolist()
        == sampled
    )


def test_completion_and_eos_are_learned_and_the_prompt_is_not():
    [(sft, learn)] = encode_demonstrations(
        words(), [{"prompt": "a b", "completion": "c d"}], FORM
    ).items
    rows = pack([(sft, learn)], 16, pad=PAD)
    assert rows.tokens[rows.mask].tolist() == [*ids("c d"), EOS]
    assert token_batches(rows, batch=1, seed=0).batch_at(0).weight[
        rows.tokens == EOS
    ] == np.float32(1) / np.float32(3)


def test_every_reply_of_a_conversation_is_learned_with_its_eos():
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b c"), ("user", "d"))
    ]
    [(sft, learn)] = encode_demonstrations(
        words(), [{"prompt": turns, "completion": "e"}], TextFormat()
    ).items
    assert [i for i, own in zip(sft, learn, strict=True) if own] == [
        *ids("b c"),
        EOS,
        *ids("e"),
        EOS,
    ]


def test_a_reply_of_weight_0_is_read_and_not_learned():
    read_only = {"role": "assistant", "content": "b", "weight": 0}
    turns = [{"role": "user", "content": "a"}, read_only, {"role": "user", "content": "c"}]
    demonstration = {"prompt": turns, "completion": "d"}
    [(sft, learn)] = encode_demonstrations(words(), [demonstration], TextFormat()).items
    assert [i for i, own in zip(sft, learn, strict=True) if own] == [*ids("d"), EOS]
    del read_only["weight"]
    [(same, _)] = encode_demonstrations(words(), [demonstration], TextFormat()).items
    assert sft == same


def test_documents_learn_everything_but_bos():
    rows = pack(encode_texts(words(), [{"text": "a b c d e f g h"}, {"text": "i"}], 5), 5, pad=PAD)
    assert sorted(rows.tokens[rows.mask].tolist()) == sorted([*ids("a b c d e f g h i"), EOS, EOS])


LONG = {"prompt": "a b c d", "completion": "e"}
SHORT = {"prompt": "i", "completion": "j"}


@pytest.mark.parametrize(
    ("on_long", "expected", "kept"),
    [
        ("drop", [[BOS, *ids("task : i reply :")]], [1]),
        (
            "truncate_left",
            [[BOS, *ids("task : b c d reply :")], [BOS, *ids("task : i reply :")]],
            [0, 1],
        ),
        (
            "truncate_right",
            [[BOS, *ids("task : a b c reply :")], [BOS, *ids("task : i reply :")]],
            [0, 1],
        ),
    ],
)
def test_long_prompt(on_long, expected, kept, caplog):
    form = TextFormat(template=FORM.template, max_prompt=8, on_long=on_long)
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(words(), [LONG, SHORT], form)
    assert (encoded.items, encoded.kept, encoded.long_prompts, encoded.long_completions) == (
        expected,
        kept,
        1,
        0,
    )
    assert f"on_long={on_long}" in caplog.text and "1 prompts" in caplog.text
    # Human: ... Assistant: are 3 ids here, with bos 4
    turns = [{"role": "user", "content": "a b c d"}]
    if on_long != "drop":
        [cut] = encode_prompts(
            words(), [{"prompt": turns}], TextFormat(max_prompt=6, on_long=on_long)
        ).items
        assert len(cut) == 6


@pytest.mark.parametrize("on_long", ["truncate_left", "truncate_right"])
def test_long_conversation_loses_its_oldest_exchange_first(on_long):
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a b c"), ("assistant", "d"), ("user", "e f"))
    ]
    form = TextFormat(max_prompt=6, on_long=on_long)  # bos, Human:, e, f, Assistant: are 5 ids
    assert (
        encode_prompts(words(), [{"prompt": turns}], form).items
        == encode_prompts(words(), [{"prompt": turns[2:]}], form).items
    )
    system = {"role": "system", "content": "g"}
    form = TextFormat(max_prompt=7, on_long=on_long)
    assert encode_prompts(words(), [{"prompt": [system, *turns]}], form).items == (
        encode_prompts(words(), [{"prompt": [system, *turns[2:]]}], form).items
    )


@pytest.mark.parametrize("on_long", ["truncate_left", "truncate_right"])
def test_a_reply_is_never_cut(on_long):
    turns = [
        {"role": role, "content": text}
        for role, text in (("user", "a b c"), ("assistant", "d e f g h"), ("user", "i"))
    ]
    form = TextFormat(max_prompt=13, on_long=on_long)  # one less than it has
    [(cut, learn)] = encode_demonstrations(
        words(), [{"prompt": turns, "completion": "j"}], form
    ).items
    assert len(cut) == 15 and [i for i, own in zip(cut, learn, strict=True) if own] == [
        *ids("d e f g h"),
        EOS,
        *ids("j"),
        EOS,
    ]


@pytest.mark.parametrize(
    ("on_long", "expected"), [("truncate_left", "> fgh:"), ("truncate_right", "> xab:")]
)
def test_long_prompt_loses_no_more_than_it_must(tmp_path, on_long, expected):
    tok = load_tokenizer(gpt2_folder(tmp_path))
    limit = len(expected) - (on_long == "truncate_right")  # "ab" is one token
    [ids] = encode_prompts(
        tok, [{"prompt": "xabcdefgh"}], TextFormat("> {prompt}:", max_prompt=limit, on_long=on_long)
    ).items
    assert tok.decode(ids) == expected
    emoji = encode_prompts(
        tok, [{"prompt": "\U0001f600" * 5}], TextFormat(max_prompt=9, on_long=on_long)
    ).items[0]
    assert tok.decode(emoji) == "\U0001f600" * 2  # 4 tokens each, never half of one


def test_long_completion():
    records = [{"prompt": "a", "completion": "a b c d e"}, {"prompt": "a", "completion": "f"}]
    cut = encode_demonstrations(
        words(), records, TextFormat(max_completion=4, on_long="truncate_left")
    )
    assert cut.items[0][0] == [BOS, *ids("a a b c d")]  # no eos: this is not where the text ends
    assert cut.items[1][0][-1] == EOS and cut.long_completions == 1
    assert (
        len(
            encode_demonstrations(
                words(), records, TextFormat(max_completion=4, on_long="drop")
            ).items
        )
        == 1
    )


@pytest.mark.parametrize("on_long", ["drop", "truncate_left", "truncate_right"])
def test_a_ranking_is_never_cut(on_long):
    """People ranked whole completions."""
    records = [
        {"prompt": "a", "completions": ["a b c d e", "f"], "ranks": [2, 1]},
        {"prompt": "a", "completions": ["b", "f"], "ranks": [2, 1]},
    ]
    found = encode_rankings(words(), records, TextFormat(max_completion=4, on_long=on_long))
    assert found.kept == [1] and found.long_completions == 1


def test_the_same_tokens_have_one_rank():
    """As text they may differ: an EOS at the end is the one that every completion has."""
    record = {"prompt": "a", "completions": ["b c", "d", "b c<eos>"], "ranks": [1, 2, 3]}
    with pytest.raises(
        DataError,
        match=(
            r"record 1: completions\[2\]='b c<eos>' has the tokens of completions\[0\], but the"
            " ranks are 3 and 1; give them one rank"
        ),
    ):
        encode_given_rankings(words(), [record], FORM)
    tied = record | {"ranks": [1, 2, 1]}
    cut = record | {"ended": [True, True, False]}  # without EOS it is another text
    assert len(encode_given_rankings(words(), [tied, cut], FORM).items) == 2


def test_errors_say_where_and_how():
    with pytest.raises(
        DataError,
        match=(
            r"record 2: prompt='a b c d': its prompt has 9 tokens, more than max_prompt=8; raise"
            r" max_prompt"
        ),
    ):
        encode_demonstrations(words(), [SHORT, LONG], FORM)
    with pytest.raises(
        DataError,
        match=(
            "its completion has 6 tokens, more than max_completion=4; .*drop, truncate_left or"
            " truncate_right"
        ),
    ):
        encode_demonstrations(words(), [{"prompt": "a", "completion": "a b c d e"}], FORM)
    with pytest.raises(
        DataError, match="max_prompt=3 leaves no room beside the template; raise max_prompt"
    ):
        encode_prompts(
            words(),
            [SHORT],
            TextFormat(template=FORM.template, max_prompt=3, on_long="truncate_left"),
        )
    with pytest.raises(DataError, match="record 1: text='a <eos>' holds the eos_token"):
        encode_prompts(words(), [{"prompt": "a <eos>"}], TextFormat())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "no place"}, "template='no place' must hold {prompt}"),
        ({"max_prompt": 0}, "max_prompt=0"),
        ({"max_completion": 1}, "max_completion=1"),
        ({"on_long": "cut"}, "on_long='cut' is unknown; use error, drop"),
    ],
)
def test_bad_format(options, message):
    with pytest.raises(ValueError, match=message):
        TextFormat(**options)
