"""Rankings that a stage learns from: of the data, of a stage of kind compare, or of several."""

import json
from pathlib import Path
from typing import Any

from instruct_jax.chain import networks
from instruct_jax.chain.context import Stage
from instruct_jax.chain.graph import DATA
from instruct_jax.chain.networks import Network
from instruct_jax.chain.task import GROUPS, Rankings
from instruct_jax.data import encode
from instruct_jax.data.schemas import Record
from instruct_jax.errors import ConfigError, RunError, require
from instruct_jax.evaluation.reward_accuracy import Scored
from instruct_jax.records import Params
from instruct_jax.runtime.folders import read_note


def sources(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names in a key `rankings`."""
    return (value,) if isinstance(value, str) else value


def source_uses(value: str | tuple[str, ...]) -> dict[str, str]:
    """The same as `uses` of settings has them; the data is no stage."""
    names = [name for name in sources(value) if name != DATA]
    if len(names) == 1:
        return {"rankings": names[0]}
    found = {}
    for number, name in enumerate(names, 1):
        found[f"rankings.{number}"] = name
    return found


def gathered(stage: Stage) -> Rankings:
    """All rankings that the stage names, in the order named."""
    parts = [_of_source(stage, name) for name in sources(stage.settings.rankings)]
    groups: dict[str, Any] = {}
    for group in GROUPS:
        groups[group] = []
        for part in parts:
            groups[group] += getattr(part, group)
    agreements = [part.agreement for part in parts if part.agreement is not None]
    first = agreements[0] if agreements else None
    return Rankings(**groups, agreement=first)


def check(stage: Stage) -> None:
    """ConfigError where it names none, or those of the data, and the world has none."""
    require(
        len(sources(stage.settings.rankings)) > 0,
        f"stages.{stage.name}.rankings=[] names none; use data, a stage of kind compare, or a list"
        " of them",
    )
    if DATA in sources(stage.settings.rankings) and stage.run.config.data is None:
        raise ConfigError(_none_given(stage))


def _none_given(stage: Stage) -> str:
    return (
        f"stages.{stage.name}.rankings=data, and the data has no rankings to learn from; add"
        " data.rankings, or name a stage of kind compare: rankings: compare"
    )


def _of_source(stage: Stage, name: str) -> Rankings:
    if name == DATA:
        given = stage.task.rankings
        if given is None:
            raise ConfigError(_none_given(stage))
        return given
    place = stage.run.place(name, f"stages.{stage.name}.rankings")
    folder = stage.run.stage_folder(place)
    note = folder / "done.json"
    if not note.exists():
        raise RunError(f"{folder} is not finished; run the stage {place} first")
    output = read_note(note)["output"]
    groups: dict[str, Any] = {}
    for group in GROUPS:
        groups[group] = read_jsonl(folder, group)
    return Rankings(**groups, agreement=output.get("labeler_agreement"))


def read_jsonl(folder: Path, name: str) -> list[Record]:
    """Rankings of a group, or samples, that a stage wrote into its folder; a file without lines
    holds none.
    """
    path = folder / f"{name}.jsonl"
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def held_out_samples(stage: Stage) -> list[Record]:
    """The held-out prompts, with all that is known about them, whose samples were ranked."""
    found: list[Record] = []
    for place in stage.uses.values():
        if place.model is not None:
            continue
        folder = stage.run.stage_folder(place)
        if (folder / "held_out_samples.jsonl").is_file():
            found += read_jsonl(folder, "held_out_samples")
    return found


def scored(net: Network, params: Params, records: list[Record]) -> list[Scored]:
    """The rankings with the score that a reward model gives to each completion."""
    encoded = encode.encode_rankings(net.tokenizer, records, net.text)
    sequences = []
    for completions, _ in encoded.items:
        sequences += completions
    flat = networks.rewards(net, params, sequences)
    rows = []
    start = 0
    for number, (completions, _) in zip(encoded.kept, encoded.items, strict=True):
        end = start + len(completions)
        lengths = [len(ids) for ids in completions]
        rows.append((records[number], flat[start:end], lengths))
        start = end
    return rows


def content(stage: Stage) -> dict[str, Any]:
    """The records of the data among the rankings, for the identity of a stage."""
    if DATA not in sources(stage.settings.rankings):
        return {}
    given = _of_source(stage, DATA)
    return {"rankings": [given.train, given.held_out_prompts]}
