"""Completions of prompts by one model or several, as a file for the labeling page (records
`samples`).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from instruct_jax.chain import networks
from instruct_jax.chain.identity import stage_hash
from instruct_jax.chain.networks import Completion
from instruct_jax.commands.open_model import Opened, open_policy
from instruct_jax.data import encode, public_sets
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
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
    its text.on_long says.
    """
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
    records = []
    for path in prompts:
        records += public_sets.load("prompts", path, "error")
    samples: list[dict[int, list[Completion]]] = []
    settings: Record = {"temperature": temperature, "seed": seed, "models": {}}
    for number, name in enumerate(names):
        model = open_policy(name, overrides)
        context = model.net.spec.model.context
        longest = max_tokens or min(REPLY, context // 2)
        sampler = SamplerConfig(max_tokens=longest, temperature=temperature)
        require(
            sampler.max_tokens < context,
            f"--max_tokens {sampler.max_tokens} fills the context of {name}, {context}; lower it",
        )
        key = jax.random.fold_in(jax.random.key(seed), number)
        samples.append(_draw(model, records, sampler, key, completions))
        settings["models"][name] = {
            "model": model.name,
            "max_tokens": sampler.max_tokens,
            "checkpoint": _made_from(model),
        }
    kept = set.intersection(*(set(found) for found in samples))
    rows = []
    for i in sorted(kept):
        drawn = [found[i] for found in samples]
        rows.append(_row(records[i], drawn, names, settings))
    write_jsonl(out, rows)
    return len(rows)


def _made_from(model: Opened) -> str | None:
    """The identity of a run's stage; a folder of Hugging Face has none."""
    if model.place.model is not None:
        return None
    return stage_hash(model.run.stage_folder(model.place))


def _draw(
    model: Opened, records: list[Record], sampler: SamplerConfig, key: jax.Array, samples: int
) -> dict[int, list[Completion]]:
    """Number of the record -> completions, a batch of prompts at a time."""
    net = model.net
    longest = net.spec.model.context - sampler.max_tokens
    room = dataclasses.replace(net.text, max_prompt=longest)
    encoded = encode.encode_prompts(net.tokenizer, networks.asked(net, records), room)
    # of all batches, so that one program is compiled
    width = max(map(len, encoded.items), default=0)
    found: dict[int, list[Completion]] = {}
    size = net.sample_batch
    with StageProgress(f"sample {model.name}", step=0, total=len(encoded.items)) as progress:
        for start in range(0, len(encoded.items), size):
            part = encoded.items[start : start + size]
            numbers = encoded.kept[start : start + size]
            replies = networks.generate(
                net,
                model.params,
                part,
                sampler,
                jax.random.fold_in(key, start),
                samples=samples,
                width=width,
            )
            found |= dict(zip(numbers, replies, strict=True))
            progress.update(len(found), {})
    return found


def _row(
    record: Record, drawn: list[list[Completion]], names: Sequence[str], settings: dict[str, Any]
) -> Record:
    texts = []
    ended = []
    models = []
    for name, made in zip(names, drawn, strict=True):
        for one in made:
            texts.append(one.text)
            ended.append(one.ended)
            models.append(name)
    return {
        **record,
        "completions": texts,
        "ended": ended,
        "models": models,
        "sampler": settings,
    }
