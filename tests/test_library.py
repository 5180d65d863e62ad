"""The face of the library: what docs/library.md shows runs, and every public name is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import instruct_jax as ij

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def examples() -> dict:
    """The names that the blocks of the page make, one block after the other."""
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/library.md", "exec"), names)
    return names


EXAMPLES = examples()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("test_")])
def test_the_examples_run(name):
    EXAMPLES[name]()


def test_every_block_has_a_test_and_the_first_has_20_lines():
    assert len(BLOCKS) == 6
    assert all(block.count("\ndef test_") == 1 for block in BLOCKS)
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(code) <= 20


def imported_for_type_checkers() -> dict[str, str]:
    """Public name -> where it lives, by the imports under TYPE_CHECKING."""
    tree = ast.parse(Path(str(ij.__file__)).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        module = node.module.removeprefix("instruct_jax.")
        for alias in node.names:
            homes[alias.asname or alias.name] = f"{module}.{alias.name}"
    return homes


def test_type_checkers_see_what_is_imported():
    assert imported_for_type_checkers() == ij._HOMES
    assert sorted(ij._HOMES) == ij.__all__


@pytest.mark.parametrize("name", ij.__all__)
def test_every_name_is_there(name):
    value = getattr(ij, name)
    assert value.__doc__ or value.__name__.endswith("Config")
    assert name in dir(ij)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trainer'"):
        ij.trainer  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used():
    """The command line must start quickly."""
    code = "import sys, instruct_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_marker_of_typed_packages_is_there():
    assert Path(str(ij.__file__)).with_name("py.typed").is_file()
