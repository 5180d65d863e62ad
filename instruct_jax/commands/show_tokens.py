"""The first records as the stages see them: position, id, piece, and what becomes of each token.

The ids are those that are trained on.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.spec import run_tokenizer
from instruct_jax.chain.task import load_files
from instruct_jax.data import encode
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import load_tokenizer
from instruct_jax.errors import require

# read: it is seen, and nothing is learned or measured at it
STYLES = {"read": "dim", "learned": "green", "reward": "bold magenta"}


def show_tokens(config: RunConfig, count: int, console: Console | None = None) -> None:
    """A table for each of the first `count` records of each kind; coloured on a terminal."""
    require(count >= 1, f"--show-tokens {count} must be at least 1")
    console = console or Console()
    tok = tokenizer_of(config)
    for title, ids, uses in _sequences(config, tok, count):
        table = Table("position", "id", "piece", "mask", box=box.SIMPLE_HEAD)
        for position, (token, use) in enumerate(zip(ids, uses, strict=True)):
            style = STYLES[use]
            piece = Text(_piece(tok, token), style)
            mask = Text(use, style)
            table.add_row(str(position), str(token), piece, mask)
        console.print(Text(title, "bold"), table)


def tokenizer_of(config: RunConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that a run has, or will have once the world has saved it.  Writes nothing that
    stays.
    """
    source = run_tokenizer(config, Path(config.out))
    if config.world is None or Path(source.place).exists():
        return source.load()
    from instruct_jax.world.tokenizer import save_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(config.seed, folder)
        return load_tokenizer(folder)


Shown = tuple[str, Sequence[int], list[str]]  # title, ids, what becomes of each


def _sequences(config: RunConfig, tok: PreTrainedTokenizerBase, count: int) -> Iterator[Shown]:
    """Of texts, demonstrations, rankings (every completion) and prompts."""
    form = config.text
    records = {}
    for kind, found in _records(config, count).items():
        records[kind] = found[:count]
    texts = encode.encode_texts(tok, records["texts"], _text_length(config))
    demonstrations = encode.encode_demonstrations(tok, records["demonstrations"], form).items
    learned = {"texts": texts[:count], "demonstrations": demonstrations}
    for kind, samples in learned.items():
        for number, (ids, learn) in enumerate(samples, 1):
            uses = []
            for i, own in enumerate(learn):
                is_learned = own and i > 0  # nothing predicts the first
                uses.append("learned" if is_learned else "read")
            yield f"{kind} {number}", ids, uses
    rankings = encode.encode_rankings(tok, records["rankings"], form).items
    for number, (completions, ranks) in enumerate(rankings, 1):
        for k, (ids, rank) in enumerate(zip(completions, ranks, strict=True), 1):
            title = f"rankings {number}, completion {k} of rank {rank}"
            before_last = ["read"] * (len(ids) - 1)
            yield title, ids, [*before_last, "reward"]
    prompts = encode.encode_prompts(tok, records["prompts"], form).items
    for number, ids in enumerate(prompts, 1):
        yield f"prompts {number}", ids, ["read"] * len(ids)


def _text_length(config: RunConfig) -> int:
    """Tokens of a row of text: as the run pretrains."""
    for settings in config.of_kind("pretrain").values():
        return getattr(settings, "length", config.model.context)
    return config.model.context


def _records(config: RunConfig, count: int) -> dict[str, list[Record]]:
    """Records by kind, at least the first `count`; of the world some that are as it writes them,
    but rankings, which need a model.
    """
    if config.world is None:
        assert config.data is not None
        return load_files(config.data)
    from instruct_jax.world import corpus, demonstrations, instructions

    documents = corpus.documents(config.seed, count * _text_length(config))
    return {
        "texts": [{"text": text} for text in documents],
        "demonstrations": demonstrations.demonstrations(
            config.seed, count, careless=config.world.careless, lazy=config.world.lazy
        ),
        "rankings": [],
        "prompts": instructions.prompts(config.seed, count),
    }


def _piece(tok: PreTrainedTokenizerBase, token: int) -> str:
    """The token's text in quotes, control characters as in Python; half a character as the
    vocabulary writes it.
    """
    text = str(tok.decode([token], clean_up_tokenization_spaces=False))
    if "\ufffd" in text:
        text = str(tok.convert_ids_to_tokens(token))
    return repr(text)
