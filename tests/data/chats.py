"""Tokenizers of five families for tests, each as large as a test needs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from instruct_jax.data.tokenize import load_tokenizer

TEXT = (
    "Human: Name a colour. Assistant: Blue, or sky blue. Another one, please? user model assistant"
    " system Be brief. Red is another."
)
LLAMA = (  # of Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CHAT = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' +"
    " m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else"
    " m['role'] %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{%"
    " endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Family(NamedTuple):
    build: Callable[[Path], object]  # writes the tokenizer folder
    opening: str  # the generation prompt
    bos: bool  # has a BOS of its own
    space: str = ""  # before a reply
    foreign: str = "<pad>"  # a special token that a user could type

    def load(self, folder: Path, **options: str) -> PreTrainedTokenizerBase:
        self.build(folder)
        return load_tokenizer(folder, **options)


def byte_bpe(split: pre_tokenizers.PreTokenizer | None, special: list[str]) -> Tokenizer:
    """Special tokens come after the others, as in published vocabularies."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        [TEXT] * 2,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    core.decoder = decoders.ByteLevel()
    return core


def gpt2(folder: Path) -> None:
    state = json.loads(byte_bpe(None, []).to_str())["model"]
    vocabulary = state["vocab"] | {"<|endoftext|>": len(state["vocab"])}
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    (folder / "vocab.bpe").write_text(
        "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in state["merges"])
    )


def llama(folder: Path) -> None:
    words = pre_tokenizers.Split(Regex(LLAMA), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Sequence([words, to_bytes])
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|right_pad_id|>",
    ]
    core = byte_bpe(split, names)
    bos = (names[0], core.token_to_id(names[0]))
    core.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    special = {"bos_token": names[0], "eos_token": "<|eot_id|>", "pad_token": "<|right_pad_id|>"}
    PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=LLAMA_CHAT, **special
    ).save_pretrained(folder)


def gemma(
    folder: Path, eos: str = "<end_of_turn>", prepend: str = "never", chat: str = GEMMA_CHAT
) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    core.train_from_iterator(
        [TEXT] * 2, trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    state = json.loads(core.to_str())
    state["model"]["vocab"] |= {
        f"<0x{byte:02X}>": len(state["model"]["vocab"]) + byte for byte in range(256)
    }
    core = Tokenizer.from_str(json.dumps(state))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    names = {"pad_token": "<pad>", "eos_token": eos, "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, chat_template=chat, **names).save_pretrained(
        folder
    )


def qwen(folder: Path) -> None:
    core = byte_bpe(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=QWEN_CHAT, **names
    ).save_pretrained(folder)


def opt(folder: Path) -> None:
    core = byte_bpe(None, ["<pad>", "</s>"])
    end = ("</s>", core.token_to_id("</s>"))
    core.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[end])
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


FAMILIES = {
    "GPT-2": Family(gpt2, "Assistant:", bos=False, space=" ", foreign="<|endoftext|>"),
    "Llama 3": Family(
        llama,
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos=True,
        foreign="<|start_header_id|>",
    ),
    "Gemma": Family(gemma, "<start_of_turn>model\n", bos=True, foreign="<end_of_turn>"),
    "Qwen": Family(qwen, "<|im_start|>assistant\n", bos=False, foreign="<|im_end|>"),
    "OPT": Family(opt, "Assistant:", bos=False, space=" ", foreign="</s>"),
}
