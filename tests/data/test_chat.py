"""One path from a conversation to ids, for tokenizers of five families."""

import itertools

import jax.numpy as jnp
import pytest
from chats import FAMILIES, QWEN_CHAT, Family, gemma, qwen
from transformers import AutoTokenizer

from instruct_jax.data.batches import prompt_batches, ranking_batches, token_batches
from instruct_jax.data.encode import (
    TextFormat,
    encode_demonstrations,
    encode_prompts,
    encode_rankings,
)
from instruct_jax.data.packing import pack
from instruct_jax.data.tokenize import (
    DEFAULT_TEMPLATE,
    decode_completion,
    encode_completion,
    encode_conversation,
    encode_prompt,
    load_tokenizer,
)
from instruct_jax.errors import DataError
from instruct_jax.ops.masking import last_index


def talk(*texts: str) -> list[dict[str, str]]:
    """talk("question", "reply", "question")"""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tok(family, tmp_path_factory):
    return family.load(tmp_path_factory.mktemp("tok"))


@pytest.fixture(
    params=[
        talk("Name a colour."),
        talk("Name a colour.", "Blue.", "Another one, please?"),
        "Name a colour.",
    ]
)
def prompt(request):
    return request.param


REPLY = "Red, or sky blue."


def test_ids_of_prompt_and_completion_are_the_same_in_every_stage(family, tok, prompt):
    form, eos, pad = TextFormat(completion_prefix=family.space), tok.eos_token_id, tok.pad_token_id
    ranking = {"prompt": prompt, "completions": ["Red is another.", REPLY], "ranks": [2, 1]}
    [demonstration] = encode_demonstrations(
        tok, [{"prompt": prompt, "completion": REPLY}], form
    ).items
    rankings, prompts = (
        encode_rankings(tok, [ranking], form).items,
        encode_prompts(tok, [{"prompt": prompt}], form).items,
    )
    learned = token_batches(pack([demonstration], 400, pad=pad), batch=1, seed=0).batch_at(0)
    ranked = ranking_batches(rankings, batch=1, seed=0, pad=pad).batch_at(0)
    # of sampling and PPO
    asked = prompt_batches(prompts, batch=1, seed=0, pad=pad, sizes=[400]).batch_at(0)

    ids = [*asked.tokens[asked.mask], *encode_completion(tok, REPLY, prefix=family.space)]
    assert learned.tokens[learned.segments > 0].tolist() == ids
    assert ranked.tokens[0, 1][ranked.mask[0, 1]].tolist() == ids
    last = int(last_index(jnp.asarray(ranked.mask[0]))[1])  # where the reward is read
    assert last == len(ids) - 1 and ranked.tokens[0, 1, last] == eos and pad not in ids
    assert ids.count(tok.bos_token_id) == 1 if family.bos else ids[0] not in (tok.bos_token_id, eos)
    assert decode_completion(tok, ids[len(prompts[0]) :], prefix=family.space) == REPLY


def test_ids_are_those_of_the_chat_template(family, tok):
    turns = talk("Name a colour.", f"{family.space}Blue.", "Another one, please?")
    template = None if tok.chat_template else DEFAULT_TEMPLATE

    def theirs(messages, more: bool) -> list[int]:
        return tok.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=more,
            tokenize=True,
            return_dict=False,
        )

    ours, opening = (
        encode_prompt(tok, turns, prefix=family.space),
        tok.encode(family.opening, add_special_tokens=False),
    )
    assert ours == theirs(turns, True) and ours[-len(opening) :] == opening
    whole = ours + encode_completion(tok, REPLY, prefix=family.space)
    assert (
        theirs([*turns, {"role": "assistant", "content": family.space + REPLY}], False)[
            : len(whole)
        ]
        == whole
    )


def test_replies_and_their_ends_are_learned_and_nothing_else(family, tok):
    turns, form = (
        talk("Name a colour.", "Blue.", "Another one, please?", "Red is another.", "Be brief."),
        TextFormat(completion_prefix=" "),
    )
    [(ids, learn)] = encode_demonstrations(
        tok, [{"prompt": turns, "completion": REPLY}], form
    ).items
    replies = [
        encode_completion(tok, text, prefix=" ") for text in ("Blue.", "Red is another.", REPLY)
    ]
    assert [i for i, own in zip(ids, learn, strict=True) if own] == [*itertools.chain(*replies)]
    starts = [i for i, own in enumerate(learn) if own and not learn[i - 1]]
    assert [ids[i : i + len(reply)] for i, reply in zip(starts, replies, strict=True)] == replies
    assert not any(encode_conversation(tok, "Name a colour.")[1])


def test_special_tokens_in_messages_are_text(family, tok):
    plain = encode_conversation(
        tok, talk("Name  a colour.", "Blue.", "Be brief."), prefix=family.space
    )
    typed = encode_conversation(
        tok,
        talk(f"Name {family.foreign} a colour.", f"{family.foreign} Blue.", "Be brief."),
        prefix=family.space,
    )
    special = set(tok.added_tokens_decoder)
    assert [i for i in typed[0] if i in special] == [i for i in plain[0] if i in special]
    assert (
        tok.decode(typed[0]).count(family.foreign) == tok.decode(plain[0]).count(family.foreign) + 2
    )


def test_a_loaded_tokenizer_that_adds_tokens_by_itself_adds_none_here(tmp_path):
    tok = FAMILIES["OPT"].load(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Blue.")[0] == tok.eos_token_id
    assert tok.eos_token_id not in encode_prompt(tok, "Blue.")


def test_the_end_of_a_turn_can_be_named(tmp_path):
    """As for Gemma, whose eos_token is <eos>."""
    gemma(tmp_path, eos="<eos>")
    turns = talk("Name a colour.")
    with pytest.raises(
        DataError,
        match=(
            "ends replies with '<end_of_turn>', but eos_token='<eos>'; set"
            " data.eos_token='<end_of_turn>'"
        ),
    ):
        encode_prompt(load_tokenizer(tmp_path), turns)
    tok = load_tokenizer(tmp_path, eos_token="<end_of_turn>")
    assert tok.decode(encode_completion(tok, "Blue.")) == "Blue.<end_of_turn>" and encode_prompt(
        tok, turns
    )


CHANGED = QWEN_CHAT.replace("'<|im_end|>\n'", "'<|endoftext|>\n'")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            CHANGED,
            (
                r"ends replies with '<\|endoftext\|>', but eos_token='<\|im_end\|>'; set"
                r" data.eos_token='<\|endoftext\|>'"
            ),
        ),
        (
            "{{ messages[-1]['content'] }}",
            "does not write every message once; correct it, or the roles",
        ),
        (
            "{% for m in messages %}{{ m['content'] * 2 }}{% endfor %}",
            "does not write every message once",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_followed(tmp_path, template, message):
    tok = Family(qwen, "", False).load(tmp_path)
    tok.chat_template = template
    with pytest.raises(DataError, match=message):
        encode_prompt(tok, talk("Name a colour.", "Blue.", "Be brief."))


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content']"
    " + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def test_a_tokenizer_that_puts_a_space_before_every_text(tmp_path):
    """As Mistral's and Llama 2's, whose words begin with one: with the prefix " " a reply has the
    same ids wherever it stands.
    """
    gemma(tmp_path, eos="<eos>", prepend="first", chat=MISTRAL)
    tok, turns = load_tokenizer(tmp_path), talk("Name a colour.", "Blue.", "Another one, please?")
    ours = encode_prompt(tok, turns, prefix=" ") + encode_completion(tok, REPLY, prefix=" ")
    assert ours == tok.apply_chat_template(
        [*turns, {"role": "assistant", "content": REPLY}], tokenize=True, return_dict=False
    )


def test_no_prompt_changes_overnight(tmp_path):
    """Llama 3.2's template writes today's date."""
    tok = Family(qwen, "", False).load(tmp_path)
    tok.chat_template = (
        "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}: " + QWEN_CHAT
    )
    text = tok.decode(encode_prompt(tok, talk("Name a colour.")))
    assert isinstance(text, str) and text.startswith("26 Jul 2024: ")


def test_spaces_that_a_template_puts_around_a_reply_are_not_doubled(tmp_path):
    tok = Family(qwen, "", False).load(tmp_path)
    tok.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' <|im_end|>' }}{% endfor %}"
    )
    ids, learn = encode_conversation(tok, talk("Name a colour.", "Blue."), prefix=" ")
    assert tok.decode(ids) == "user: Name a colour. <|im_end|>assistant: Blue.<|im_end|>"
    assert [i for i, own in zip(ids, learn, strict=True) if own] == encode_completion(
        tok, "Blue.", prefix=" "
    )
