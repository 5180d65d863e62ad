"""Plain text as rows: to learn from, and held out to measure."""

import numpy as np

from instruct_jax.chain.context import Stage
from instruct_jax.chain.networks import Network
from instruct_jax.data import encode, packing
from instruct_jax.data.schemas import Record

MOST = 500_000  # tokens of the world's text that a stage after pretraining reads, at most
LENGTH = 128  # tokens of a row of held-out text, where no stage of the run is pretrained


def rows_of(net: Network, records: list[Record], length: int) -> packing.Rows:
    ids = encode.encode_texts(net.tokenizer, records, length)
    return packing.pack(ids, length, pad=net.pad)


def learned(stage: Stage, tokens: int) -> list[Record]:
    """The texts that a stage learns from: those of the pretrained model that it comes from, or at
    least so many `tokens`.
    """
    least = min(tokens, MOST)
    return stage.task.texts(max(_of_pretraining(stage), least))


def _of_pretraining(stage: Stage) -> int:
    """Tokens that the stage was pretrained on, if that was in this run."""
    while True:
        settings = stage.settings
        if settings.kind == "pretrain":
            return settings.steps * settings.batch * settings.length
        start = stage.uses.get("start")
        if start is None or not start.own:
            return 0
        stage = stage.run.stage(str(start.stage))


def held_out(stage: Stage, net: Network) -> packing.Rows | None:
    """Rows of held-out text; of more than data.held_out_tokens, rows evenly spaced over all.  None
    where no text is held out.
    """
    texts = stage.task.held_out_texts
    if not texts:
        return None
    length, _ = row_shape(stage, net)
    rows = rows_of(net, texts, length)
    data = stage.run.config.data
    count = len(rows.tokens)
    most = count
    if data is not None:
        wanted = -(-data.held_out_tokens // length)
        most = min(count, wanted)
    chosen = np.linspace(0, count - 1, most).astype(int)
    return packing.Rows(*(x[chosen] for x in rows))


def row_shape(stage: Stage, net: Network) -> tuple[int, int]:
    """(tokens of a row of held-out text, rows at a time): as the run pretrains."""
    for settings in stage.run.config.of_kind("pretrain").values():
        return settings.length, settings.batch  # pyright: ignore[reportAttributeAccessIssue]
    return min(LENGTH, net.spec.model.context), net.sample_batch
