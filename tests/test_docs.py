"""The pages of docs/ say what the code does: every metric, every key with its default, and the
worked example.
"""

import ast
import dataclasses
import importlib.util
import json
import re
import sys
import types
import typing
from pathlib import Path

import pytest

import instruct_jax
from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import STAGES, RunConfig
from instruct_jax.cli import main

CODE = Path(instruct_jax.__file__).parent
ROOT = CODE.parent
METRIC = re.compile(r"[a-z]+/[a-z_]+")
NAMED_BY_STAGE = ("pretrain", "sft")  # stages that log all of make_loss's f"{stage}/..."


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def emitted() -> set[str]:
    """Keys "stage/name" of all dict displays in stages and ops; f"{stage}/name" for the stages that
    log it.
    """
    found: set[str] = set()
    for path in [*(CODE / "stages").glob("*.py"), *(CODE / "ops").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for key in node.keys if isinstance(node, ast.Dict) else ():
                if (
                    isinstance(key, ast.Constant)
                    and isinstance(key.value, str)
                    and METRIC.fullmatch(key.value)
                ):
                    found.add(key.value)
                elif isinstance(key, ast.JoinedStr):
                    found |= {
                        stage + part.value
                        for part in key.values
                        if isinstance(part, ast.Constant)
                        for stage in NAMED_BY_STAGE
                    }
    return found


def test_every_metric_is_explained_and_no_other():
    found = emitted()
    assert len(found) > 20
    assert {
        name
        for name in re.findall(r"^\| `([^`]+)` \|", page("stages"), re.MULTILINE)
        if METRIC.fullmatch(name)
    } == found


def sections(cls: type, prefix: str = ""):
    """(dotted name, dataclass) of a config and of all sections in it."""
    yield prefix.removesuffix("."), cls
    for name, hint in typing.get_type_hints(cls).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from sections(option, f"{prefix}{name}.")


def tables() -> dict[str, dict[str, list[str]]]:
    """config.md: section -> key -> the other cells of its row."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in re.split(r"^### ", page("config"), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        rows = re.findall(
            r"^\| `([a-z0-9_]+)` \| (.*) \|$", body.partition("\n## ")[0], re.MULTILINE
        )
        for name in [""] if heading == "The run" else re.findall(r"`([^`]+)`", heading):
            found[name] = {key: cells.split(" | ") for key, cells in rows}
    return found


def default_of(field: dataclasses.Field) -> str:
    if field.default is field.default_factory is dataclasses.MISSING:
        return "required"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{json.dumps(field.default_factory())}`"
    return (
        "section" if dataclasses.is_dataclass(field.default) else f"`{json.dumps(field.default)}`"
    )


def test_every_key_is_explained_with_its_default():
    documented = tables()
    for name, cls in sections(RunConfig):
        fields = dataclasses.fields(cls)
        assert list(documented[name]) == [field.name for field in fields], name
        for field in fields:
            assert documented[name][field.name][0] == default_of(field), f"{name}.{field.name}"
            assert documented[name][field.name][1] or field.name == "norm_eps", (
                f"{name}.{field.name} has no meaning"
            )


def test_the_optimizer_defaults_of_the_stages():
    rows = re.findall(
        r"^\| `([a-z_.]+optimizer)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|",
        page("config"),
        re.MULTILINE,
    )
    assert len(rows) == 5
    for name, *shown in rows:
        stage, key = name.split(".")
        optimizer = getattr(getattr(RunConfig, stage), key)
        assert shown == [
            json.dumps(getattr(optimizer, part))
            for part in ("learning_rate", "schedule", "clip_norm")
        ], name


def test_every_stage_is_explained():
    for stage in STAGES:
        assert f"| `{stage}` |" in page("config")


def test_links_lead_somewhere():
    for path in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), (path.name, target)


@pytest.mark.parametrize("name", ["1.3B", "6B", "175B"])
def test_the_memory_of_the_papers_sizes(name, tmp_path, monkeypatch, capsys):
    """The table of scale.md has what `check` prints."""
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", str(ROOT / f"configs/instructgpt_{name.lower()}.yaml")]) == 0
    shown = capsys.readouterr().out
    parameters = re.findall(r"^policy +([\d,]+) parameters", shown, re.MULTILINE)
    states = re.findall(r"^(?:pretrain, sft|reward|ppo)  +([\d.]+ [GT]iB)", shown, re.MULTILINE)
    assert len(states) == 3 and f"| {' | '.join([name, *parameters, *states])} |\n" in page("scale")


def test_the_worked_example_runs(tmp_path, monkeypatch):
    files = re.findall(
        r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", page("new_algorithm"), re.DOTALL
    )
    assert [name for name, _ in files] == [
        "instruct_jax/stages/dpo.py", "instruct_jax/pipeline/dpo.py", "configs/dpo_smoke.yaml", "tests/stages/test_dpo.py"
    ]  # fmt: skip
    assert not any((ROOT / name).exists() for name, _ in files), (
        "DPO is in the code now: take another example"
    )
    modules = {}
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            (ROOT / "configs/quickstart_smoke.yaml").read_text() + text
            if name.endswith(".yaml")
            else text
        )
        if name.endswith(".py"):
            dotted = name.removesuffix(".py").replace("/", ".")
            spec = importlib.util.spec_from_file_location(dotted, path)
            assert spec is not None and spec.loader is not None
            modules[name] = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, dotted, modules[name])
            package, _, leaf = dotted.rpartition(".")
            if package in sys.modules:
                monkeypatch.setattr(sys.modules[package], leaf, modules[name], raising=False)
            spec.loader.exec_module(modules[name])
    config = load_config(
        modules["instruct_jax/pipeline/dpo.py"].DpoRun,
        tmp_path / "configs/dpo_smoke.yaml",
        ["--dpo.beta", "0.2"],
    )
    assert (config.dpo.beta, config.dpo.batch) == (0.2, 8)
    tests = [
        test
        for name, test in vars(modules["tests/stages/test_dpo.py"]).items()
        if name.startswith("test_")
    ]
    assert len(tests) == 3
    for test in tests:
        test()
