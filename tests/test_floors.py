"""The walls: imports point down the floors only, flax.linen stays inside models and sharding, and
only chain/kinds.py lists the kinds of stages.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import instruct_jax
from instruct_jax.chain.kinds import KINDS

ROOT = Path(instruct_jax.__file__).parent
FLOOR = {
    "errors": 0,
    "text": 0,
    "records": 1,
    "config": 1,
    "ops": 2,
    "sharding": 3,
    "models": 4,
    "optim": 4,
    "stages": 5,
    "evaluation": 5,
    "data": 6,
    "world": 6,
    "runtime": 6,
    "huggingface": 7,
    "feedback": 8,
    "report": 8,
    "cleaning": 8,
    "chain": 9,
    "plan": 10,
    "commands": 11,
    "cli": 12,
    "__main__": 13,
}
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


# Lists that hold names of kinds and are no list of kinds.
OTHER_LISTS = {
    ("chain/read.py", "OLD_STAGE_KEYS"),  # the spelling of before
    (
        "chain/task.py",
        "PURPOSES",
    ),  # what prompts are asked for, each with random numbers of its own
}
# Files that compare a kind with a name: a stage of one kind reads what another kind leaves, or the
# check of a run needs what only one kind has.  A new kind needs no line in any of them.
COMPARE = {
    "chain/compare.py",  # epochs of an SFT stage
    "chain/select.py",  # the same
    "chain/evaluate.py",  # examples in the prompt are for pretrained models
    "chain/texts.py",  # the length of rows is that of pretraining
    "chain/rounds.py",  # what a round changes in stages that rank and measure
    "chain/preflight.py",  # rows of demonstrations, prompts of a batch
    "commands/show_tokens.py",  # rows of pretraining
}


def literals(node: ast.AST) -> list[str]:
    """The texts in a list, tuple or set, or the keys of a dict."""
    parts: list[ast.expr | None] = []
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        parts = [*node.elts]
    elif isinstance(node, ast.Dict):
        parts = [*node.keys]
    return [str(part.value) for part in parts if isinstance(part, ast.Constant)]


def named(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every node, with the name that its statement at the top of the module has."""
    for statement in tree.body:
        target: object = statement
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        name = getattr(target, "id", getattr(target, "name", ""))
        for node in ast.walk(statement):
            yield name, node


def test_there_is_one_list_of_kinds():
    for path in ROOT.rglob("*.py"):
        home = path.relative_to(ROOT).as_posix()
        for name, node in named(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = KINDS.keys() & set(literals(node))
            if (home, name) == ("chain/kinds.py", "KINDS") or (home, name) in OTHER_LISTS:
                continue
            assert len(kinds) < 2, f"{home}:{getattr(node, 'lineno', 0)} lists {sorted(kinds)}"


def test_few_places_know_a_kind_by_its_name():
    found = set()
    for path in ROOT.rglob("*.py"):
        if home_of(path) == "feedback":  # its tasks and actions are called compare and import too
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and _reads_kind(node.left):
                texts = [n.value for n in node.comparators if isinstance(n, ast.Constant)]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "of_kind":
                texts = [n.value for n in node.args if isinstance(n, ast.Constant)]
            else:
                continue
            if KINDS.keys() & set(texts):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == COMPARE


def _reads_kind(node: ast.expr) -> bool:
    """Is it the kind or the name of a stage?"""
    word = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return word in ("kind", "stage", "name")
