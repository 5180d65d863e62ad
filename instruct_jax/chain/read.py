"""The config of a run from a file: each stage by the settings of its kind, and what `base` says
filled in.
"""

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_jax.chain.graph import is_model
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.load import COMMAND_LINE, Rules, Where, build_config, load_config
from instruct_jax.chain.settings import BASE, RunConfig
from instruct_jax.chain.spec import FREE, NAME, hub_config, read_spec, tokenizer_place
from instruct_jax.config import ModelConfig
from instruct_jax.errors import ConfigError, DataError, shorten, shown

LONGEST_NAME = 100  # of a stage: a folder name has at most 255 letters
# keys of configs before stages had names -> what to write now
OLD_KEYS: Mapping[str, str] = {
    "files": "it is called data now",
    "start": "set `base` to RUN:STAGE, or `start` and the like of a stage",
    "reward_model": "give a stage of kind pretrain its own `model`, and start the reward model from"
    " an SFT stage of it",
    "evaluation": "write stages.evaluate: {models: [...], baseline: NAME, reward: NAME}",
    "ppo_start": "write stages.ppo_start: {kind: sft, ...}, and `start: ppo_start` in PPO stages",
    "ppo_ptx": "write stages.ppo_ptx: {kind: ppo, start: NAME, reward: NAME, ...}",
    "rounds.judge": "it is called ranker now",
}
OLD_STAGE_KEYS: Mapping[str, Mapping[str, str]] = {
    "sft": {"select": "add a stage `select: {start: sft, reward: reward}`"},
    "compare": {
        "early": "it is called first_epoch_share now",
        "earlier": "it is called previous now, and names RUN:STAGE",
        "judge": "it is called ranker now",
        "people.enough": "it is called min_ranked_share now",
    },
    "evaluate": {
        "others": "add them to models: {NAME: RUN:STAGE}",
        "averaged": "write use_ema in the stages of kind ppo",
    },
}


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run; ConfigError for the first mistake in it."""
    return load_config(RunConfig, path, overrides, RULES)


def build_run(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The same of a tree from a place called `source`."""
    return build_config(RunConfig, tree, source, overrides, RULES)


def imported_as(model: str, out: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run that only imports `model` into the folder `out`."""
    tree: dict[str, Any] = {
        "out": out,
        "base": model,
        "data": {},
        "text": {"max_prompt": 1, "max_completion": 2},  # fits every model; nothing is trained
        "stages": {"import": {}},
    }
    return build_run(tree, "command line", overrides)


def settings_class(name: str, section: Mapping[str, Any]) -> type:
    """The dataclass of a stage's settings; ConfigError where its kind is unknown."""
    kind = section.get("kind", name)
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind].settings
    near = difflib.get_close_matches(str(kind).lower(), KINDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(KINDS)}"
    if "kind" in section:
        raise ConfigError(f"stages.{name}.kind={shorten(kind)} is unknown; {hint}")
    raise ConfigError(f"stages.{name} is no kind of stage, and has no `kind`; {hint}")


def _fill_in(tree: dict[str, Any], where: Where) -> None:
    _refuse_old_keys(tree, where)
    stages = tree.get("stages")
    if isinstance(stages, dict):
        for name, section in stages.items():
            _check_name(str(name), where)
            if isinstance(section, dict):
                _refuse_old_stage_keys(str(name), section, where)
                if name in KINDS:
                    section.setdefault("kind", name)
    _fill_in_base(tree)


def _refuse_old_keys(tree: Mapping[str, Any], where: Where) -> None:
    _refuse_spellings(OLD_KEYS, tree, "", where)
    for key in tree:
        if key in KINDS and where(key) == COMMAND_LINE:
            raise ConfigError(
                f"{COMMAND_LINE}: --{key} is for a stage {key}, and the config has none; add"
                f" stages: {{{key}: {{...}}}}, or name one of its stages"
            )
        if key in KINDS:
            raise ConfigError(
                f"{where(key)}: {key} has another spelling now: write it under stages, as"
                f" stages: {{{key}: {{...}}}}"
            )


def _refuse_old_stage_keys(name: str, section: Mapping[str, Any], where: Where) -> None:
    old = OLD_STAGE_KEYS.get(str(section.get("kind", name)), {})
    _refuse_spellings(old, section, f"stages.{name}.", where)


def _refuse_spellings(
    old: Mapping[str, str], tree: Mapping[str, Any], prefix: str, where: Where
) -> None:
    """`old`: key, or key of a section and key in it -> what to write now."""
    for key, fix in old.items():
        section, _, last = key.rpartition(".")
        place = tree.get(section) if section else tree
        if isinstance(place, Mapping) and last in place:
            source = where(prefix + key)
            raise ConfigError(f"{source}: {prefix}{key} has another spelling now: {fix}")


def _check_name(name: str, where: Where) -> None:
    """A stage is a folder in the run folder, and a key on the command line."""
    keys = [field.name for field in dataclasses.fields(RunConfig)]
    reserved = dict.fromkeys((BASE, "data", "tokenizer", "compiled", *keys))
    plain = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    if not plain or name.startswith("-") or name in reserved or len(name) > LONGEST_NAME:
        place = where(f"stages.{name}")
        text = shown(name) or repr(name)
        raise ConfigError(
            f"{place}: stages.{text} cannot be the name of a stage; use at most {LONGEST_NAME}"
            f" letters, digits, _ and -, and none of {', '.join(reserved)}"
        )


def _fill_in_base(tree: dict[str, Any]) -> None:
    """model and data.tokenizer, where `base` is a model from outside the run."""
    base = tree.get("base")
    given = tree.get("model", {})
    stages = tree.get("stages", {})
    readable = isinstance(given, dict) and isinstance(stages, dict)
    if not isinstance(base, str) or not readable or base in stages:
        return  # nothing to fill in, or a mistake that the loader explains
    data: Any = tree.get("data")
    run, _, stage = base.rpartition(":")
    if run and stage and not os.path.isdir(base):
        if not os.path.isfile(os.path.join(run, stage, NAME)):
            return  # the check of the run says it
        spec, _ = read_spec(Path(run), stage)
        own = spec.model
        may_grow = False
        tokenizer = dataclasses.asdict(spec.tokenizer)
        if isinstance(data, dict) and data.get("tokenizer") is None:
            tokenizer["tokenizer"] = tokenizer.pop("place")
            for key, value in tokenizer.items():
                if value is not None:
                    data[key] = value
    else:
        if not is_model(base):
            return  # as above
        without_tokenizer = isinstance(data, dict) and data.get("tokenizer") is None
        try:
            own = hub_config(base)
        except DataError:
            if "family" not in given:
                raise
            if without_tokenizer:
                data["tokenizer"] = base
            return  # written out, as in a run folder: the model need not be here
        if without_tokenizer:
            data["tokenizer"] = tokenizer_place(base)
        may_grow = True
    tree["model"] = _merged_model(own, given, base, may_grow)


def _merged_model(
    own: ModelConfig, given: Mapping[str, Any], base: str, may_grow: bool
) -> dict[str, Any]:
    """may_grow: may vocab_size be larger, for ids that the tokenizer has and the model has not?"""
    theirs = json.loads(json.dumps(dataclasses.asdict(own)))
    for key, value in given.items():
        if key == "vocab_size" and may_grow and isinstance(value, int) and value > theirs[key]:
            continue
        if key in theirs and key not in FREE and value != theirs[key]:
            raise ConfigError(
                f"model.{key}={shorten(value)}, but {base} has {shorten(theirs[key])}; remove it,"
                " the model's config says it"
            )
    return theirs | dict(given)


RULES = Rules(class_of=settings_class, fill_in=_fill_in, short="stages")
