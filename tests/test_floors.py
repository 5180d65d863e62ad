"""The walls: imports point down the floors only, and flax.linen stays inside models and sharding."""

import ast
from collections.abc import Iterator
from pathlib import Path

import instruct_jax

ROOT = Path(instruct_jax.__file__).parent
FLOOR = {
    "errors": 0, "text": 0, "records": 1, "config": 1,
    "ops": 2,
    "sharding": 3, "models": 4, "optim": 4,
    "stages": 5, "evaluation": 5,
    "data": 6, "world": 6, "runtime": 6,
    "huggingface": 7,
    "feedback": 8, "report": 8, "cleaning": 8,
    "chain": 9,
    "plan": 10,
    "commands": 11,
    "cli": 12,
    "__main__": 13,
}  # fmt: skip
LINEN = {"models", "sharding"}


def home_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, relative ones made absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["instruct_jax", *path.relative_to(ROOT).parts[:-1]]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        home = home_of(path)
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "instruct_jax" and rest and rest[0] in FLOOR and home in FLOOR:
                assert rest[0] == home or FLOOR[rest[0]] < FLOOR[home], (path, name)


def test_every_module_has_a_floor():
    assert {home_of(p) for p in ROOT.rglob("*.py")} - {"__init__"} <= FLOOR.keys()


def test_flax_stays_behind_the_seam():
    for path in ROOT.rglob("*.py"):
        if any(name.startswith("flax.linen") for name in imports(path)):
            assert home_of(path) in LINEN, path
        assert not any(name.startswith("flax.nnx") for name in imports(path)), path


def test_nothing_below_the_chain_touches_the_config_of_a_run():
    for path in ROOT.rglob("*.py"):
        if FLOOR.get(home_of(path), 9) < FLOOR["chain"]:
            assert not any("instruct_jax.chain" in name for name in imports(path)), path
