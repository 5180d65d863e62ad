"""The pages of docs/ say what the code does: every metric, every kind of stage, every key with its
default, every command, and the worked example.
"""

import ast
import dataclasses
import importlib.util
import io
import json
import re
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import userfiles
import yaml
from data import wordtok

import instruct_jax
from instruct_jax import cli
from instruct_jax.chain import identity, kind
from instruct_jax.chain.kinds import KINDS
from instruct_jax.chain.load import load_config
from instruct_jax.chain.read import build_run, load_run
from instruct_jax.chain.settings import (
    DataConfig,
    PeopleConfig,
    RoundsConfig,
    RunConfig,
    StageData,
    StartedSettings,
    WorldConfig,
)
from instruct_jax.cleaning.clean import CleanConfig
from instruct_jax.cli import main
from instruct_jax.config import LoraConfig, MeshConfig, ModelConfig, OptimizerConfig, RopeScaling
from instruct_jax.data import schemas
from instruct_jax.data.encode import TextFormat
from instruct_jax.feedback import command as label
from instruct_jax.stages.experience import ExperienceConfig
from instruct_jax.stages.rollout import SamplerConfig
from instruct_jax.world.tokenizer import train_tokenizer

CODE = Path(instruct_jax.__file__).parent
ROOT = CODE.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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
            if isinstance(node, ast.Dict):
                for key in node.keys:
                    found |= metrics_in(key)
    return found


def metrics_in(key: ast.expr | None) -> set[str]:
    """The metrics that a key of a dict display stands for."""
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return {key.value} if METRIC.fullmatch(key.value) else set()
    found: set[str] = set()
    if isinstance(key, ast.JoinedStr):
        for part in key.values:
            if isinstance(part, ast.Constant):
                found |= {f"{stage}{part.value}" for stage in NAMED_BY_STAGE}
    return found


def test_every_metric_is_explained_and_no_other():
    found = emitted()
    assert len(found) > 20
    rows = re.findall(r"^\| `([^`]+)` \|", page("stages"), re.MULTILINE)
    assert {name for name in rows if METRIC.fullmatch(name)} == found


# heading in config.md, without backticks -> what it documents
SECTIONS: dict[str, type] = {
    "The run": RunConfig,
    "Every stage": StartedSettings,
    "data of a stage": StageData,
    "people of compare and of rounds": PeopleConfig,
    "sampler of ppo": SamplerConfig,
    "experience of ppo": ExperienceConfig,
    "optimizer of a stage, value_optimizer of ppo": OptimizerConfig,
    "world": WorldConfig,
    "data": DataConfig,
    "text": TextFormat,
    "model": ModelConfig,
    "model.rope_scaling": RopeScaling,
    "lora": LoraConfig,
    "mesh": MeshConfig,
    "rounds": RoundsConfig,
}
USES = ("start", "models", "rankings", "reward", "ranker", "previous")  # keys that name stages
LEAVES = {
    "policy": "a policy",
    "scalar": "a reward model",
    "records": "rankings",
    "findings": "findings",
}


def tables() -> dict[str, dict[str, list[str]]]:
    """config.md: heading without backticks -> key -> the other cells of its row."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in re.split(r"^### ", page("config"), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        body = body.partition("\n## ")[0]
        rows = re.findall(r"^\| `([a-z0-9_]+)` \| (.*) \|$", body, re.MULTILINE)
        found[heading.replace("`", "")] = {key: cells.split(" | ") for key, cells in rows}
    return found


def default_of(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{json.dumps(field.default_factory())}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(field.default):
        return "section"
    return f"`{json.dumps(field.default)}`"


def fields_of(cls: type, inherited: type | None = None) -> list[dataclasses.Field]:
    """The fields of a dataclass that another one, whose table stands elsewhere, does not have."""
    known: set[str] = set()
    if inherited is not None:
        known = {field.name for field in dataclasses.fields(inherited)}
    return [field for field in dataclasses.fields(cls) if field.name not in known]


def own_fields(name: str) -> list[dataclasses.Field]:
    """What a kind of stage adds to every stage; a cross-validation has the keys of reward too."""
    if name == "cross_validation":
        return fields_of(KINDS[name].settings, KINDS["reward"].settings)
    return fields_of(KINDS[name].settings, StartedSettings)


def documented_fields() -> Iterator[tuple[str, list[dataclasses.Field]]]:
    for heading, cls in SECTIONS.items():
        yield heading, fields_of(cls)
    for name in KINDS:
        yield f"Kind {name}", own_fields(name)


def test_every_key_is_explained_with_its_default():
    documented = tables()
    for heading, fields in documented_fields():
        rows = documented[heading]
        assert list(rows) == [field.name for field in fields], heading
        for field in fields:
            assert rows[field.name][0] == default_of(field), f"{heading}: {field.name}"
            assert rows[field.name][1] or field.name == "norm_eps", (
                f"{heading}: {field.name} has no meaning"
            )


def section_classes(cls: type) -> Iterator[type]:
    """The dataclasses of all sections below a dataclass."""
    for hint in typing.get_type_hints(cls).values():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield typing.cast(type, option)
                yield from section_classes(typing.cast(type, option))


def test_every_section_has_a_heading():
    classes = set(section_classes(RunConfig))
    for one in KINDS.values():
        classes |= set(section_classes(one.settings))
    assert classes <= set(SECTIONS.values())


def test_every_kind_is_explained_with_what_it_uses_and_leaves():
    table = page("config").partition("| kind | uses | leaves |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*?) \| (.*?) \|", table, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(KINDS)
    for name, uses, leaves in rows:
        settings = KINDS[name].settings
        keys = {field.name for field in dataclasses.fields(settings)}
        assert re.findall(r"`([a-z]+)`", uses) == [k for k in USES if k in keys]
        assert leaves == LEAVES[settings.leaves]


def test_the_optimizer_defaults_of_the_kinds():
    rows = re.findall(
        r"^\| `([a-z_.]+optimizer)` \| `(.+?)` \| `(.+?)` \| `(.+?)` \|",
        page("config"),
        re.MULTILINE,
    )
    expected = []
    for name in KINDS:
        for field in own_fields(name):
            if isinstance(field.default, OptimizerConfig):
                parts = [
                    getattr(field.default, p) for p in ("learning_rate", "schedule", "clip_norm")
                ]
                expected.append((f"{name}.{field.name}", *map(json.dumps, parts)))
    assert sorted(rows) == sorted(expected) and len(rows) == 6


def test_what_may_change_at_any_time():
    """config.md lists the settings that no identity of a stage holds."""
    _, _, rest = page("config").partition("may change at any time:")
    named = set(re.findall(r"`([a-z_]+)`", rest.partition("bitwise the same")[0]))
    free = {"mesh", "sample_batch", *kind.HOW, *identity.HOW_OF_MODELS} - {"family"}
    for one in KINDS.values():
        free |= set(one.how)
        assert not free & set(one.run_keys)
    assert named == free


def test_links_lead_somewhere():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), (path.name, target)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")


def test_anchors_are_headings():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            other = (path.parent / target if target else path).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.*)$", other, re.MULTILINE)
            assert anchor in map(slug, headings), (path.name, target, anchor)


def test_the_index_has_every_page():
    index = page("README")
    for path in (ROOT / "docs").glob("*.md"):
        assert f"({path.name})" in index or path.name == "README.md"


def test_the_architecture_names_every_room():
    picture = page("architecture").partition("```")[2].partition("```")[0]
    for path in CODE.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in picture
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in picture


def command_lines() -> Iterator[str]:
    """Every command in the fences of the pages, without its comment, continued lines joined."""
    for path in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            yield from filter(None, block.replace("\\\n", " ").splitlines())


OURS = sorted({line for line in command_lines() if "instruct-jax " in line})


@pytest.mark.parametrize("line", OURS)
def test_every_command_is_one(line, monkeypatch):
    """It parses, and the keys that it sets are keys of the config that it names."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    words = words[words.index("instruct-jax") + 1 :]
    if words[0] == "label":
        parsed = label._parser().parse_args(
            words[1:] if words[1][0] != "-" else ["serve", *words[1:]]
        )
        assert parsed.store is not None
        return
    args, rest = cli._parser().parse_known_args(words)
    if words[0] in ("chat", "sample", "export", "import", "replay", "report", "study"):
        assert all(word.startswith("--mesh.") or word.startswith("--model.") for word in rest[::2])
        return
    config = Path(args.config)
    made_by_the_reader = ("mine.yaml", "slic_smoke.yaml")  # the page of the latter runs it
    if config.parent.name == "configs" and config.name not in made_by_the_reader:
        if words[0] == "data":
            load_config(CleanConfig, config, rest)
        else:
            load_run(config, rest)
    else:
        assert len(rest) % 2 == 0


def test_every_script_is_there():
    for line in command_lines():
        for script in re.findall(r"scripts/\w+\.(?:sh|py)", line):
            assert (ROOT / script).is_file(), line


def yaml_block(path: Path, holds: str) -> dict:
    """The YAML of a page that has some text in it."""
    blocks = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return next(yaml.safe_load(block) for block in blocks if holds in block)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A Hugging Face folder with a tokenizer of a few words."""
    torch_models = pytest.importorskip("torch_models", reason="torch is only for tests")
    folder = tmp_path_factory.mktemp("model")
    torch_models.save(torch_models.model_of("llama"), folder)
    wordtok.words().save_pretrained(folder)
    return str(folder)


def test_the_stages_of_the_config_page_can_be_read(tiny_model):
    tree = yaml_block(ROOT / "docs/config.md", "ppo_ptx:") | {"out": "runs/a", "base": tiny_model}
    config = build_run(tree | {"data": {}, "text": {"max_prompt": 8, "max_completion": 8}}, "page")
    assert list(config.stages) == list(tree["stages"])
    assert config.stages["other"].kind == "reward" and config.stages["other"].seed == 1


def readme_records() -> list[dict]:
    """The demonstration, the ranking and the prompt that README.md shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("```json\n")[2].partition("```")[0]
    return [json.loads(line) for line in block.splitlines()]


def test_the_config_of_the_readme_fits_50_records(tiny_model, tmp_path, monkeypatch, capsys):
    """As it stands there, but for the model, whose context is shorter, and its tokenizer, which
    knows the words of the ranking.
    """
    monkeypatch.chdir(tmp_path)
    tree = yaml_block(ROOT / "README.md", "# mine.yaml") | {"base": tiny_model}
    tree["data"]["tokenizer"] = "words"
    tree["text"] = {"max_prompt": 128, "max_completion": 128}
    tree["stages"]["sft"]["length"] = 256
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    demonstration, ranking, prompt = readme_records()
    train_tokenizer(ranking["completions"]).save_pretrained("words")
    shown = {"demonstrations": demonstration, "rankings": ranking, "prompts": prompt}
    for name, record in shown.items():
        records = [record | {"prompt": f"{record['prompt']} {i}"} for i in range(50)]
        userfiles.write(tmp_path / f"{name}.jsonl", records)
    assert main(["check", "--config", "mine.yaml"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "0 texts, 50 prompts" in out and "50 demonstrations" in out and "50 rankings" in out


def test_the_records_of_the_readme_are_read():
    kinds = (schemas.demonstration, schemas.ranking, schemas.prompt)
    for schema, record in zip(kinds, readme_records(), strict=True):
        assert schema(record)["prompt"] == record["prompt"]


def texts() -> Iterator[str]:
    """Of all pages, scripts and string constants of the package."""
    for path in (*PAGES, *(ROOT / "scripts").glob("*.*")):
        yield path.read_text(encoding="utf-8")
    for path in (ROOT / "instruct_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_extras_are_installed_from_the_checkout():
    """The project is not on the package index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for text in texts():
        assert not re.search(r"install\s+['\"]?instruct[-_]jax\b", text), text
        named |= set(re.findall(r"'\.\[(\w+)\]'", text))
    assert {"label", "language", "pii", "tpu", "cuda"} <= named
    assert named <= project["optional-dependencies"].keys()


def test_pages_name_no_folder_that_only_we_have():
    for path in [*PAGES, *(ROOT / "configs").glob("*.yaml")]:
        assert "../shared" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("name", ["1.3B", "6B", "175B"])
def test_the_memory_of_the_papers_sizes(name, tmp_path, monkeypatch, capsys):
    """The table of scale.md has what `check` prints."""
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", str(ROOT / f"configs/instructgpt_{name.lower()}.yaml")]) == 0
    shown = capsys.readouterr().out
    parameters = re.findall(r"^pretrain, .*?  +([\d,]+) +all", shown, re.MULTILINE)
    states = re.findall(r"^(?:sft|reward|ppo) +([\d.]+ [GT]iB)", shown, re.MULTILINE)
    assert len(states) == 3
    assert f"| {' | '.join([name, *parameters, *states])} |\n" in page("scale")


def test_the_worked_example_runs(tmp_path, monkeypatch, capsys):
    """Two files and one line make a kind that run, export, chat and the report know."""
    text = page("new_algorithm")
    files = re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL)
    _, wiring, config, test = names = [name for name, _ in files]
    assert names == [
        "instruct_jax/stages/slic.py",
        "instruct_jax/chain/slic.py",
        "configs/slic_smoke.yaml",
        "tests/stages/test_slic.py",
    ]
    assert not any((ROOT / name).exists() for name in names), "it is shipped: take another example"
    modules = {}
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        if path.suffix == ".py":
            modules[name] = as_module(path, name, monkeypatch)
    assert '"slic": slic.KIND,' in text
    monkeypatch.setitem(KINDS, "slic", modules[wiring].KIND)
    for name, check in vars(modules[test]).items():
        if name.startswith("test_"):
            check()
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--config", config]) == 0
    assert main(["run", "--config", config, "--slic.margin", "0.5"]) == 0
    done = json.loads(Path("runs/slic_smoke/slic/done.json").read_text())
    assert done["kind"] == "slic" and done["inputs"]["settings.margin"] == 0.5
    evaluation = json.loads(Path("runs/slic_smoke/evaluate/evaluation.json").read_text())
    assert "slic" in evaluation["win_rate"]["1.0"]
    assert main(["export", "runs/slic_smoke:slic", "--out", "slic_model"]) == 0
    assert Path("slic_model/model.safetensors").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("count to three\n"))
    capsys.readouterr()
    assert main(["chat", "runs/slic_smoke:slic", "--max_tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["report", "runs/slic_smoke"]) == 0
    assert "SLiC loss" in Path("runs/slic_smoke/report.html").read_text()


def as_module(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A file of a page, imported as if it were in the package."""
    dotted = name.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(dotted, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, dotted, module)
    package, _, leaf = dotted.rpartition(".")
    if package in sys.modules:
        monkeypatch.setattr(sys.modules[package], leaf, module, raising=False)
    spec.loader.exec_module(module)
    return module
