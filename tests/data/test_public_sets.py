"""Real data, where it is: INSTRUCT_JAX_DATA names the folder (see instruct_jax/data/public_sets.py
for its layout).
"""

import collections
import os
from pathlib import Path

import numpy as np
import pytest

from instruct_jax.data import public_sets as adapters
from instruct_jax.data.encode import (
    TextFormat,
    encode_demonstrations,
    encode_rankings,
    encode_texts,
)
from instruct_jax.data.packing import pack
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.tokenize import (
    decode_completion,
    encode_completion,
    encode_prompt,
    load_tokenizer,
)
from instruct_jax.errors import DataError

ROOT = os.environ.get("INSTRUCT_JAX_DATA", "")
real = pytest.mark.skipif(
    not ROOT, reason="real data: set INSTRUCT_JAX_DATA to the folder that holds it"
)


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer(Path(ROOT) / "gpt2_bpe")


@pytest.mark.parametrize(
    "adapter",
    ["oasst_rankings", "hh_rankings", "seed_demonstrations", "user_prompts", "novels", "wikitext"],
)
def test_missing_folder_says_so(adapter, tmp_path):
    with pytest.raises(DataError, match="no such folder; download the data set there"):
        getattr(adapters, adapter)(tmp_path)
    for name in (
        "oasst_en100",
        "hh_rlhf_harmless_test",
        "self_instruct_seed",
        "gutenberg",
        "wikitext2",
    ):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no .*download the data set there"):
        getattr(adapters, adapter)(tmp_path)


def test_hh_of_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(
        pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache"
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(tmp_path / name))
    talk = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: and?\n\nAssistant:"
    pairs = [{"chosen": talk + " so", "rejected": talk + " no"}, {"chosen": talk, "rejected": talk}]
    write_jsonl(tmp_path / "A/hh/base/train.jsonl.gz", pairs)
    asked = [
        {"role": role, "content": said}
        for role, said in (("user", "hi"), ("assistant", "yo"), ("user", "and?"))
    ]
    place = "hh:hub:A/hh:train"
    rankings, demonstrations = (
        adapters.load("rankings", place),
        adapters.load("demonstrations", place),
    )
    assert (
        rankings
        == [{"prompt": asked, "completions": [" so", " no"], "ranks": [1, 2], "source": "hh"}]
        and len(rankings.dropped) == 1
    )
    assert (
        demonstrations == [{"prompt": asked, "completion": "so", "source": "hh"}]
        and len(demonstrations.dropped) == 1
    )
    assert adapters.load("prompts", place) == [{"prompt": asked, "source": "hh"}] * 2


@real
def test_gpt2(gpt2):
    assert (gpt2.eos_token_id, gpt2.pad_token_id, len(gpt2)) == (50256, 50257, 50258)
    assert encode_prompt(gpt2, "Hello world") == [15496, 995]
    for text in [
        "Hello world",
        " caf\u00e9 \u2028 \U0001f600 \u4f60\u597d\n\n\t x",
        "<|endoftext|> typed by a user",
    ]:
        encoded = encode_completion(gpt2, text)
        assert encoded.index(50256) == len(encoded) - 1
        assert decode_completion(gpt2, encoded) == text


@real
def test_oasst(gpt2):
    rankings = adapters.oasst_rankings(ROOT)
    assert len(rankings) == 212
    assert collections.Counter(len(r["ranks"]) for r in rankings) == {
        2: 57,
        3: 117,
        4: 27,
        5: 3,
        6: 6,
        8: 1,
        9: 1,
    }
    assert sum(len(r["ranks"]) * (len(r["ranks"]) - 1) // 2 for r in rankings) == 754
    assert all(sorted(r["ranks"]) == list(range(1, len(r["ranks"]) + 1)) for r in rankings)
    demonstrations = adapters.oasst_demonstrations(ROOT)
    best = {(str(r["prompt"]), r["completions"][r["ranks"].index(1)]) for r in rankings}
    assert best <= {(str(d["prompt"]), d["completion"]) for d in demonstrations}
    prompts = adapters.oasst_prompts(ROOT)
    assert len(prompts) == 480 and all(p["prompt"][-1]["role"] == "user" for p in prompts)

    form = TextFormat(max_prompt=1024, max_completion=1024, on_long="drop")
    encoded = encode_rankings(gpt2, rankings, form)
    assert len(encoded.items) + encoded.long_prompts + encoded.long_completions >= 212
    assert all(ids[-1] == 50256 for completions, _ in encoded.items for ids in completions)
    found = encode_demonstrations(gpt2, demonstrations, form)
    samples, replies = (
        found.items,
        [m for i in found.kept for m in demonstrations[i]["prompt"] if m["role"] == "assistant"],
    )
    rows = pack(samples, 2048, pad=gpt2.pad_token_id)
    assert (rows.segments > 0).sum() == sum(len(ids) for ids, _ in samples)
    assert rows.mask.sum() == sum(sum(learn) for _, learn in samples)
    # each reply teaches its end
    assert (rows.tokens[rows.mask] == 50256).sum() == len(samples) + len(replies)
    assert not rows.mask[rows.tokens == gpt2.pad_token_id].any()


@real
def test_hh(gpt2):
    pairs = adapters.hh_rankings(ROOT)
    assert len(pairs) + len(pairs.dropped) == 2312 and len(pairs.dropped) == 4  # empty replies
    assert all(
        p["prompt"][0]["role"] == p["prompt"][-1]["role"] == "user" and p["ranks"] == [1, 2]
        for p in pairs
    )
    assert sum(len(p["prompt"]) > 1 for p in pairs) > 1000 and not any(
        "Assistant:" in p["prompt"][0]["content"] for p in pairs
    )
    assert all(len(set(p["completions"])) == 2 for p in pairs)
    assert len(encode_rankings(gpt2, pairs[:50], TextFormat()).items) == 50
    assert len(adapters.hh_demonstrations(ROOT)) == 2304 and len(adapters.hh_prompts(ROOT)) == 2308


@real
def test_self_instruct():
    demonstrations, prompts = adapters.seed_demonstrations(ROOT), adapters.user_prompts(ROOT)
    assert (len(demonstrations), len(prompts)) == (175, 252)
    assert len({p["user_id"] for p in prompts}) == 71
    assert all(d["prompt"].strip() and d["completion"].strip() for d in demonstrations)


@real
def test_texts(gpt2):
    novels = adapters.novels(ROOT)
    assert len(novels) == 14 and sum(len(n["text"]) for n in novels) > 19_000_000
    articles = adapters.wikitext(ROOT)
    assert len(articles) == 60 and all(a["text"].startswith("= ") for a in articles)
    samples = encode_texts(gpt2, articles[:5], 128)
    rows = pack(samples, 128, pad=gpt2.pad_token_id)
    tokens = sum(len(gpt2.encode(a["text"], split_special_tokens=True)) for a in articles[:5])
    assert rows.mask.sum() == tokens  # bos is none, the first token is not learned, eos is
    assert np.array_equal(rows.mask, rows.mask & (rows.segments > 0))
