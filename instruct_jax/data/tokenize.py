"""Text to token ids, along one path for every stage: ids(prompt) + ids(completion), never
ids(prompt + completion).

A prompt begins with BOS exactly once where the tokenizer has a BOS of its own (GPT-2's is its EOS:
none is put in front); a completion ends with EOS.  Text is data: "<eos>" typed by a user is spelled
out in ordinary tokens, or refused where it cannot be.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from instruct_jax.data.hub import model_folder
from instruct_jax.errors import DataError, shorten

Prompt = str | list[dict[str, str]]  # text, or messages with `role` and `content`

GPT2_END, GPT2_PAD = "<|endoftext|>", "<|pad|>"
DEFAULT_TEMPLATE = (  # of messages, where the tokenizer has no chat template
    "{% for message in messages %}{% if message.role == 'user' %}Human: {{ message.content }}\n\n{%"
    " elif message.role == 'assistant' %}Assistant:{{ message.content }}{{ eos_token }}\n\n{% elif"
    " message.role == 'system' %}{{ message.content }}\n\n{% else %}{{ raise_exception('the role '"
    " ~ message.role ~ ' needs a chat template; use user, assistant, system') }}{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# what templates of Llama 3 write as today's where nobody says it: a run has the same prompts
# tomorrow
DATE = "26 Jul 2024"
MESSAGES = (  # the template of a text prompt that reads as one such message
    "Human: {prompt}\n\nAssistant:"
)
# stands for the content of message number ... while a template is filled in; characters of private
# use
MARK = "\ue000{}\ue001"


def load_tokenizer(
    path: str | Path, *, pad_token: str | None = None, eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """A Hugging Face tokenizer: a folder, or OWNER/NAME of the hub; or a GPT-2 folder with
    encoder.json and vocab.bpe (or .gz).

    `pad_token` takes the place of its PAD: a token of its vocabulary, or a new one with id
    len(tokenizer).  GPT-2 style tokenizers without PAD get "<|pad|>" by themselves (GPT-2: id
    50257).  `eos_token`, of its vocabulary, takes the place of its EOS.
    """
    folder = model_folder(str(path), weights=False)
    tok = _load_gpt2(folder) if any(folder.glob("encoder.json*")) else _load_hf(folder)
    if eos_token is not None:
        if eos_token not in tok.get_vocab():
            raise DataError(
                f"{folder}: data.eos_token={eos_token!r} is not in the vocabulary; use one of"
                f" {shorten(_special(tok), 200)}"
            )
        tok.add_special_tokens({"eos_token": eos_token})
    if pad_token is None and tok.pad_token_id is None and tok.eos_token == GPT2_END:
        pad_token = GPT2_PAD
    if pad_token is not None:
        tok.add_special_tokens({"pad_token": pad_token})
    check_tokenizer(tok, folder)
    return tok


def _load_hf(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # the library raises anything from KeyError to a Rust panic's Exception for a broken folder
    except Exception as error:
        repair = (
            "save it with tokenizer.save_pretrained(folder), or give a folder with encoder.json and"
            " vocab.bpe"
        )
        raise DataError(
            f"{folder}: not a tokenizer folder ({shorten(error, 200)}); {repair}"
        ) from error


def _load_gpt2(folder: Path) -> PreTrainedTokenizerBase:
    try:
        vocabulary = json.loads(_read_text(folder, "encoder.json"))
        lines = _read_text(folder, "vocab.bpe").split("\n")
        merges = [
            (left, right)
            for left, _, right in (
                line.partition(" ") for line in lines if not line.startswith("#version")
            )
            if right
        ]
        core = ByteLevelBPETokenizer(vocabulary, merges)
        return PreTrainedTokenizerFast(
            tokenizer_object=core._tokenizer,
            bos_token=GPT2_END,
            eos_token=GPT2_END,
            unk_token=GPT2_END,
        )
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exceptions for words that are missing
        raise DataError(
            f"{folder}: broken GPT-2 tokenizer ({shorten(error, 200)}); copy encoder.json and"
            " vocab.bpe again"
        ) from error


def _read_text(folder: Path, name: str) -> str:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            data = path.read_bytes()
            return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    raise DataError(
        f"{folder}: {name} is missing; a GPT-2 tokenizer is encoder.json and vocab.bpe (or .gz)"
    )


def check_tokenizer(tok: PreTrainedTokenizerBase, where: Any = "tokenizer") -> None:
    """EOS and PAD exist and differ: with PAD = EOS a model never learns to stop."""
    if not tok.is_fast:
        raise DataError(
            f"{where}: {type(tok).__name__} is not a fast tokenizer; convert it to tokenizer.json"
        )
    if tok.eos_token_id is None:
        raise DataError(
            f"{where}: eos_token=None, so no response would ever end; set data.eos_token to one of"
            f" {shorten(_special(tok), 200)}"
        )
    if tok.pad_token_id is None:
        raise DataError(
            f"{where}: pad_token=None, so there is nothing to fill rows with; {_own_pad(tok)}"
        )
    if tok.pad_token_id == tok.eos_token_id:
        raise DataError(
            f"{where}: pad_token={tok.pad_token!r} is also the eos_token (id {tok.eos_token_id}),"
            f" so the end would be masked like padding; {_own_pad(tok)}"
        )


def _own_pad(tok: PreTrainedTokenizerBase) -> str:
    """The repair of a missing PAD: tokens that could be it are listed, and none is taken."""
    idle = re.compile(r"[<\[].*(pad|unused|reserved|filler).*[>\]]", re.IGNORECASE)
    found = sorted(
        (token for token in tok.get_vocab() if idle.fullmatch(token)),
        key=lambda token: ("pad" not in token.lower(), token),
    )
    known = (
        f"a token of the vocabulary that no text needs, {' or '.join(map(repr, found[:4]))}, or "
        if found
        else ""
    )
    return (
        f"give PAD its own token, data.pad_token=...: {known}a new one such as {GPT2_PAD!r}, which"
        f" takes id {len(tok)}"
    )


def _special(tok: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tok.added_tokens_decoder.values() if token.special]


def check_vocabulary(tok: PreTrainedTokenizerBase, vocab_size: int, rows: int) -> None:
    """Every id can be predicted, but PAD, which needs a row in the embedding and nothing more."""
    size = max(i for i in tok.get_vocab().values() if i != tok.pad_token_id) + 1
    if size > vocab_size:
        raise DataError(
            f"model.vocab_size={vocab_size} is smaller than the tokenizer's {size} ids; set it to"
            f" at least {size}"
        )
    if int(tok.pad_token_id) >= rows:  # pyright: ignore
        raise DataError(
            f"pad_token={tok.pad_token!r} has id {tok.pad_token_id}, and"
            f" model.vocab_size={vocab_size} makes {rows} rows; set model.vocab_multiple=64 to make"
            " some more, or data.pad_token to a token of the vocabulary"
        )


def fingerprint(tok: PreTrainedTokenizerBase) -> str:
    """16 hex digits that change when any id could: kept with checkpoints."""
    core = json.loads(tok.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # pyright: ignore
    state = (
        json.dumps(core),
        tok.bos_token_id,
        tok.eos_token_id,
        tok.pad_token_id,
        tok.chat_template,
    )
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def bos_ids(tok: PreTrainedTokenizerBase) -> list[int]:
    """[bos], or [] where the tokenizer has none of its own."""
    return [] if tok.bos_token_id in (None, tok.eos_token_id) else [tok.bos_token_id]  # pyright: ignore


def encode_prompt(
    tok: PreTrainedTokenizerBase, prompt: Prompt, *, template: str = "{prompt}", prefix: str = ""
) -> list[int]:
    """[bos] + ids of the prompt: text in the template, or messages in the tokenizer's chat
    template, up to where the reply begins.
    """
    return encode_conversation(tok, prompt, template=template, prefix=prefix)[0]


def encode_conversation(
    tok: PreTrainedTokenizerBase, prompt: Prompt, *, template: str = "{prompt}", prefix: str = ""
) -> tuple[list[int], list[bool]]:
    """The ids of encode_prompt, and True on the replies among them, each of which is encoded as a
    completion is.
    """
    if isinstance(prompt, str):
        pieces = [(_plain(tok, template.replace("{prompt}", prompt)), False)]
    else:
        pieces = _pieces(tok, prompt, prefix)
    ids, bos = [i for piece, _ in pieces for i in piece], bos_ids(tok)
    if not ids:
        raise DataError(
            f"prompt={shorten(prompt)} makes no token; correct chat_template, or use a tokenizer"
            " with such words"
        )
    bos = [] if ids[:1] == bos else bos  # most chat templates write it
    return bos + ids, [False] * len(bos) + [reply for piece, reply in pieces for _ in piece]


def _pieces(
    tok: PreTrainedTokenizerBase, messages: list[dict[str, str]], prefix: str
) -> list[tuple[list[int], bool]]:
    """(ids, is it a reply?) for the parts of messages: replies, contents that hold the text of a
    special token, what is between.
    """
    special = _special(tok)
    apart = [
        i
        for i, m in enumerate(messages)
        if m["role"] == "assistant" or any(token in m["content"] for token in special)
    ]
    marked = [{**m, "content": MARK.format(i)} if i in apart else m for i, m in enumerate(messages)]
    _check_end(tok, marked, special)
    parts = re.split(MARK.format(r"(\d+)"), _render(tok, marked, add_generation_prompt=True))
    numbers = [int(part) for part in parts[1::2]]
    if sorted(numbers) != apart:
        raise DataError(
            f"prompt={shorten(messages)}: the chat template does not write every message once;"
            " correct it, or the roles"
        )
    pieces, replies = [], [messages[i]["role"] == "assistant" for i in numbers]
    for text, after, before, i in zip(
        parts[::2], [False, *replies], [*replies, False], [*numbers, None], strict=True
    ):
        text = text.removesuffix(prefix) if before else text
        text = text.lstrip() if after and text.lstrip().startswith(str(tok.eos_token)) else text
        ids = _ids(tok, text)
        # the reply has its eos
        pieces.append((ids[1:] if after and ids[:1] == [tok.eos_token_id] else ids, False))
        if i is not None:
            content = messages[i]["content"]
            pieces.append(
                (
                    (
                        encode_completion(tok, content, prefix=prefix)
                        if before
                        else _plain(tok, content)
                    ),
                    before,
                )
            )
    return pieces


def _check_end(
    tok: PreTrainedTokenizerBase, messages: list[dict[str, str]], special: list[str]
) -> None:
    """A chat template ends a reply with eos, or with no special token."""
    mark = MARK.format(len(messages))
    text = _render(
        tok, [*messages, {"role": "assistant", "content": mark}], add_generation_prompt=False
    )
    end = max(
        (token for token in special if text.rpartition(mark)[2].lstrip().startswith(token)),
        key=len,
        default=tok.eos_token,
    )
    if end != tok.eos_token:
        raise DataError(
            f"the chat template ends replies with {end!r}, but eos_token={tok.eos_token!r}; set"
            f" data.eos_token={end!r}"
        )


def _render(tok: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> str:
    own = None if tok.chat_template is not None else DEFAULT_TEMPLATE
    try:
        return str(
            tok.apply_chat_template(
                messages, chat_template=own, tokenize=False, date_string=DATE, **options
            )
        )
    except Exception as error:  # the template's own complaints
        repair = "correct the roles, or chat_template of the tokenizer"
        raise DataError(
            f"prompt={shorten(messages)}: the chat template refuses it ({shorten(error, 200)});"
            f" {repair}"
        ) from error


def encode_completion(tok: PreTrainedTokenizerBase, text: str, *, prefix: str = "") -> list[int]:
    """ids + [eos].

    `prefix` (a space, for BPE) comes before the text unless it is there already;
    `decode_completion` is the inverse.
    """
    text = text.removesuffix(str(tok.eos_token))
    return _plain(tok, text if text.startswith(prefix) else prefix + text) + [tok.eos_token_id]  # pyright: ignore


def decode_completion(tok: PreTrainedTokenizerBase, ids: Iterable[int], *, prefix: str = "") -> str:
    """The text before the first EOS."""
    ids = [int(i) for i in ids]
    end = ids.index(tok.eos_token_id) if tok.eos_token_id in ids else len(ids)  # pyright: ignore
    return str(
        tok.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ).removeprefix(prefix)


def encode_document(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """[bos] + ids + [eos], for pretraining."""
    return bos_ids(tok) + _plain(tok, text) + [tok.eos_token_id]  # pyright: ignore


def _ids(tok: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    try:
        return tok.encode(text, add_special_tokens=False, **options)
    except (
        Exception
    ) as error:  # the library raises bare Exceptions, as for an unknown word where there is no UNK
        repair = "give the tokenizer an unk_token, or bytes to fall back on"
        raise DataError(
            f"text={shorten(text)}: the tokenizer fails on it ({shorten(error, 200)}); {repair}"
        ) from error


def _plain(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text that holds no special token."""
    ids = _ids(tok, text, split_special_tokens=True)
    for name in (
        "bos_token",
        "eos_token",
        "pad_token",
    ):  # a word-level vocabulary knows them as words
        if getattr(tok, f"{name}_id") in ids and getattr(tok, f"{name}_id") is not None:
            raise DataError(
                f"text={shorten(text)} holds the {name} {getattr(tok, name)!r} of the tokenizer;"
                " remove it from the text"
            )
    return ids
