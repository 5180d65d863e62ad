"""Completions of prompts by one model or several, as a file for the labeling page (records
`samples`).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from instruct_jax.chain.workspace import Completion, stage_folder
from instruct_jax.commands.open_model import Opened, open_policy
from instruct_jax.data import encode
from instruct_jax.data import public_sets as adapters
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.runtime.folders import file_hash
from instruct_jax.runtime.progress import StageProgress
from instruct_jax.stages.rollout import SamplerConfig

REPLY = 256  # tokens, unless --max_tokens says otherwise


def sample(
    names: Sequence[str],
    prompts: Sequence[str],
    out: Path,
    overrides: Sequence[str],
    *,
    completions: int,
    temperature: float,
    max_tokens: int | None,
    seed: int,
) -> int:
    """Writes `completions` of each model to every prompt of the files into `out`; returns how many
    prompts that are.  A prompt that is too long for one of the models is left out, or refused, as
    its text.on_long says."""
    require(
        not out.exists(),
        f"--out {out} is there already; choose another name, nothing is overwritten",
    )
    require(
        len(set(names)) == len(names),
        f"MODEL is named twice: {', '.join(names)}; ask for more --completions instead",
    )
    require(
        completions >= 1 and (max_tokens is None or max_tokens >= 1),
        "--completions and --max_tokens must be at least 1",
    )
    require(
        temperature >= 0,
        f"--temperature {temperature} must not be negative; 0 takes the likeliest token",
    )
    records = [record for path in prompts for record in adapters.load("prompts", path, "error")]
    drawn: list[dict[int, list[Completion]]] = []
    settings: Record = {"temperature": temperature, "seed": seed, "models": {}}
    for number, name in enumerate(names):
        model = open_policy(name, overrides)
        context = model.ws.config.model.context
        sampler = SamplerConfig(
            max_tokens=max_tokens or min(REPLY, context // 2), temperature=temperature
        )
        require(
            sampler.max_tokens < context,
            f"--max_tokens {sampler.max_tokens} fills the context of {name}, {context}; lower it",
        )
        drawn.append(
            _draw(
                model,
                records,
                sampler,
                jax.random.fold_in(jax.random.key(seed), number),
                completions,
            )
        )
        note = stage_folder(Path(), model.name) / "done.json"
        # a run's stage; a folder of Hugging Face has no such note
        made_from = file_hash(note) if note.exists() else None
        settings["models"][name] = {
            "model": model.name,
            "max_tokens": sampler.max_tokens,
            "checkpoint": made_from,
        }
    kept = sorted(set.intersection(*(set(found) for found in drawn)))
    write_jsonl(
        out, (_row(records[i], [found[i] for found in drawn], names, settings) for i in kept)
    )
    return len(kept)


def _draw(
    model: Opened, records: list[Record], sampler: SamplerConfig, key: jax.Array, samples: int
) -> dict[int, list[Completion]]:
    """Number of the record -> completions, a batch of prompts at a time."""
    ws = model.ws
    room = dataclasses.replace(
        ws.config.text, max_prompt=ws.config.model.context - sampler.max_tokens
    )
    encoded = encode.encode_prompts(ws.task.tokenizer, records, room)
    # of all batches, so that one program is compiled
    width = max(map(len, encoded.items), default=0)
    found: dict[int, list[Completion]] = {}
    with StageProgress(f"sample {model.name}", step=0, total=len(encoded.items)) as progress:
        for start in range(0, len(encoded.items), size := ws.config.sample_batch):
            part = encoded.items[start : start + size]
            made = ws.generate(
                model.params,
                part,
                sampler,
                jax.random.fold_in(key, start),
                samples=samples,
                width=width,
            )
            found |= dict(zip(encoded.kept[start : start + size], made, strict=True))
            progress.update(len(found), {})
    return found


def _row(
    record: Record, drawn: list[list[Completion]], names: Sequence[str], settings: dict[str, Any]
) -> Record:
    flat = [(name, one) for name, made in zip(names, drawn, strict=True) for one in made]
    texts = {
        "completions": [one.text for _, one in flat],
        "ended": [one.ended for _, one in flat],
        "models": [name for name, _ in flat],
    }
    return {**record, **texts, "sampler": settings}
