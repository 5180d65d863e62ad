"""Names in a config, and what they stand for: a stage of the run, one of another run, or a model of
Hugging Face.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from instruct_jax.chain.settings import BASE, RunConfig, StageSettings
from instruct_jax.errors import ConfigError, require

DATA = "data"  # the rankings that the data brings
DEFAULT_BASE = "pretrain"  # the stage that `base` stands for where the config does not say

# first part of a key that uses a model -> what that may be; a reward model may also start from one
WANTS: Mapping[str, tuple[str, ...]] = {
    "start": ("policy",),
    "models": ("policy",),
    "baseline": ("policy",),
    "reward": ("scalar",),
    "ranker": ("scalar",),
    "rankings": ("records",),
    "previous": ("records",),
}


class Place(NamedTuple):
    """What a name stands for."""

    run: str | None  # the folder of another run; None = this run
    stage: str | None  # None = a model of Hugging Face
    model: str | None = None  # its folder, or OWNER/NAME[@REVISION]

    def __str__(self) -> str:
        if self.model is not None:
            return self.model
        if self.run is None:
            return str(self.stage)
        return f"{self.run}:{self.stage}"

    @property
    def own(self) -> bool:
        """Is it a stage of this run?"""
        return self.run is None and self.stage is not None


def resolve(config: RunConfig, name: str, key: str) -> Place:
    """The place that `name`, the value of `key`, stands for; ConfigError where it is none."""
    if name == BASE and BASE not in config.stages:
        return _base(config, key)
    is_folder = _is_model_folder(name)
    if name in config.stages:
        require(
            not is_folder,
            f"{key}={name} is a stage of this run and a model folder; write ./{name} for the"
            " folder, or give the stage another name",
        )
        return Place(None, name)
    run, _, stage = name.rpartition(":")
    if run and stage and not os.path.isdir(name):
        return Place(run, stage)
    if is_model(name):
        return Place(None, None, name)
    raise ConfigError(f"{key}={name} {_no_place(config, name)}")


def _base(config: RunConfig, key: str) -> Place:
    if config.base is not None:
        require(
            config.base != BASE,
            "base=base names itself; name a stage or a model, ./base if that is a folder",
        )
        return resolve(config, config.base, BASE)
    if DEFAULT_BASE in config.stages:
        return Place(None, DEFAULT_BASE)
    raise ConfigError(
        f"{key}={BASE}, and this run has no base; set `base` to a model (a Hugging Face folder,"
        f" OWNER/NAME, RUN:STAGE), or add a stage {DEFAULT_BASE}"
    )


def is_model(name: str) -> bool:
    """Is it the folder of a model of Hugging Face, or does it look like OWNER/NAME of the hub?"""
    if _is_model_folder(name):
        return True
    is_run = os.path.isfile(os.path.join(name, "config.yaml"))
    return _is_hub_name(name) and not is_run


def _is_model_folder(name: str) -> bool:
    """os.path says False of a name that is too long for a file, where Path raises."""
    files = (os.path.join(name, file) for file in ("config.json", "adapter_config.json"))
    return any(map(os.path.isfile, files))


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and ":" not in name


def _no_place(config: RunConfig, name: str) -> str:
    if os.path.isfile(os.path.join(name, "config.yaml")):
        return f"is a run; name one of its stages: {name}:STAGE"
    near = difflib.get_close_matches(name, config.stages, n=1)
    names = ", ".join(config.stages)
    hint = f"the stages are {names}"
    if near:
        hint = f"did you mean {near[0]}?"
    elif name.isidentifier():
        hint += f"; use one of them, or add a stage {name}"
    return f"is no stage of this run, no RUN:STAGE, and no model folder or OWNER/NAME; {hint}"


def uses(config: RunConfig, name: str) -> dict[str, Place]:
    """What a stage of the run uses, by the key of its settings; nothing for data of the run."""
    found = {}
    for key, value in config.stages[name].uses().items():
        if value != DATA:
            found[key] = resolve(config, value, f"stages.{name}.{key}")
    return found


def order(config: RunConfig) -> list[str]:
    """The stages so that each stands behind what it uses, else as the config has them."""
    done: list[str] = []
    for name in config.stages:
        _visit(config, name, done, ())
    last = [name for name in done if config.stages[name].leaves == "findings"]
    return [name for name in done if name not in last] + last


def _visit(config: RunConfig, name: str, done: list[str], above: tuple[str, ...]) -> None:
    if name in done:
        return
    if name in above:
        circle = (*above[above.index(name) :], name)
        raise ConfigError(
            f"stages.{name} is made from itself: {' <- '.join(circle)}; change one of these"
        )
    for place in uses(config, name).values():
        if place.own:
            _visit(config, str(place.stage), done, (*above, name))
    done.append(name)


def descendants(config: RunConfig, names: Sequence[str]) -> list[str]:
    """The stages and all that is made from them, in order."""
    found = set(names)
    for name in order(config):
        for place in uses(config, name).values():
            if place.own and place.stage in found:
                found.add(name)
    return [name for name in order(config) if name in found]


def wanted_of(settings: StageSettings, key: str) -> tuple[str, ...]:
    """What may stand in a key that names a stage; a reward model may start from one too."""
    if key == "start" and settings.leaves == "scalar":
        return ("policy", "scalar")
    return WANTS[key.partition(".")[0]]


def check_uses(config: RunConfig) -> None:
    """ConfigError where a stage uses a stage of this run for what it is not."""
    for name in config.stages:
        for key, place in uses(config, name).items():
            if place.own:
                used = config.stages[str(place.stage)]
                check_leaves(config, name, key, place, used.leaves)


def check_leaves(config: RunConfig, name: str, key: str, place: Place, leaves: str) -> None:
    """ConfigError unless `key` of the stage `name` may use a stage that leaves `leaves`."""
    wanted = wanted_of(config.stages[name], key)
    fitting = []
    for other, stage in config.stages.items():
        if stage.leaves in wanted and other != name:
            fitting.append(other)
    if key.startswith("rankings"):
        fitting.append(DATA)
    needed = " or ".join(LEAVES_WORDS[word] for word in wanted)
    require(
        leaves in wanted,
        f"stages.{name}.{key}={place} leaves {LEAVES_WORDS[leaves]}, and {needed} is needed; use"
        f" {', '.join(fitting) or 'another stage or model'}",
    )


LEAVES_WORDS = {
    "policy": "a policy",
    "scalar": "a reward model",
    "records": "rankings",
    "findings": "only findings",
}
