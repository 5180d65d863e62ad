"""Corpus, demonstrations, probes and tokenizer."""

import collections

import pytest
from transformers import AutoTokenizer

from instruct_jax.world.corpus import MAX_DOCUMENT_TOKENS, documents
from instruct_jax.world.demonstrations import (
    CARELESS,
    FLAWS,
    MAX_WORDS,
    demonstrations,
    few_shot_prefix,
)
from instruct_jax.world.instructions import SPLITS, prompts, split_of
from instruct_jax.world.probes import KINDS, copy_probes
from instruct_jax.world.tokenizer import save_tokenizer
from instruct_jax.world.vocabulary import RUDE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(0, folder)
    return AutoTokenizer.from_pretrained(folder)


def test_documents_fill_the_wanted_tokens():
    texts = documents(0, 20_000)
    total = sum(len(text.split()) for text in texts)
    assert 20_000 <= total < 20_000 + MAX_DOCUMENT_TOKENS
    assert max(len(text.split()) for text in texts) <= MAX_DOCUMENT_TOKENS
    assert texts == documents(0, 20_000) != documents(1, 20_000)


def test_threads_in_the_corpus_keep_out_of_the_other_splits():
    texts = [
        text
        for text in documents(0, 200_000)
        if text.startswith("task :") and text.count("task :") == 1
    ]
    asked = {text.split(" reply :")[0] + " reply :" for text in texts}
    # a rude word is put in afterwards
    untouched = [prompt for prompt in asked if not set(prompt.split()) & set(RUDE)]
    assert len(untouched) > 100 and {split_of(prompt) for prompt in untouched} == {"corpus"}


def test_demonstrations_are_imperfect_in_the_stated_shares():
    records = demonstrations(0, 2000)
    kinds = collections.Counter(record["kind"] for record in records)
    assert sum(kinds[flaw] for flaw in FLAWS) / 2000 == pytest.approx(CARELESS, abs=0.03)
    assert min(kinds[flaw] for flaw in FLAWS) > 70
    assert all(0 < len(record["completion"].split()) <= MAX_WORDS for record in records)
    assert all(split_of(record["prompt"]) == "demonstrations" for record in records)
    assert records[:100] == demonstrations(0, 100) != demonstrations(1, 100)


def test_few_shot_prefix_shows_different_use_cases():
    prefix = few_shot_prefix(0, 3)
    assert prefix.count("task :") == prefix.count("reply :") == 3 and prefix.endswith(".")


def test_probe_answers_stand_in_the_context():
    probes = copy_probes(0, 90)
    assert collections.Counter(probe["kind"] for probe in probes) == dict.fromkeys(KINDS, 30)
    assert all(
        word in probe["prompt"].split()
        for probe in probes
        for word in probe["answer"].split()
        if word not in ",."
    )
    assert probes == copy_probes(0, 90) != copy_probes(1, 90)


def test_tokenizer_has_four_distinct_special_tokens_in_front(tokenizer):
    ids = (
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    )
    assert ids == (0, 1, 2, 3)
    assert tuple(tokenizer.convert_ids_to_tokens(list(ids))) == ("<pad>", "<bos>", "<eos>", "<unk>")
    assert 120 < len(tokenizer) < 180


def test_tokenizer_round_trip_of_all_world_text(tokenizer):
    texts = documents(7, 30_000)  # another seed than it was trained on
    texts += [f"{record['prompt']} {record['completion']}" for record in demonstrations(7, 300)]
    texts += [record["prompt"] for split in SPLITS for record in prompts(7, 100, split)]
    texts += [f"{probe['prompt']} {probe['answer']}" for probe in copy_probes(7, 30)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_special_tokens_in_text_are_read_as_themselves(tokenizer):
    assert tokenizer.encode("<bos> the fox <eos> zebra")[::2] == [1, tokenizer.encode("fox")[0], 3]
    assert (
        tokenizer.decode(tokenizer.encode("<bos> the fox <eos>"), skip_special_tokens=True)
        == "the fox"
    )


def test_tokenizer_is_a_function_of_the_seed(tokenizer, tmp_path):
    assert save_tokenizer(0, tmp_path).get_vocab() == tokenizer.get_vocab()
