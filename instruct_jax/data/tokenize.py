"""Text as token ids, made in one way for every stage.

A sequence is ids(prompt) + ids(completion), never ids(prompt + completion).  A prompt begins with
BOS exactly once where the tokenizer has a BOS of its own (that of GPT-2 is its EOS, so no BOS is
put in front).  A completion ends with EOS.  Text is data: "<eos>" typed by a user is spelled out in
ordinary tokens, or refused where it cannot be.
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
from instruct_jax.data.schemas import Messages, Prompt, is_learned
from instruct_jax.errors import DataError, shorten

GPT2_END, GPT2_PAD = "<|endoftext|>", "<|pad|>"
DEFAULT_TEMPLATE = (  # of messages, where the tokenizer has no chat template
    "{% for message in messages %}{% if message.role == 'user' %}Human: {{ message.content }}\n\n{%"
    " elif message.role == 'assistant' %}Assistant:{{ message.content }}{{ eos_token }}\n\n{% elif"
    " message.role == 'system' %}{{ message.content }}\n\n{% else %}{{ raise_exception('the role '"
    " ~ message.role ~ ' needs a chat template; use user, assistant, system') }}{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# The date that templates of Llama 3 write.  Without it they would write today's, and a run would
# have other prompts tomorrow.
DATE = "26 Jul 2024"
# the template of a text prompt that reads as one such message
MESSAGES = "Human: {prompt}\n\nAssistant:"
# stands for the content of message number {} while a template is filled in; characters of private
# use
MARK = "\ue000{}\ue001"


def load_tokenizer(
    path: str | Path, *, pad_token: str | None = None, eos_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer, and sees to it that it has EOS and PAD.

    `path` is a folder of Hugging Face, OWNER/NAME of the hub, or a GPT-2 folder with encoder.json
    and vocab.bpe (or .gz).  `pad_token` replaces its PAD: a token of its vocabulary, or a new one
    with id len(tokenizer).  GPT-2 style tokenizers without PAD get "<|pad|>" by themselves (GPT-2:
    id 50257).  `eos_token`, of its vocabulary, replaces its EOS.
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
        raise DataError(
            f"{folder}: not a tokenizer folder ({shorten(error, 200)}); save it with"
            " tokenizer.save_pretrained(folder), or give a folder with encoder.json and vocab.bpe"
        ) from error


def _load_gpt2(folder: Path) -> PreTrainedTokenizerBase:
    try:
        vocabulary = json.loads(_read_text(folder, "encoder.json"))
        merges = []
        for line in _read_text(folder, "vocab.bpe").split("\n"):
            left, _, right = line.partition(" ")
            if right and not line.startswith("#version"):
                merges.append((left, right))
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
            if path.suffix == ".gz":
                data = gzip.decompress(data)
            return data.decode("utf-8")
    raise DataError(
        f"{folder}: {name} is missing; a GPT-2 tokenizer is encoder.json and vocab.bpe (or .gz)"
    )


def check_tokenizer(tok: PreTrainedTokenizerBase, where: Any = "tokenizer") -> None:
    """DataError unless EOS and PAD exist and differ.

    With PAD = EOS a model never learns to stop.
    """
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
    """How to fix a missing PAD; tokens that could be it are listed, and none is chosen."""
    unused = re.compile(r"[<\[].*(pad|unused|reserved|filler).*[>\]]", re.IGNORECASE)
    candidates = [token for token in tok.get_vocab() if unused.fullmatch(token)]
    candidates.sort(key=lambda token: ("pad" not in token.lower(), token))
    known = ""
    if candidates:
        listed = " or ".join(repr(token) for token in candidates[:4])
        known = f"a token of the vocabulary that no text needs, {listed}, or "
    return (
        f"give PAD its own token, data.pad_token=...: {known}a new one such as {GPT2_PAD!r}, which"
        f" takes id {len(tok)}"
    )


def _special(tok: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, such as "<eos>"."""
    return [token.content for token in tok.added_tokens_decoder.values() if token.special]


def check_vocabulary(tok: PreTrainedTokenizerBase, vocab_size: int, rows: int) -> None:
    """DataError unless the vocabulary of a model holds every id.

    PAD is never predicted, so it needs only one of the `rows` of the embedding.
    """
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
    """16 hex digits that change when any id could change; kept with checkpoints."""
    core = json.loads(tok.backend_tokenizer.to_str())  # pyright: ignore
    core |= {"padding": None, "truncation": None}
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
    bos = tok.bos_token_id
    if bos is None or bos == tok.eos_token_id:
        return []
    return [bos]  # pyright: ignore


def encode_prompt(
    tok: PreTrainedTokenizerBase, prompt: Prompt, *, template: str = "{prompt}", prefix: str = ""
) -> list[int]:
    """[bos] + ids of the prompt, up to where the reply begins.

    Text is put into `template`, messages into the tokenizer's chat template.
    """
    ids, _ = encode_conversation(tok, prompt, template=template, prefix=prefix)
    return ids


def encode_conversation(
    tok: PreTrainedTokenizerBase, prompt: Prompt, *, template: str = "{prompt}", prefix: str = ""
) -> tuple[list[int], list[bool]]:
    """The ids of encode_prompt, and True on the replies among them that are learned.

    Replies are encoded as completions are.
    """
    if isinstance(prompt, str):
        pieces = [(_plain(tok, template.replace("{prompt}", prompt)), False)]
    else:
        pieces = _pieces(tok, prompt, prefix)
    ids, learn = [], []
    for piece, learn_piece in pieces:
        ids += piece
        learn += [learn_piece] * len(piece)
    if not ids:
        raise DataError(
            f"prompt={shorten(prompt)} makes no token; correct chat_template, or use a tokenizer"
            " with such words"
        )
    bos = bos_ids(tok)
    if ids[:1] == bos:  # most chat templates write it
        return ids, learn
    return bos + ids, [False] * len(bos) + learn


def _pieces(
    tok: PreTrainedTokenizerBase, messages: Messages, prefix: str
) -> list[tuple[list[int], bool]]:
    """(ids, whether they are learned) for the parts of messages.

    A part is a reply, a content that holds the text of a special token, or what is between these.
    Replies and such contents are taken out of the messages, and a mark is put in their place; the
    chat template is filled in, and the result is split at the marks.
    """
    special = _special(tok)
    marked, marked_numbers = [], []
    for i, message in enumerate(messages):
        holds_special = any(token in message["content"] for token in special)
        if message["role"] == "assistant" or holds_special:
            message = {**message, "content": MARK.format(i)}
            marked_numbers.append(i)
        marked.append(message)
    _check_end(tok, marked, special)
    parts = re.split(MARK.format(r"(\d+)"), _render(tok, marked, add_generation_prompt=True))
    numbers = [int(part) for part in parts[1::2]]
    if sorted(numbers) != marked_numbers:
        raise DataError(
            f"prompt={shorten(messages)}: the chat template does not write every message once;"
            " correct it, or the roles"
        )
    pieces = []
    after_reply = False  # whether the text comes after one
    for text, i in zip(parts[::2], [*numbers, None], strict=True):
        message = None if i is None else messages[i]
        before_reply = message is not None and message["role"] == "assistant"
        if before_reply:
            text = text.removesuffix(prefix)
        if after_reply and text.lstrip().startswith(str(tok.eos_token)):
            text = text.lstrip()
        ids = _ids(tok, text)
        if after_reply and ids[:1] == [tok.eos_token_id]:
            ids = ids[1:]  # the reply has its eos already
        pieces.append((ids, False))
        if message is None:
            continue  # the end
        if before_reply:
            ids = encode_completion(tok, message["content"], prefix=prefix)
        else:
            ids = _plain(tok, message["content"])
        pieces.append((ids, is_learned(message)))
        after_reply = before_reply
    return pieces


def _check_end(tok: PreTrainedTokenizerBase, messages: Messages, special: list[str]) -> None:
    """DataError where the chat template ends a reply with another special token than eos."""
    mark = MARK.format(len(messages))
    reply = {"role": "assistant", "content": mark}
    text = _render(tok, [*messages, reply], add_generation_prompt=False)
    rest = text.rpartition(mark)[2].lstrip()
    ends = [token for token in special if rest.startswith(token)]
    if not ends:
        return
    end = max(ends, key=len)
    if end != tok.eos_token:
        raise DataError(
            f"the chat template ends replies with {end!r}, but eos_token={tok.eos_token!r}; set"
            f" data.eos_token={end!r}"
        )


def _render(tok: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> str:
    """The messages in the chat template, as text."""
    own = None if tok.chat_template is not None else DEFAULT_TEMPLATE
    try:
        return str(
            tok.apply_chat_template(
                messages, chat_template=own, tokenize=False, date_string=DATE, **options
            )
        )
    except Exception as error:  # the template's own complaints
        raise DataError(
            f"prompt={shorten(messages)}: the chat template refuses it ({shorten(error, 200)});"
            " correct the roles, or chat_template of the tokenizer"
        ) from error


def encode_completion(tok: PreTrainedTokenizerBase, text: str, *, prefix: str = "") -> list[int]:
    """ids + [eos]; `decode_completion` is the inverse.

    `prefix` (a space, for BPE) comes before the text unless it is there already.
    """
    text = text.removesuffix(str(tok.eos_token))
    if not text.startswith(prefix):
        text = prefix + text
    return [*_plain(tok, text), tok.eos_token_id]  # pyright: ignore


def decode_completion(tok: PreTrainedTokenizerBase, ids: Iterable[int], *, prefix: str = "") -> str:
    """The text before the first EOS."""
    until_eos = []
    for i in map(int, ids):
        if i == tok.eos_token_id:
            break
        until_eos.append(i)
    text = tok.decode(until_eos, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).removeprefix(prefix)


def encode_document(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """[bos] + ids + [eos], for pretraining."""
    return bos_ids(tok) + _plain(tok, text) + [tok.eos_token_id]  # pyright: ignore


def _ids(tok: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    try:
        return tok.encode(text, add_special_tokens=False, **options)
    # the library raises bare Exceptions, as for an unknown word where there is no UNK
    except Exception as error:
        raise DataError(
            f"text={shorten(text)}: the tokenizer fails on it ({shorten(error, 200)}); give the"
            " tokenizer an unk_token, or bytes to fall back on"
        ) from error


def _plain(tok: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text that holds no special token."""
    ids = _ids(tok, text, split_special_tokens=True)
    # a word-level vocabulary knows special tokens as words
    for name in ("bos_token", "eos_token", "pad_token"):
        special_id = getattr(tok, f"{name}_id")
        if special_id is not None and special_id in ids:
            raise DataError(
                f"text={shorten(text)} holds the {name} {getattr(tok, name)!r} of the tokenizer;"
                " remove it from the text"
            )
    return ids
