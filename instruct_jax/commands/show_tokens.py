"""The first records as the stages see them: position, id, piece, and what becomes of each token.

The ids are those that are trained on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from instruct_jax.chain.settings import RunConfig
from instruct_jax.chain.task import load_files, task_tokenizer
from instruct_jax.data import encode
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require

# read: it is seen, and nothing is learned or measured at it
STYLES = {"read": "dim", "learned": "green", "reward": "bold magenta"}


def show_tokens(config: RunConfig, count: int, console: Console | None = None) -> None:
    """A table for each of the first `count` records of each kind; coloured on a terminal."""
    require(count >= 1, f"--show-tokens {count} must be at least 1")
    console, tok = console or Console(), task_tokenizer(config, Path(config.out) / "tokenizer")
    for title, ids, uses in _sequences(config, tok, count):
        table = Table("position", "id", "piece", "mask", box=box.SIMPLE_HEAD)
        for position, (token, use) in enumerate(zip(ids, uses, strict=True)):
            table.add_row(
                str(position),
                str(token),
                Text(_piece(tok, token), STYLES[use]),
                Text(use, STYLES[use]),
            )
        console.print(Text(title, "bold"), table)


def _sequences(
    config: RunConfig, tok: PreTrainedTokenizerBase, count: int
) -> Iterator[tuple[str, Sequence[int], list[str]]]:
    """(title, ids, what becomes of each) of texts, demonstrations, rankings (every completion) and
    prompts.
    """
    records = {kind: found[:count] for kind, found in _records(config, count).items()}
    learned = {
        "texts": encode.encode_texts(tok, records["texts"], config.pretrain.length)[:count],
        "demonstrations": (
            encode.encode_demonstrations(tok, records["demonstrations"], config.text).items
        ),
    }
    for kind, samples in learned.items():
        for number, (ids, learn) in enumerate(samples, 1):
            # nothing predicts the first
            yield (
                f"{kind} {number}",
                ids,
                ["learned" if own and i else "read" for i, own in enumerate(learn)],
            )
    for number, (completions, ranks) in enumerate(
        encode.encode_rankings(tok, records["rankings"], config.text).items, 1
    ):
        for k, (ids, rank) in enumerate(zip(completions, ranks, strict=True), 1):
            yield (
                f"rankings {number}, completion {k} of rank {rank}",
                ids,
                ["read"] * (len(ids) - 1) + ["reward"],
            )
    for number, ids in enumerate(
        encode.encode_prompts(tok, records["prompts"], config.text).items, 1
    ):
        yield f"prompts {number}", ids, ["read"] * len(ids)


def _records(config: RunConfig, count: int) -> dict[str, list[Record]]:
    """Records by kind, at least the first `count`; of the world some that are as it writes them,
    but rankings, which need a model.
    """
    if config.world is None:
        assert config.files is not None
        return load_files(config.files)
    from instruct_jax.world import corpus, demonstrations, instructions

    return {
        "texts": [
            {"text": text} for text in corpus.documents(config.seed, count * config.pretrain.length)
        ],
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
    return repr(text if "\ufffd" not in text else str(tok.convert_ids_to_tokens(token)))
