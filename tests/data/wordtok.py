"""Tokenizers for tests: one word, one id; and a tiny GPT-2."""

import functools
import json

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "task", ":", "reply", *"a b c d e f g h i j".split()]
PAD, BOS, EOS, UNK = range(4)


@functools.cache
def words(**special) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
    } | special
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def gpt2_folder(folder):
    """A tiny GPT-2 tokenizer: 256 bytes, one merge, the end token last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    folder.mkdir(exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\n")
    return folder
