"""A config from a YAML file and dotted overrides.

The first mistake is one message with its place, key, value and repair.
"""

import dataclasses
import difflib
import itertools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from instruct_jax.errors import ConfigError, shorten, shown

C = TypeVar("C")
Where = Callable[[str], str]  # dotted key -> the place that its value comes from
UNUSABLE = re.compile("[\x00\ud800-\udfff]")
WORDS = {
    int: "a whole number below 2**31",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def load_config(
    cls: type[C],
    path: str | Path,
    overrides: Sequence[str] = (),
    fill_in: Callable[[dict[str, Any]], None] = lambda tree: None,
) -> C:
    """The dataclass tree `cls` as the file says, with overrides ["--ppo.batch", "64", "--seed=1",
    ...] on top.  fill_in may add keys.
    """
    return build_config(cls, read_yaml(Path(path)), str(path), overrides, fill_in)


def build_config(
    cls: type[C],
    tree: dict[str, Any],
    source: str,
    overrides: Sequence[str],
    fill_in: Callable[[dict[str, Any]], None],
) -> C:
    """The same of a tree from a place called `source`."""
    given = dict(_pairs(overrides))
    for key, text in given.items():
        _set(tree, cls, key, text)
    fill_in(tree)
    return _build(
        cls,
        tree,
        "",
        None,
        lambda key: "command line" if any(f"{key}.".startswith(f"{k}.") for k in given) else source,
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a file; ConfigError where it holds none, or one twice."""
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: no such config file (looked in {Path.cwd()}); correct --config")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path}: holds no keys; write `key: value` lines, the ones of configs/ are"
                " examples"
            )
        _check_duplicates(node, path)
        return _plain(loader.construct_document(node))
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); correct its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start + 1}; convert the file: iconv -f latin1 -t"
            " utf-8"
        ) from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a date may have 13 months, an alias may hold itself
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML ({_problem(error)}); correct that line") from error


def _problem(error: Exception) -> str:
    """What a library complains of, on one line."""
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    return text if len(text) <= 200 else text[:197] + "..."


def _check_duplicates(node: yaml.Node, path: Path) -> None:
    """YAML takes the last of two equal keys without a word."""
    seen: set[str] = set()
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for key, value in pairs:
        name = str(key.value)
        if name in seen and name != "<<":
            raise ConfigError(
                f"{path}:{key.start_mark.line + 1}: {shown(name)} stands twice in one section;"
                " remove one of them"
            )
        seen.add(name)
        _check_duplicates(value, path)


def _plain(tree: Any) -> Any:
    """A copy whose parts are its own: YAML's aliases share theirs."""
    return (
        {str(key): _plain(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
    )


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(overrides)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or name == "--":
            raise ConfigError(
                f"command line: {name!r} is not expected here; write --dotted.key value"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"command line: {name} has no value; write {name} value")
            value = rest.pop(0)
        yield name.removeprefix("--"), value


def _set(tree: dict[str, Any], cls: type, dotted: str, text: str) -> None:
    """Puts an override into the tree; where text is wanted, it is taken as it stands and not read
    as YAML.
    """
    *parents, name = dotted.split(".")
    hint: Any = cls
    for parent in parents:
        hint = _hints(_section(hint)).get(parent)
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    try:
        tree[name] = text if _hints(_section(hint)).get(name) is str else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"command line: {shown(dotted)}={shorten(text)} is not YAML; put quotes around it"
        ) from error


def _build(
    cls: type[C], tree: Mapping[str, Any], prefix: str, default: C | None, where: Where
) -> C:
    """An instance of the dataclass; keys that the tree leaves out keep the value that they have in
    `default`.
    """
    hints, values = _hints(cls), {}
    for name, value in tree.items():
        key = prefix + name
        if name not in hints:
            raise ConfigError(
                f"{where(key)}: {shown(key)}={shorten(value)} is unknown;"
                f" {_suggestion(cls, name, prefix)}"
            )
        section, optional = _section(hints[name]), type(None) in typing.get_args(hints[name])
        if section is None or (value is None and optional):
            values[name] = _leaf(hints[name], key, value, where(key))
        elif isinstance(value, dict):
            values[name] = _build(
                section, value, f"{key}.", getattr(default or cls, name, None), where
            )
        else:
            raise ConfigError(
                f"{where(key)}: {key}={shorten(value)} must be a section; write {key}: {{key:"
                " value}"
            )
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name not in values and default is not None:
            values[field.name] = getattr(default, field.name)
        elif (
            field.name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ):
            raise ConfigError(
                f"{where('')}: {prefix}{field.name} is missing ({_says(hints[field.name])}); add it"
            )
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(
            f"{where('')}{f', section {prefix[:-1]}' if prefix else ''}: {error}"
        ) from error


def _leaf(hint: Any, key: str, value: Any, source: str) -> Any:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        found = (
            parser.parse_object({"value": value}).value
            if value is not None or type(None) in typing.get_args(hint)
            else value
        )
    except jsonargparse.ArgumentError:
        found = None
    if (
        found is None and (value is not None or type(None) not in typing.get_args(hint))
    ) or not all(map(_usable, _leaves(found))):
        raise ConfigError(f"{source}: {key}={shorten(value)} must be {_says(hint)}")
    return found


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | dict):
        yield from itertools.chain.from_iterable(
            map(_leaves, (*value, *(value.values() if isinstance(value, dict) else ())))
        )
    else:
        yield value


def _usable(value: Any) -> bool:
    """Finite, and of 32 bits, as arrays count; of text, without NUL and half surrogate pairs, which
    no file system takes.
    """
    if isinstance(value, str):
        return not UNUSABLE.search(value)
    return (
        math.isfinite(value)
        if isinstance(value, float)
        else not isinstance(value, int) or abs(value) < 2**31
    )


def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls) if cls is not None else {}


def _section(hint: Any) -> Any:
    """The dataclass of a field `Config` or `Config | None`; None for any other field."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _says(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each entry {_says(arguments[0])}"
    if origin is dict:
        return "a section of names, each with a value of its own"
    if arguments:
        return " or ".join(map(_says, arguments))
    return WORDS.get(hint, "a section")


def _suggestion(cls: type, name: str, prefix: str) -> str:
    near = difflib.get_close_matches(name, _hints(cls), n=1) or difflib.get_close_matches(
        name.lower(), _hints(cls), n=1
    )
    if near:
        return f"did you mean {prefix}{near[0]}?"
    deeper = [key for key in _keys(cls, prefix) if key.rpartition(".")[2] == name]
    if deeper:
        return f"did you mean {' or '.join(deeper[:3])}?"
    return f"the keys of {prefix[:-1] or 'the file'} are {', '.join(_hints(cls))}"


def _keys(cls: type, prefix: str) -> Iterator[str]:
    for name, hint in _hints(cls).items():
        section = _section(hint)
        yield from _keys(section, f"{prefix}{name}.") if section else [prefix + name]
