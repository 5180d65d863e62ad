import pytest
from wordtok import BOS, EOS, PAD, UNK, gpt2_folder, ids, words

from instruct_jax.data.tokenize import (
    check_tokenizer,
    check_vocabulary,
    decode_completion,
    encode_completion,
    encode_document,
    encode_prompt,
    fingerprint,
    load_tokenizer,
)
from instruct_jax.errors import DataError

CHAT = (
    "{{ '<bos>' }}{% for m in messages %} {{ m['content'] }} {% endfor %}{% if"
    " add_generation_prompt %} reply : {% endif %}"
)


def test_prompt_has_one_bos_and_completion_one_eos():
    tok = words()
    assert encode_prompt(tok, "a b") == [BOS, *ids("a b")]
    assert encode_prompt(tok, "a b", template="task : {prompt} reply :") == [
        BOS,
        *ids("task : a b reply :"),
    ]
    assert (
        encode_completion(tok, "c d") == encode_completion(tok, "c d <eos>") == [*ids("c d"), EOS]
    )
    assert encode_document(tok, "a") == [BOS, *ids("a"), EOS]
    assert encode_completion(tok, "") == [EOS]


def test_braces_in_a_prompt_are_text():
    assert encode_prompt(words(), "{a} b", template="task {prompt}") == [
        BOS,
        *ids("task"),
        UNK,
        *ids("b"),
    ]


def test_messages():
    tok = words()
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    # Human: a Assistant: b<eos> ...
    assert encode_prompt(tok, turns) == [
        BOS,
        UNK,
        *ids("a"),
        UNK,
        *ids("b"),
        EOS,
        UNK,
        *ids("c"),
        UNK,
    ]


def test_chat_template_writes_bos_only_once():
    pytest.importorskip("jinja2")
    turns = [{"role": "user", "content": text} for text in "abc"]
    assert encode_prompt(words(chat_template=CHAT), turns) == [BOS, *ids("a b c reply :")]
    assert encode_prompt(words(chat_template=CHAT.replace("<bos>", "")), turns) == [
        BOS,
        *ids("a b c reply :"),
    ]


@pytest.mark.parametrize("text", ["a <eos> b", "a <pad>", "<bos> a"])
def test_special_words_in_text_are_refused_where_they_cannot_be_spelled(text):
    with pytest.raises(DataError, match="text=.*holds the .*_token.*remove it"):
        encode_prompt(words(), text)


def test_byte_tokenizer(tmp_path):
    tok = load_tokenizer(gpt2_folder(tmp_path / "gpt2"))
    # PAD is new, and EOS is no BOS
    assert (len(tok), tok.eos_token_id, tok.pad_token_id) == (259, 257, 258)
    eos = tok.eos_token_id
    assert isinstance(eos, int)
    assert encode_prompt(tok, "ab") == [256]
    assert eos not in encode_prompt(tok, "x<|endoftext|>y")
    for text in ["cab <|endoftext|> cab", " two  spaces ", "\u2028 caf\u00e9 \U0001f600\n"]:
        for prefix in ("", " "):
            encoded = encode_completion(tok, text, prefix=prefix)
            assert encoded.count(eos) == 1 and encoded[-1] == eos
            assert decode_completion(tok, [*encoded, 5, 6], prefix=prefix) == text.removeprefix(
                prefix
            )
    assert encode_completion(tok, " ab", prefix=" ") == encode_completion(tok, "ab", prefix=" ")


def test_saved_and_loaded_is_the_same(tmp_path):
    tok = load_tokenizer(gpt2_folder(tmp_path / "gpt2"))
    tok.save_pretrained(tmp_path / "hf")
    again = load_tokenizer(tmp_path / "hf")
    assert encode_prompt(again, "cab") == encode_prompt(tok, "cab")
    assert fingerprint(again) == fingerprint(tok)
    assert again.pad_token_id == tok.pad_token_id


def test_fingerprint_sees_every_change():
    tok = words()
    same = fingerprint(tok)
    # leaves its mark in the library's state
    tok(["a", "a b"], padding=True, truncation=True, max_length=1)
    assert fingerprint(tok) == same
    others = [words(eos_token="j"), words(chat_template=CHAT), words(pad_token="i")]
    assert len({same, *map(fingerprint, others)}) == 4
    assert len(same) == 16


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"eos_token": None}, "eos_token=None.*set data.eos_token to one of .*<bos>"),
        ({"pad_token": None}, "pad_token=None.*data.pad_token=.*'<pad>', or a new one"),
        (
            {"pad_token": "<eos>"},
            (
                "pad_token='<eos>' is also the eos_token.*own token, data.pad_token=.*'<pad>', or"
                " a new one such as .*id 17"
            ),
        ),
    ],
)
def test_tokenizer_without_end_or_padding_is_refused(special, message, tmp_path):
    with pytest.raises(DataError, match=message):
        check_tokenizer(words(**special))
    words(**special).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_padding_can_be_named(tmp_path):
    words(pad_token="<eos>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, pad_token="<pad>").pad_token_id == PAD
    new = load_tokenizer(tmp_path, pad_token="<|new|>")
    assert new.pad_token_id == len(new) - 1 == len(words())


def test_end_can_be_named(tmp_path):
    words(eos_token=None).save_pretrained(tmp_path)
    tok = load_tokenizer(tmp_path, eos_token="j")
    assert encode_completion(tok, "a") == ids("a j") and len(tok) == len(words())
    with pytest.raises(
        DataError, match="data.eos_token='</s>' is not in the vocabulary; use one of .*<bos>"
    ):
        load_tokenizer(tmp_path, eos_token="</s>")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such model folder.*OWNER/NAME"),
        ({}, "not a tokenizer folder.*save_pretrained"),
        ({"tokenizer.json": "{"}, "not a tokenizer folder.*save_pretrained"),
        ({"encoder.json": "{}"}, "vocab.bpe is missing"),
        ({"encoder.json": "{", "vocab.bpe": ""}, "broken GPT-2 tokenizer.*again"),
        ({"encoder.json.gz": "x", "vocab.bpe": ""}, "broken GPT-2 tokenizer.*again"),
    ],
)
def test_bad_folder(tmp_path, files, message):
    folder = tmp_path / "tok"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(folder)


def test_vocabulary_must_fit_the_model():
    check_vocabulary(words(), len(words()), len(words()))
    with pytest.raises(
        DataError, match="model.vocab_size=9 is smaller.*17 ids; set it to at least 17"
    ):
        check_vocabulary(words(), 9, 20)


def test_only_padding_may_lie_beyond_the_vocabulary(tmp_path):
    tok = load_tokenizer(gpt2_folder(tmp_path))  # PAD is id 258
    check_vocabulary(tok, 258, 259)
    with pytest.raises(
        DataError, match="model.vocab_size=257 is smaller than the tokenizer's 258 ids"
    ):
        check_vocabulary(tok, 257, 512)
    with pytest.raises(
        DataError,
        match=(
            "has id 258, and model.vocab_size=258 makes 258 rows; set"
            " model.vocab_multiple=64.*data.pad_token"
        ),
    ):
        check_vocabulary(tok, 258, 258)
