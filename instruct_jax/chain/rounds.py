"""The rounds of feedback as the configs of ordinary runs, one for each round."""

import dataclasses
from pathlib import Path
from typing import Any

from instruct_jax.chain import graph
from instruct_jax.chain.settings import BASE, RunConfig, StageSettings
from instruct_jax.errors import require


def rounds_of(config: RunConfig) -> list[RunConfig]:
    """Round 1 is the run itself, in its own folder.  Round r is a run in OUT/round_r: it begins
    with the stages of round 1 that need no ranking, ranks samples of the round before it and of its
    start, learns from the rankings of all rounds, and is measured beside the policies of all
    rounds.
    """
    cfg = config.rounds
    rounds = [dataclasses.replace(config, rounds=None)]
    if cfg is None:
        return rounds
    check_rounds(config)
    for number in range(2, cfg.count + 1):
        rounds.append(_later(config, rounds, number))
    return rounds


def check_rounds(config: RunConfig) -> None:
    cfg = config.rounds
    assert cfg is not None
    require(
        bool(config.of_kind("compare")),
        f"rounds.count={cfg.count} needs a stage of kind compare, whose samples are ranked in each"
        " round; add one, or remove rounds",
    )
    for name in config.stages:
        number = name.removeprefix("round_")
        require(
            number == name or not number.isdigit(),
            f"stages.{name} has the name of the folder of round {number}; give it another name",
        )
    policies = _learned_policies(config)
    for name in cfg.shares:
        require(
            name in policies,
            f"rounds.shares.{name} is no policy of this config that learns from rankings; use"
            f" {', '.join(policies)}",
        )


def _ranked(config: RunConfig) -> list[str]:
    """The stages of kind compare, and what is made from them."""
    return graph.descendants(config, list(config.of_kind("compare")))


def _learned_policies(config: RunConfig) -> list[str]:
    names = _ranked(config)
    return [name for name in names if config.stages[name].leaves == "policy"]


def _later(config: RunConfig, rounds: list[RunConfig], number: int) -> RunConfig:
    cfg = config.rounds
    before = rounds[-1].out
    assert cfg is not None
    own = _ranked(config)
    stages: dict[str, StageSettings] = {}
    for name in own:
        settings = _from_first(config, config.stages[name], own)
        if settings.kind == "compare":
            who = {"ranker": cfg.ranker, "people": cfg.people}
            if cfg.ranker is None and cfg.people is None:
                who = {}
            shares = {f"{before}:{policy}": share for policy, share in cfg.shares.items()}
            previous = f"{before}:{name}"
            settings = dataclasses.replace(settings, models=shares, previous=previous, **who)
        if settings.kind == "evaluate":
            earlier = _policies_of(rounds, _measured(config, name))
            settings = dataclasses.replace(settings, models=settings.named | earlier)
        stages[name] = settings
    return dataclasses.replace(
        rounds[0],
        out=str(Path(config.out) / f"round_{number}"),
        round=number,
        base=_base(config),
        stages=stages,
    )


def _base(config: RunConfig) -> str | None:
    """`base` as another run calls it; None where this run has none."""
    if config.base is None and graph.DEFAULT_BASE not in config.stages:
        return None
    return _outside(config, BASE, BASE)


def _measured(config: RunConfig, evaluate: str) -> list[str]:
    """The policies of an evaluation that learn from rankings."""
    settings: Any = config.stages[evaluate]
    learned = _learned_policies(config)
    return [name for name in settings.named.values() if name in learned]


def _policies_of(rounds: list[RunConfig], names: list[str]) -> dict[str, str]:
    found = {}
    for number, config in enumerate(rounds, 1):
        for name in names:
            found[f"{name}_round_{number}"] = f"{config.out}:{name}"
    return found


def _from_first(config: RunConfig, settings: Any, own: list[str]) -> Any:
    """The settings, with the stages that later rounds do not have named as those of round 1."""
    changes: dict[str, Any] = {}
    for key in ("start", "reward", "ranker"):
        value = getattr(settings, key, None)
        if isinstance(value, str) and value not in own:
            changes[key] = _outside(config, value, key)
    if settings.kind == "evaluate":
        models = dict(settings.named)
        for name, value in settings.named.items():
            if value not in own:
                models[name] = _outside(config, value, "models")
        changes["models"] = models
    return dataclasses.replace(settings, **changes)


def _outside(config: RunConfig, value: str, key: str) -> str:
    """A name as another run calls it."""
    place = graph.resolve(config, value, key)
    return f"{config.out}:{place.stage}" if place.own else str(place)
