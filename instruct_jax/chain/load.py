"""A config from a YAML file and dotted overrides.

The first mistake is one message with its place, key, value and repair.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from instruct_jax.errors import ConfigError, shorten, shown

C = TypeVar("C")
Where = Callable[[str], str]  # dotted key -> the place that its value comes from
COMMAND_LINE = "command line"  # the place of overrides
UNUSABLE = re.compile("[\x00\ud800-\udfff]")
WORDS = {
    int: "a whole number below 2**31",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a config has besides the fields of its dataclass."""

    # (name, section) -> the dataclass of a section of a field `dict[str, Dataclass]`
    class_of: Callable[[str, Mapping[str, Any]], type] | None = None
    # (tree, dotted key -> its source) may add keys, and refuse with ConfigError what has another
    # spelling now
    fill_in: Callable[[dict[str, Any], Where], None] = lambda tree, where: None
    short: str | None = None  # a key of this field may leave out its name: --ppo.kl_coef


def load_config(
    cls: type[C], path: str | Path, overrides: Sequence[str] = (), rules: Rules = Rules()
) -> C:
    """The dataclass tree `cls` as the file says, with overrides ["--ppo.batch", "64", "--seed=1",
    ...] on top.
    """
    return build_config(cls, read_yaml(Path(path)), str(path), overrides, rules)


def build_config(
    cls: type[C],
    tree: dict[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    rules: Rules = Rules(),
) -> C:
    """The same of a tree from a place called `source`."""
    given = set()
    for key, text in _pairs(overrides):
        key = _long(key, tree, rules.short)
        given.add(_new_part(tree, key))
        _set(tree, cls, key, text, rules)

    def where(key: str) -> str:
        from_command_line = any(f"{key}.".startswith(f"{k}.") for k in given)
        if from_command_line:
            return COMMAND_LINE
        return source

    rules.fill_in(tree, where)
    return _Builder(where, rules).build(cls, tree, "", None)


def _long(key: str, tree: Mapping[str, Any], short: str | None) -> str:
    """`ppo.kl_coef` as `stages.ppo.kl_coef`, where there is a stage ppo."""
    named = tree.get(short) if short else None
    if isinstance(named, dict) and key.partition(".")[0] in named:
        return f"{short}.{key}"
    return key


def _new_part(tree: Any, dotted: str) -> str:
    """The first part of a dotted key that the tree does not have yet; else all of it."""
    parts = dotted.split(".")
    for number, part in enumerate(parts, 1):
        if not isinstance(tree, dict) or part not in tree:
            return ".".join(parts[:number])
        tree = tree[part]
    return dotted


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
    problem = getattr(error, "problem", None) or error
    text = " ".join(str(problem).split())
    if len(text) <= 200:
        return text
    return text[:197] + "..."


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
    if not isinstance(tree, dict):
        return tree
    return {str(key): _plain(value) for key, value in tree.items()}


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


def _set(tree: dict[str, Any], cls: type, dotted: str, text: str, rules: Rules) -> None:
    """Puts an override into the tree; where text is wanted, it is taken as it stands and not read
    as YAML.
    """
    *parents, name = dotted.split(".")
    hint: Any = cls
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
        hint = _hint_of(hint, parent, tree, rules)
    try:
        wants_text = _hint_of(hint, name, {}, rules) in (str, str | None)
        if wants_text and text != "null":
            tree[name] = text
        else:
            tree[name] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"command line: {shown(dotted)}={shorten(text)} is not YAML; put quotes around it"
        ) from error


def _hint_of(hint: Any, name: str, section: Mapping[str, Any], rules: Rules) -> Any:
    """The type of the field `name` of a dataclass, or of a named section; None where unknown."""
    if _named_sections(hint):
        try:
            return rules.class_of(name, section) if rules.class_of else typing.get_args(hint)[1]
        except ConfigError:  # the builder says it
            return None
    return _hints(_section(hint)).get(name)


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Makes dataclasses of trees."""

    where: Where
    rules: Rules

    def build(self, cls: type[C], tree: Mapping[str, Any], prefix: str, default: C | None) -> C:
        """An instance of the dataclass; keys that the tree leaves out keep the value that they have
        in `default`.
        """
        hints = _hints(cls)
        values: dict[str, Any] = {}
        for name, value in tree.items():
            if name not in hints:
                key = prefix + name
                hint = _suggestion(cls, name, prefix, self._keys(cls, tree, prefix))
                raise ConfigError(
                    f"{self.where(key)}: {shown(key)}={shorten(value)} is unknown; {hint}"
                )
            values[name] = self._field(cls, name, value, prefix, default)
        for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
            if field.name in values:
                continue
            if default is not None:
                values[field.name] = getattr(default, field.name)
            elif (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                raise ConfigError(
                    f"{self.where('')}: {prefix}{field.name} is missing"
                    f" ({_says(hints[field.name])}); add it"
                )
        try:
            return cls(**values)
        except ValueError as error:
            section = f", section {prefix[:-1]}" if prefix else ""
            raise ConfigError(f"{self.where('')}{section}: {error}") from error

    def _keys(self, cls: Any, tree: Mapping[str, Any], prefix: str) -> Iterator[str]:
        """The dotted keys of a dataclass and of its sections; of named ones, those in the tree."""
        for name, hint in _hints(cls).items():
            key = prefix + name
            section = _section(hint)
            given = tree.get(name)
            below = given if isinstance(given, dict) else {}
            if _named_sections(hint):
                for own, values in below.items():
                    found = _hint_of(hint, own, values, self.rules)
                    if isinstance(values, dict) and dataclasses.is_dataclass(found):
                        yield from self._keys(found, values, f"{key}.{own}.")
            elif section is not None:
                yield from self._keys(section, below, f"{key}.")
            else:
                yield key

    def _field(self, cls: Any, name: str, value: Any, prefix: str, default: Any) -> Any:
        key = prefix + name
        hint = _hints(cls)[name]
        section = _section(hint)
        may_be_null = type(None) in typing.get_args(hint)
        if _named_sections(hint):
            return self._sections(hint, key, value)
        if section is None or (value is None and may_be_null):
            return _leaf(hint, key, value, self.where(key))
        if not isinstance(value, dict):
            raise ConfigError(
                f"{self.where(key)}: {key}={shorten(value)} must be a section; write {key}:"
                " {key: value}"
            )
        default_section = getattr(default or cls, name, None)
        return self.build(section, value, f"{key}.", default_section)

    def _sections(self, hint: Any, key: str, value: Any) -> dict[str, Any]:
        """NAME: {key: value}, each of a class of its own.  A section that is null is left out."""
        if not isinstance(value, dict):
            raise ConfigError(
                f"{self.where(key)}: {key}={shorten(value)} must be a section of names; write"
                f" {key}: {{NAME: {{key: value}}}}"
            )
        sections = {}
        for name, section in value.items():
            if section is None:
                continue
            place = f"{key}.{name}"
            if not isinstance(section, dict):
                raise ConfigError(
                    f"{self.where(place)}: {place}={shorten(section)} must be a section; write"
                    f" {name}: {{key: value}}, or null to leave it out"
                )
            _, cls = typing.get_args(hint)
            try:
                if self.rules.class_of:
                    cls = self.rules.class_of(name, section)
            except ConfigError as error:
                said = f"{place}.kind" if "kind" in section else place
                raise ConfigError(f"{self.where(said)}: {error}") from error
            sections[name] = self.build(cls, section, f"{place}.", None)
        return sections


def _leaf(hint: Any, key: str, value: Any, source: str) -> Any:
    may_be_null = type(None) in typing.get_args(hint)
    found = None
    if value is not None or may_be_null:
        with contextlib.suppress(jsonargparse.ArgumentError):
            found = _parser(hint).parse_object({"value": value}).value
    is_null = value is None and may_be_null
    refused = found is None and not is_null
    if refused or not all(map(_usable, _leaves(found))):
        raise ConfigError(f"{source}: {key}={shorten(value)} must be {_says(hint)}")
    return found


@functools.cache
def _parser(hint: Any) -> jsonargparse.ArgumentParser:
    """Reads one value of a type."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        parts = (*value, *value.values())
    elif isinstance(value, tuple):
        parts = value
    else:
        yield value
        return
    for part in parts:
        yield from _leaves(part)


def _usable(value: Any) -> bool:
    """Finite, and of 32 bits, as arrays count; of text, without NUL and half surrogate pairs, which
    no file system takes.
    """
    if isinstance(value, str):
        return not UNUSABLE.search(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 2**31
    return True


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of the keys of a section."""
    if cls is None:
        return {}
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _named_sections(hint: Any) -> bool:
    """Is it dict[str, Dataclass]?"""
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is dict and dataclasses.is_dataclass(arguments[1])


def _section(hint: Any) -> Any:
    """The dataclass of a field `Config` or `Config | None`; None for any other field."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option):
            return option
    return None


def _says(hint: Any) -> str:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list, each entry {_says(arguments[0])}"
    if origin is dict:
        return "a section of names, each with a value of its own"
    if arguments:
        return " or ".join(map(_says, arguments))
    return WORDS.get(hint, "a section")


def _suggestion(cls: type, name: str, prefix: str, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, _hints(cls), n=1)
    if not near:
        near = difflib.get_close_matches(name.lower(), _hints(cls), n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    deeper = [key for key in keys if key.rpartition(".")[2] == name]
    if deeper:
        return f"did you mean {' or '.join(deeper[:3])}?"
    return f"the keys of {prefix[:-1] or 'the file'} are {', '.join(_hints(cls))}"
