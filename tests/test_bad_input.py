"""Every mistake of a user ends before any device work: exit code 2, one message with place, value
and fix, nothing written.
"""

import copy
import dataclasses
import functools
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import userfiles
import yaml
from data import wordtok

from instruct_jax.chain import identity
from instruct_jax.chain.context import Run
from instruct_jax.chain.read import OLD_KEYS, OLD_STAGE_KEYS, load_run
from instruct_jax.chain.spec import Checkpoint, ModelSpec, TokenizerSource, write_spec
from instruct_jax.cli import main
from instruct_jax.records import TrainState
from instruct_jax.runtime.checkpoints import Checkpoints, restore_params
from instruct_jax.runtime.metrics import Recompiles


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    message: tuple[str, ...]  # what it must hold: place, value, fix
    args: str = ""  # behind `run --config run.yaml`
    config: Callable[[str], str] = str  # changes the good config
    files: dict = dataclasses.field(default_factory=dict)  # file -> records, or bytes
    tokenizer: dict | None = None  # its special tokens
    prepare: Callable[[Path], object] = str  # changes the folder
    run: Callable[[Path], None] | None = None  # in the place of the pipeline
    # `check` says the same; it knows no devices, and what is not there yet it only reports
    check: bool = True


def demo(**fields):
    return [{"prompt": "a b", "completion": "c d"}, fields]


def ranks(ranks, completions=("b", "c", "d")):
    return {
        "ranks.jsonl": [
            *userfiles.DATA["ranks.jsonl"],
            {"prompt": "a", "completions": list(completions), "ranks": ranks},
        ]
    }


def prompts(*records):
    return {
        "prompts.jsonl": [
            *userfiles.DATA["prompts.jsonl"],
            *({"prompt": r} if not isinstance(r, dict) else r for r in records),
        ]
    }


def chat(*turns: str) -> list[dict]:
    """chat("user a", "assistant b")"""
    return [dict(zip(("role", "content"), turn.split(" ", 1), strict=True)) for turn in turns]


def template(text: str) -> Callable[[Path], object]:
    """A tokenizer with this chat template."""

    def prepare(place: Path) -> None:
        tok = copy.deepcopy(wordtok.words())
        tok.chat_template = text
        tok.save_pretrained(place / "tok")

    return prepare


def stages(text: str) -> Callable[[str], str]:
    """The good config with these stages instead of its own."""

    def change(config: str) -> str:
        return config[: config.index("stages:")] + text + "\n"

    return change


def their_config(architecture: str) -> bytes:
    """The config.json of a tiny Llama."""
    config = {
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
    }
    return json.dumps(config).encode()


def compared(config: str) -> str:
    """The good config with a stage of kind compare."""
    return config + "  compare: {start: sft}\n"


def two_sizes(model: str) -> Callable[[str], str]:
    """The good config with a reward model that starts from another pretrained model."""
    shape = "{vocab_size: 20, context: 16, width: 16, layers: 1, heads: 2}"
    values = yaml.safe_load(shape) | yaml.safe_load(f"{{{model}}}")
    big = f"  big: {{kind: pretrain, steps: 1, batch: 4, length: 8, model: {json.dumps(values)}}}\n"

    def change(config: str) -> str:
        return config.replace("reward: {start: sft,", "reward: {start: big,") + big

    return change


def in_the_world(config: str) -> str:
    """The good config in the embedded world, which brings no rankings."""
    tree = yaml.safe_load(config)
    del tree["data"]
    tree |= {"world": {"demonstrations": 8}, "text": {"max_prompt": 24, "max_completion": 20}}
    tree["model"] |= {"vocab_size": 160, "context": 64}
    return yaml.safe_dump(tree)


def rounds(config: str) -> str:
    """The good config with two rounds; PPO learns from what another reward model ranked."""
    more = "  compare: {start: sft}\n  reward2: {kind: reward, start: sft, batch: 4}\n"
    learned = config.replace("reward: {start: sft,", "reward: {start: sft, rankings: compare,")
    return f"{learned}{more}rounds: {{count: 2}}\n"


def old_key(kind: str, key: str) -> Callable[[str], str]:
    """The good config with a stage of this kind that has a key of before."""
    tree: dict = {"value": 1}
    for part in reversed(key.split(".")):
        tree = {part: tree}

    def change(config: str) -> str:
        return config + f"  x: {json.dumps({'kind': kind} | tree)}\n"

    return change


def finished(folder: str, stage: str, inputs: dict | None = None) -> Callable[[Path], object]:
    """A run whose stage is done, made from these inputs."""

    def prepare(place: Path) -> None:
        note = {"kind": stage, "inputs": inputs or {}, "output": {}}
        userfiles.write(place / folder / stage / "done.json", json.dumps(note).encode())
        userfiles.write(place / folder / "config.yaml", b"{}")

    return prepare


def made(folder: str, stage: str, **changed: str) -> Callable[[Path], object]:
    """A run of the same config whose stage is done; these of its inputs were others."""

    def prepare(place: Path) -> None:
        config = load_run(place / "run.yaml")
        inputs = identity.identity(Run(config, Path(folder)).stage(stage))
        assert changed.keys() <= inputs.keys()
        finished(folder, stage, inputs | changed)(place)

    return prepare


def model_of_another(
    folder: str, stage: str, tokenizer: str = "0123456789abcdef", **model: int
) -> Callable[[Path], object]:
    """The same with the model that it left, made with a tokenizer of this fingerprint."""

    def prepare(place: Path) -> None:
        finished(folder, stage)(place)
        config = load_run(place / "run.yaml")
        shape = dataclasses.replace(config.model, **model)
        spec = ModelSpec(shape, TokenizerSource("tok"), config.text)
        write_spec(place / folder, stage, spec, Checkpoint(stage))
        metadata = place / folder / stage / "checkpoints/3/_CHECKPOINT_METADATA"  # of orbax
        saved = {"custom_metadata": {"tokenizer": tokenizer}}
        userfiles.write(metadata, json.dumps(saved).encode())

    return prepare


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def pipe(name: str) -> Callable[[Path], object]:
    def prepare(place: Path) -> None:
        (place / name).unlink()
        os.mkfifo(place / name)

    return prepare


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def restore(shape: tuple[int, ...], tokenizer: str) -> Callable[[Path], None]:
    def run(place: Path) -> None:
        restore_params(
            place / "ckpt",
            {"w": jax.ShapeDtypeStruct(shape, jnp.float32)},
            fingerprints={"tokenizer": tokenizer},
        )

    return run


CASES = [
    # keys
    Case(
        "misspelt key",
        ("run.yaml: model.widht=16", "did you mean model.width?"),
        config=swap("width: 16", "widht: 16"),
    ),
    Case(
        "misspelt section",
        ("run.yaml: modle={", "did you mean model?"),
        config=swap("model:", "modle:"),
    ),
    Case(
        "misspelt override",
        ("command line: stages.ppo.kl_coeff=0.1", "did you mean stages.ppo.kl_coef?"),
        "--ppo.kl_coeff 0.1",
    ),
    Case(
        "key of another section",
        ("learning_rate=0.1", "did you mean stages.pretrain.optimizer.learning_rate"),
        "--learning_rate 0.1",
    ),
    Case(
        "key like no other",
        ("mesh.zebra=1", "the keys of mesh are data, fsdp, tensor, context"),
        "--mesh.zebra 1",
    ),
    Case(
        "key twice",
        ("run.yaml:3: out stands twice", "remove one"),
        config=lambda text: text.replace("sample_batch: 8", "out: b"),
    ),
    Case(
        "key missing",
        ("run.yaml: out is missing (text)", "add it"),
        config=swap("out: runs/a", "seed: 1"),
    ),
    Case(
        "key of a section missing",
        ("data.tokenizer is missing", "name a Hugging Face folder"),
        config=swap("  tokenizer: tok\n", ""),
    ),
    Case("command misspelt", ("rnu", "run"), args="COMMAND rnu"),
    Case("no --config", ("--config",), args="COMMAND run"),
    Case("override without value", ("--seed has no value", "write --seed value"), "--seed"),
    Case(
        "key over several lines",
        ("run.yaml: 'a\\nb'=1 is unknown", "the keys of the file are"),
        config=lambda text: text + '"a\\nb": 1\n',
    ),
    Case("stray word", ("'quick' is not expected", "write --dotted.key value"), "quick"),
    # types
    Case(
        "text for a whole number",
        ("run.yaml: model.width='wide'", "must be a whole number"),
        config=swap("width: 16", "width: wide"),
    ),
    Case(
        "fraction for a whole number",
        ("model.layers=1.5", "must be a whole number"),
        "--model.layers 1.5",
    ),
    Case(
        "bool for a whole number",
        ("model.layers=true", "must be a whole number"),
        "--model.layers true",
    ),
    Case(
        "text for a number",
        ("reward.optimizer.learning_rate='fast'", "must be a number"),
        "--reward.optimizer.learning_rate fast",
    ),
    Case("nan", ("ppo.kl_coef=nan", "must be a number"), "--ppo.kl_coef .nan"),
    Case(
        "whole number of 70 bits",
        ("model.vocab_size=999999999999999999999", "below 2**31"),
        "--model.vocab_size 999999999999999999999",
    ),
    Case(
        "a day that is none",
        ("command line: seed='2001-13-99' is not YAML", "put quotes"),
        "--seed 2001-13-99",
    ),
    Case(
        "NUL in a path",
        (r"run.yaml: out='a\x00b' must be text",),
        config=swap("out: runs/a", r'out: "a\0b"'),
    ),
    Case(
        "half a surrogate pair in a path",
        (r"run.yaml: out='a\ud800b' must be text",),
        config=swap("out: runs/a", r'out: "a\ud800b"'),
    ),
    Case("negative seed", ("run.yaml: seed=-1 must not be negative",), "--seed -1"),
    Case(
        "no heads for keys",
        ("section model: model.kv_heads=0 must be at least 1, or null",),
        "--model.kv_heads 0",
    ),
    Case(
        "beta of 1",
        ("section stages.sft.optimizer: b1=1.0 must lie in [0, 1)",),
        "--sft.optimizer.b1 1",
    ),
    Case(
        "best of none",
        ("section stages.evaluate: best_of=[0, 4] must be at least 1",),
        "--evaluate.best_of [0,4]",
    ),
    Case("number for a bool", ("model.bias=2", "must be true or false"), "--model.bias 2"),
    Case(
        "unknown choice", ("model.positions='sinus'", "learned, rotary"), "--model.positions sinus"
    ),
    Case("null", ("model.heads=null", "must be a whole number"), "--model.heads null"),
    Case("number for a section", ("mesh=8", "must be a section"), "--mesh 8"),
    Case(
        "text for a list",
        ("data.texts='texts.jsonl'", "must be a list, each entry text"),
        "--data.texts texts.jsonl",
    ),
    # the file itself
    Case(
        "no YAML",
        ("run.yaml:2: not YAML", "correct that line"),
        config=lambda text: "out: a\n\tseed: 1\n",
    ),
    Case("empty config", ("run.yaml: holds no keys", "key: value"), config=lambda text: ""),
    Case(
        "config not UTF-8",
        ("run.yaml: not UTF-8 at byte 4", "iconv"),
        config=lambda text: "a: \udcff",
    ),
    Case(
        "config with a control character",
        ("run.yaml: not YAML (unacceptable character #x001b", "correct that line"),
        config=lambda text: text + "# \x1b",
    ),
    Case(
        "config holds itself",
        ("run.yaml: not YAML (maximum recursion", "correct that line"),
        config=lambda text: text + "loop: &a {x: *a}\n",
    ),
    Case(
        "config is a folder",
        ("tok: no such config file", "correct --config"),
        args="COMMAND run --config tok",
    ),
    Case(
        "100 kB in a config",
        ("run.yaml: seed='kkkkk", "kk... must be a whole number"),
        config=lambda text: f"{text}seed: {'k' * 10**5}\n",
    ),
    Case(
        "no such config",
        ("nowhere.yaml: no such config file", "correct --config"),
        args="COMMAND run --config nowhere.yaml",
    ),
    # impossible combinations
    Case(
        "minibatch",
        ("section stages.ppo", "batch=8 must be a multiple of minibatch=3"),
        "--ppo.minibatch 3",
    ),
    Case(
        "micro-batches",
        ("section stages.sft: micro_batches=3 must divide batch=4",),
        "--sft.micro_batches 3",
    ),
    Case(
        "context too short",
        ("text.max_prompt=6", "model.context=11", "lower one of them or raise model.context"),
        "--model.context 11",
    ),
    Case(
        "row too long",
        ("sft.length=17 exceeds model.context=16", "raise model.context"),
        "--sft.length 17",
    ),
    Case(
        "ptx row too long",
        ("ppo.ptx_length=128 exceeds model.context=16", "lower it"),
        "--ppo.ptx_coef 1 --ppo.ptx_batch 4",
    ),
    Case(
        "mesh too large",
        ("needs 99 devices, there are 8", "make the mesh smaller"),
        "--mesh.data 99",
        check=False,
    ),
    Case(
        "mesh does not fit",
        ("8 devices are not a multiple of 3", "change the mesh"),
        "--mesh.data -1 --mesh.fsdp 3 --model.width 24",
        check=False,
    ),
    Case(
        "mesh and batch",
        (
            "pretrain.batch / pretrain.micro_batches = 4 must be a multiple",
            "data 8 * fsdp 1 = 8",
            "or the mesh",
        ),
        "--mesh.data 8",
    ),
    Case(
        "mesh and vocabulary",
        ("mesh.tensor=8 does not divide model.vocab_size=20", "set model.vocab_multiple=8"),
        "--mesh.tensor 8 --model.heads 8",
    ),
    Case(
        "logical axis",
        ("mesh.training.width is no axis of our arrays", "use one of batch, sequence"),
        "--mesh.training.width [data]",
    ),
    Case(
        "mesh axis of a rule",
        ("mesh.sampling.embed=['model']", "data, fsdp, tensor, context"),
        "--mesh.sampling.embed [model]",
    ),
    Case(
        "mesh and heads",
        ("mesh.tensor=4 does not divide model.heads=2", "change one"),
        "--mesh.tensor 4",
    ),
    Case(
        "heads and width",
        ("model.width=16", "model.heads=3", "set model.head_width"),
        "--model.heads 3",
    ),
    Case("two tasks", ("exactly one of world", "data"), "--world.demonstrations 8"),
    Case("no task", ("exactly one of world", "data"), "--data null"),
    Case(
        "K",
        ("section stages.compare", "min_completions=1", "2 <="),
        "--compare.min_completions 1",
        config=compared,
    ),
    Case("greedy PPO", ("temperature=0.0", "use temperature > 0"), "--ppo.sampler.temperature 0"),
    Case(
        "top-p in PPO",
        (
            "section stages.ppo: sampler",
            "top_p=0.9",
            "ratios and KL are wrong",
            "use temperature > 0, top_k=0, top_p=1",
        ),
        "--ppo.sampler.top_p 0.9",
    ),
    Case(
        "top-k in PPO",
        ("section stages.ppo: sampler", "top_k=5", "use temperature > 0, top_k=0, top_p=1"),
        "--ppo.sampler.top_k 5",
    ),
    Case(
        "half of ptx",
        ("section stages.ppo: ptx_coef=1.0", "ptx_batch=0", "both"),
        "--ppo.ptx_coef 1",
    ),
    Case(
        "ptx without texts",
        ("data.texts=[]", "the stage ppo (ptx_coef > 0) needs some", "name files"),
        "--ppo.ptx_coef 1 --ppo.ptx_batch 4 --ppo.ptx_length 16 --data.texts [] --stages ppo",
    ),
    Case(
        "language model as reward model",
        ("stages.ppo.reward=theirs leaves a policy, and a reward model is needed; use reward",),
        "--ppo.reward theirs",
        files={"theirs/config.json": their_config("LlamaForCausalLM")},
    ),
    Case(
        "reward model as policy",
        ("stages.ppo.start=theirs leaves a reward model, and a policy is needed; use pretrain",),
        "--ppo.start theirs",
        files={"theirs/config.json": their_config("LlamaForSequenceClassification")},
    ),
    Case(
        "no rankings",
        ("data.rankings=[]", "the stage reward needs some", "leave reward out of --stages"),
        "--data.rankings []",
    ),
    Case(
        "pretrain mix of no row",
        ("sft.pretrain_mix=0.01 makes 0 of the 4 rows", "raise stages.sft.batch"),
        "--sft.pretrain_mix 0.01",
    ),
    Case(
        "context of a second model",
        (
            "text.max_prompt + text.max_completion = 12 exceeds the context 8 of stages.reward",
            "raise it",
        ),
        config=two_sizes("context: 8"),
    ),
    Case(
        "width of a second model",
        ("section stages.big.model", "model.width=15", "heads"),
        config=two_sizes("width: 15, heads: 2"),
    ),
    Case(
        "mesh and a second model",
        ("mesh.tensor=2 does not divide", "stages.big", "heads=1", "change one"),
        "--mesh.tensor 2",
        config=two_sizes("heads: 1, kv_heads: 1"),
    ),
    Case("unknown stage", ("--stages rewards", "did you mean reward?"), "--stages sft,rewards"),
    Case(
        "stage without name",
        ("--stages has an empty name", "one comma between two"),
        "--stages sft,,reward",
    ),
    Case(
        "stage without section",
        ("--stages dpo is no stage of this config", "add a stage dpo"),
        "--stages dpo",
    ),
    Case(
        "unknown stage to redo",
        ("--redo rewards is no stage of this config; did you mean reward?",),
        "--redo rewards",
    ),
    Case(
        "nothing like a stage to redo",
        ("--redo zebra is no stage", "use pretrain, sft, reward"),
        "--redo zebra",
    ),
    Case(
        "stage to redo without name",
        ("--redo has an empty name", "one comma between two"),
        "--redo sft,",
    ),
    Case(
        "what a stage uses is left out",
        ("--stages ppo needs select, which runs/a does not have", "add select to --stages"),
        "--stages ppo",
    ),
    # stages
    Case(
        "no stages",
        ("stages={} must name at least one", "sft: {epochs: 2}"),
        config=stages("stages: {}"),
    ),
    Case("stages missing", ("stages={} must name at least one",), config=stages("")),
    Case(
        "stages are null",
        ("run.yaml: stages=null must be a section of names", "NAME: {key: value}"),
        config=stages("stages: null"),
    ),
    Case(
        "stages are a list",
        ("run.yaml: stages=['sft'] must be a section of names",),
        config=stages("stages: [sft]"),
    ),
    Case(
        "all stages are null",
        ("stages={} must name at least one",),
        config=stages("stages: {sft: null}"),
    ),
    Case(
        "stage is a number",
        ("run.yaml: stages.sft=3 must be a section", "or null to leave it out"),
        config=stages("stages: {sft: 3}"),
    ),
    Case(
        "stage is text on the command line",
        ("command line: stages.sft='quick' must be a section",),
        "--stages.sft quick",
    ),
    Case(
        "unknown kind",
        ("command line: stages.sft.kind='sfft' is unknown; did you mean sft?",),
        "--sft.kind sfft",
    ),
    Case(
        "kind like no other",
        ("run.yaml: stages.warm.kind='zebra' is unknown; use one of pretrain, import, sft",),
        config=stages("stages: {warm: {kind: zebra}}"),
    ),
    Case(
        "kind is a number",
        ("stages.warm.kind=3 is unknown", "use one of"),
        config=stages("stages: {warm: {kind: 3}}"),
    ),
    Case(
        "kind is a list",
        ("stages.warm.kind=['sft'] is unknown", "sft"),
        config=stages("stages: {warm: {kind: [sft]}}"),
    ),
    Case(
        "kind is null",
        ("stages.warm.kind=null is unknown", "use one of"),
        config=stages("stages: {warm: {kind: null}}"),
    ),
    Case(
        "kind missing",
        ("run.yaml: stages.mine is no kind of stage, and has no `kind`; use one of",),
        config=stages("stages: {mine: {start: tok}}"),
    ),
    Case(
        "kind missing in a name that is nearly one",
        ("stages.ppo2 is no kind of stage, and has no `kind`; did you mean ppo?",),
        config=stages("stages: {ppo2: {}}"),
    ),
    Case(
        "key of another kind",
        ("run.yaml: stages.sft.iterations=3 is unknown", "the keys of stages.sft are"),
        config=stages("stages: {sft: {iterations: 3}}"),
    ),
    Case(
        "misspelt key of a stage",
        ("stages.warm.lenght=3 is unknown; did you mean stages.warm.length?",),
        config=stages("stages: {warm: {kind: sft, lenght: 3}}"),
    ),
    Case(
        "stage that is not in the config",
        (
            "command line: --dpo is for a stage dpo, and the config has none",
            "add stages: {dpo: {...}}",
        ),
        "--dpo.beta 0.1",
    ),
    Case(
        "name with a slash",
        (
            "run.yaml: stages.a/b cannot be the name of a stage",
            "use at most 100 letters, digits, _ and -",
        ),
        config=stages("stages: {a/b: {kind: sft}}"),
    ),
    Case(
        "name with a space",
        ("stages.a b cannot be the name of a stage",),
        config=stages("stages: {a b: {kind: sft}}"),
    ),
    Case(
        "name with a dot",
        ("stages..hidden cannot be the name of a stage",),
        config=stages("stages: {.hidden: {kind: sft}}"),
    ),
    Case(
        "name without letters",
        ("stages.'' cannot be the name of a stage",),
        config=stages('stages: {"": {kind: sft}}'),
    ),
    Case(
        "name with an umlaut",
        ("cannot be the name of a stage", "letters, digits"),
        config=stages("stages: {\u00e4: {kind: sft}}"),
    ),
    Case(
        "name of 300 letters",
        ("cannot be the name of a stage", "at most"),
        config=stages(f"stages: {{{'a' * 300}: {{kind: sft}}}}"),
    ),
    *[
        Case(
            f"name {name}",
            (
                f"stages.{name} cannot be the name of a stage",
                "none of base, data, tokenizer, compiled",
            ),
            config=stages(f"stages: {{{name}: {{kind: sft}}}}"),
        )
        for name in ("base", "data", "tokenizer", "compiled")
    ],
    *[
        Case(
            f"name {name} of a key of the run",
            (f"stages.{name} cannot be the name of a stage",),
            config=stages(f"stages: {{{name}: {{kind: sft}}}}"),
        )
        for name in ("out", "seed", "model", "mesh", "-x")
    ],
    Case(
        "constant of a kind as a key",
        ("stages.sft.whole=true is unknown; the keys of stages.sft are kind, seed",),
        config=stages("stages: {sft: {whole: true}}"),
    ),
    Case(
        "stages with nothing in it, and a base",
        ("stages=null must be a section of names",),
        config=stages("stages:\nbase: tok"),
    ),
    Case(
        "no rankings",
        ("stages.dpo.rankings=[] names none; use data",),
        "--stages.dpo.kind dpo --stages.dpo.start sft --stages.dpo.rankings []",
    ),
    # what stages use
    Case(
        "start misspelt",
        ("stages.ppo.start=selct is no stage of this run", "did you mean select?"),
        "--ppo.start selct",
    ),
    Case(
        "start like no other",
        (
            "stages.ppo.start=zebra is no stage of this run, no RUN:STAGE, and no model folder or"
            " OWNER/NAME",
            "the stages are pretrain, sft",
        ),
        "--ppo.start zebra",
    ),
    Case(
        "start of 300 letters",
        ("stages.ppo.start=aaa", "is no stage of this run"),
        f"--ppo.start {'a' * 300}",
    ),
    Case(
        "start left out",
        ("stages.ppo.start=select is no stage of this run", "the stages are pretrain, sft"),
        "--select null",
    ),
    Case(
        "start is a run",
        ("stages.ppo.start=runs/b is a run; name one of its stages: runs/b:STAGE",),
        "--ppo.start runs/b",
        files={"runs/b/config.yaml": b"{}"},
    ),
    Case(
        "base is a run",
        ("base=runs/b is a run; name one of its stages: runs/b:STAGE",),
        "--base runs/b",
        files={"runs/b/config.yaml": b"{}"},
    ),
    Case(
        "start leaves findings",
        (
            "stages.ppo.start=evaluate leaves only findings, and a policy is needed; use pretrain,"
            " sft, select",
        ),
        "--ppo.start evaluate --evaluate.models [base,select] --evaluate.baseline null",
    ),
    Case(
        "policy from a reward model",
        ("stages.ppo.start=reward leaves a reward model, and a policy is needed",),
        "--ppo.start reward",
    ),
    Case(
        "reward is a policy",
        ("stages.ppo.reward=sft leaves a policy, and a reward model is needed; use reward",),
        "--ppo.reward sft",
    ),
    Case(
        "rankings are a policy",
        ("stages.reward.rankings=sft leaves a policy, and rankings is needed; use data",),
        "--reward.rankings sft",
    ),
    Case(
        "a reward model to evaluate",
        ("stages.evaluate.models.reward=reward leaves a reward model, and a policy is needed",),
        "--evaluate.models [select,reward]",
    ),
    Case(
        "circle",
        ("is made from itself: sft <- ppo <- select <- sft", "change one"),
        "--sft.start ppo",
    ),
    Case(
        "start is the stage itself",
        ("stages.sft is made from itself: sft <- sft",),
        "--sft.start sft",
    ),
    Case("circle through base", ("stages.sft is made from itself: sft <- sft",), "--base sft"),
    Case(
        "two readings",
        ("select is a stage of this run and a model folder; write ./select for the folder",),
        files={"select/config.json": b"{}"},
    ),
    Case("base names itself", ("base=base names itself; name a stage or a model",), "--base base"),
    Case(
        "no base",
        ("stages.sft.start=base, and this run has no base; set `base`", "or add a stage pretrain"),
        "--pretrain null",
    ),
    Case(
        "base misspelt",
        ("base=pretrian is no stage of this run", "did you mean pretrain?"),
        "--base pretrian",
    ),
    Case(
        "epochs of no SFT",
        ("stages.select.start=pretrain must be a stage of kind sft of this run",),
        "--select.start pretrain",
    ),
    Case("nobody ranks", ("stages.compare", "ranker", "people"), config=compared),
    Case(
        "two who rank",
        ("section stages.compare: ranker and people both rank; remove one",),
        "--compare.ranker reward --compare.people.store labels.db",
        config=compared,
    ),
    Case(
        "ranker is a policy",
        ("stages.compare.ranker=sft leaves a policy, and a reward model is needed",),
        "--compare.ranker sft",
        config=compared,
    ),
    Case(
        "previous is a reward model",
        ("stages.compare.previous=reward leaves a reward model, and rankings is needed",),
        "--compare.previous reward",
        config=compared,
    ),
    Case(
        "shares beyond 1",
        ("section stages.compare: models has shares of 1.2 in all",),
        '--compare.models {"pretrain":0.6,"select":0.6}',
        config=compared,
    ),
    Case(
        "first epoch of no SFT",
        ("stages.compare.first_epoch_share=0.2 needs a start of kind sft", "set it to 0"),
        "--compare.ranker reward --compare.start pretrain --compare.first_epoch_share 0.2",
        config=compared,
    ),
    Case(
        "no models to evaluate",
        ("section stages.evaluate: models=[] must name at least one policy",),
        "--evaluate.models []",
    ),
    Case(
        "a model twice",
        ("section stages.evaluate: models=['select', 'select'] names one twice",),
        "--evaluate.models [select,select]",
    ),
    Case(
        "baseline is not among the models",
        ("section stages.evaluate: baseline=sft must be one of models",),
        "--evaluate.baseline sft",
    ),
    Case(
        "best of another n",
        ("section stages.evaluate: chosen_best_of=3 must be one of",),
        "--evaluate.chosen_best_of 3",
    ),
    Case(
        "data of a stage",
        ("nowhere.jsonl: no such file", "correct the path"),
        "--sft.data.demonstrations [nowhere.jsonl]",
        check=False,
    ),
    Case(
        "unknown data of a stage",
        ("stages.sft.data.demos=['demos.jsonl'] is unknown", "the keys of stages.sft.data are"),
        "--sft.data.demos [demos.jsonl]",
    ),
    Case(
        "no rankings in the world",
        ("stages.reward.rankings=data, and the data has no rankings", "rankings: compare"),
        config=in_the_world,
    ),
    Case(
        "adapters and frozen layers",
        ("lora freezes all layers already; remove frozen_layers, or lora",),
        "--lora.rank 2 --frozen_layers 1 --model.layers 2",
    ),
    Case(
        "all layers frozen",
        ("frozen_layers=1 must be at least 0 and less than model.layers=1",),
        "--frozen_layers 1",
    ),
    # rounds
    Case(
        "rounds without samples",
        ("rounds.count=2 needs a stage of kind compare", "add one, or remove rounds"),
        "--rounds.count 2",
    ),
    Case(
        "share of no policy",
        (
            "rounds.shares.sft is no policy of this config that learns from rankings; use select,"
            " ppo",
        ),
        "--rounds.shares.sft 0.5 --compare.ranker reward2",
        config=rounds,
    ),
    Case(
        "a stage called as a round",
        ("stages.round_2 has the name of the folder of round 2", "another name"),
        "--stages.round_2.kind sft --compare.ranker reward2",
        config=rounds,
    ),
    # spellings of before
    *[
        Case(
            f"old {key}",
            (f"run.yaml: {key} has another spelling now: {fix}",),
            config=lambda text, key=key: text + f"{key}: {{}}\n",
        )
        for key, fix in OLD_KEYS.items()
        if "." not in key
    ],
    *[
        Case(
            f"old section {key}",
            (f"run.yaml: {key} has another spelling now", f"stages: {{{key}: {{...}}}}"),
            config=lambda text, key=key: text + f"{key}: {{}}\n",
        )
        for key in ("pretrain", "sft", "compare", "reward", "cross_validation", "ppo")
    ],
    Case(
        "old files on the command line",
        ("command line: files has another spelling now: it is called data now",),
        "--files.texts [texts.jsonl]",
    ),
    Case(
        "old judge of rounds",
        ("command line: rounds.judge has another spelling now: it is called ranker now",),
        "--rounds.judge reward",
    ),
    *[
        Case(
            f"old {kind}.{key}",
            (f"run.yaml: stages.x.{key} has another spelling now: {fix}",),
            config=old_key(kind, key),
        )
        for kind, keys in OLD_STAGE_KEYS.items()
        for key, fix in keys.items()
    ],
    # data
    Case(
        "no such file",
        ("nowhere.jsonl: no such file", "correct the path"),
        "--data.prompts [nowhere.jsonl]",
        check=False,
    ),
    Case(
        "a name too long for a file",
        ("cannot be read (File name too long)", "correct the path"),
        f"--data.prompts [{'a' * 300}.jsonl]",
    ),
    Case(
        "a pipe",
        ("prompts.jsonl: is neither file nor folder", "write its contents to a file"),
        prepare=pipe("prompts.jsonl"),
    ),
    Case(
        "a device",
        ("/dev/null: is neither file nor folder", "write its contents to a file"),
        "--data.prompts [/dev/null]",
    ),
    Case(
        "a folder without data",
        ("empty: no data in it", "give files with one of .jsonl"),
        "--data.prompts [empty]",
        prepare=lambda place: (place / "empty").mkdir(),
    ),
    Case(
        "bad JSON",
        ("demos.jsonl:2:", "'{\"prompt\":'", "one complete JSON object"),
        files={"demos.jsonl": b'{"prompt":"a","completion":"b"}\n{"prompt":\n'},
    ),
    Case(
        "empty file", ("prompts.jsonl: no records", "at least one"), files={"prompts.jsonl": b"\n"}
    ),
    Case(
        "field missing",
        ("demos.jsonl:2: completion=null is missing", "add completion"),
        files={"demos.jsonl": demo(prompt="a")},
    ),
    Case(
        "prompt is null",
        ("prompts.jsonl:13: prompt=null is null", "fill it in"),
        files=prompts({"prompt": None}),
    ),
    Case(
        "completion is null",
        ("demos.jsonl:2: completion=null is null", "drop the record"),
        files={"demos.jsonl": demo(prompt="a", completion=None)},
    ),
    Case("ranks are null", ("ranks.jsonl:5: ranks=null is null", "fill it in"), files=ranks(None)),
    Case(
        "one completion is null",
        ("ranks.jsonl:5: completions[1]=null is null", "fill it in"),
        files=ranks([1, 2], ["b", None]),
    ),
    Case(
        "text is null",
        ("texts.jsonl:1: text=null is null", "fill it in"),
        files={"texts.jsonl": [{"text": None}]},
    ),
    Case(
        "message without content",
        (
            "prompts.jsonl:13: prompt[0].content=null is null",
            "fill it in",
        ),
        files=prompts([{"role": "user", "content": None}]),
    ),
    Case(
        "blank prompt",
        ("prompts.jsonl:13: prompt=' \\n\\t' is empty", "fill it in"),
        files=prompts(" \n\t"),
    ),
    Case(
        "empty completion",
        ("demos.jsonl:2: completion='' is empty", "fill it in"),
        files={"demos.jsonl": demo(prompt="a", completion="")},
    ),
    Case(
        "id twice",
        ("prompts.jsonl:14: id='x' is that of prompts.jsonl:13 too", "an id of its own"),
        files=prompts({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}),
    ),
    Case(
        "ended of another length",
        ("ranks.jsonl:1: ended=[True] has 1 entries for 3 completions", "one entry for each"),
        files={"ranks.jsonl": [{**userfiles.DATA["ranks.jsonl"][0], "ended": [True]}]},
    ),
    Case(
        "ended is no bool",
        ("ranks.jsonl:1: ended=[0, 1, 1] must hold true and false", "write false"),
        files={"ranks.jsonl": [{**userfiles.DATA["ranks.jsonl"][0], "ended": [0, 1, 1]}]},
    ),
    Case(
        "prompt is a whole conversation",
        ("prompts.jsonl:13: prompt=[", "asks for a reply to a reply", "role user"),
        files=prompts(chat("user a", "assistant b")),
    ),
    Case(
        "unknown role",
        (
            "prompts.jsonl:13: prompt=[",
            "the role wizard needs a chat template; use user, assistant, system",
        ),
        files=prompts(chat("wizard a")),
    ),
    Case(
        "chat template fails",
        (
            "prompts.jsonl:13: prompt=[",
            "the chat template refuses it (TemplateError('no wizards'))",
            "correct the roles",
        ),
        files=prompts(chat("wizard a")),
        prepare=template("{{ raise_exception('no wizards') }}"),
    ),
    Case(
        "chat template is broken",
        ("prompts.jsonl:13: prompt=[", "TemplateSyntaxError", "chat_template of the tokenizer"),
        files=prompts(chat("user a")),
        prepare=template("{% if %}"),
    ),
    Case(
        "chat template says nothing",
        ("prompts.jsonl:13: prompt=[", "makes no token", "correct chat_template"),
        files=prompts(chat("user a")),
        prepare=template("{# #}"),
    ),
    Case(
        "field of another type",
        ("demos.jsonl:2: completion=7 must be text", "JSON string"),
        files={"demos.jsonl": demo(prompt="a", completion=7)},
    ),
    Case("not UTF-8", ("demos.jsonl:1:", "iconv"), files={"demos.jsonl": b'{"prompt": "\xff"}'}),
    Case(
        "UTF-16",
        ("demos.jsonl:1:", "not UTF-8 at byte 1", "iconv -f utf-16"),
        files={"demos.jsonl": '{"prompt": "a"}'.encode("utf-16")},
    ),
    Case(
        "NUL in a text",
        (
            r"prompts.jsonl:13: prompt='a\x00 b' has the control character '\x00' at character 1",
            "remove it",
        ),
        files=prompts("a\0 b"),
    ),
    Case(
        "escape sequence in a text",
        (r"demos.jsonl:2: completion='\x1b[1m' has the control character '\x1b'", "remove it"),
        files={"demos.jsonl": demo(prompt="a", completion="\x1b[1m")},
    ),
    Case(
        "NUL behind the last line",
        (r"prompts.jsonl:2: line='\x00\x00", "is not JSON"),
        files={"prompts.jsonl": b'{"prompt": "a"}\n' + bytes(4096)},
    ),
    Case(
        "half a surrogate pair",
        (r"prompts.jsonl:13: prompt='a \ud83d' has half a surrogate pair at character 2", "UTF-8"),
        files=prompts("a \ud83d"),
    ),
    Case(
        "half a surrogate pair in another field",
        (r"prompts.jsonl:13: use_case='\ud83d' has half a surrogate", "UTF-8"),
        files=prompts({"prompt": "a", "use_case": "\ud83d"}),
    ),
    Case(
        "half a surrogate pair in a name",
        (r"prompts.jsonl:13: field='\ud83d' has half a surrogate", "UTF-8"),
        files=prompts({"prompt": "a", "\ud83d": 1}),
    ),
    Case(
        "NaN",
        ("prompts.jsonl:13: score=nan is no number of JSON", "write null"),
        files=prompts({"prompt": "a", "score": float("nan")}),
    ),
    Case(
        "name twice in an object",
        ("prompts.jsonl:1: field='prompt' stands twice", "remove one"),
        files={"prompts.jsonl": b'{"prompt": "a", "prompt": "b"}'},
    ),
    Case(
        "deep JSON",
        (
            "prompts.jsonl:1: line='[[[[",
            "is not JSON (maximum recursion",
            "one complete JSON object",
        ),
        files={"prompts.jsonl": b"[" * 10**5},
    ),
    Case(
        "rather deep JSON",
        ("prompts.jsonl:13: 'x.x.x.", "nested deeper than 200 levels", "write it flat"),
        files=prompts(
            {"prompt": "a", "x": functools.reduce(lambda inner, _: {"x": inner}, range(250), 1)}
        ),
    ),
    Case(
        "number of 5000 digits",
        ("prompts.jsonl:1: line='9999", "is not JSON", "one complete JSON object"),
        files={"prompts.jsonl": b"9" * 5000},
    ),
    Case(
        "10 MB that are no JSON",
        ("prompts.jsonl:1: line='aaaa", "is not JSON"),
        files={"prompts.jsonl": b"a" * 10**7},
    ),
    Case(
        "10 MB in the name of a field",
        ("prompts.jsonl:1: prompt=null is missing; there are ['aaaa", "aaa...; add prompt"),
        files={"prompts.jsonl": b'{"' + b"a" * 10**7 + b'": 1}'},
    ),
    Case(
        "1 MB in a prompt",
        ("prompts.jsonl:13: prompt='a a", "has 500001 tokens", "max_prompt=6", "set on_long"),
        files=prompts("a " * 500_000),
    ),
    Case(
        "broken gzip",
        ("texts.jsonl.gz: broken gzip", "again"),
        "--data.texts [texts.jsonl.gz]",
        files={"texts.jsonl.gz": gzip.compress(b"abc" * 99, mtime=0)[:-9]},
    ),
    Case(
        "unknown suffix",
        ("data.docx", "'.docx' is unknown", "use one of .jsonl"),
        "--data.texts [data.docx]",
        files={"data.docx": b"a"},
    ),
    Case(
        "ranks of another length",
        ("ranks.jsonl:5: ranks=[1, 2] has 2 ranks for 3", "one rank for each"),
        files=ranks([1, 2]),
    ),
    Case(
        "all tied",
        ("ranks.jsonl:5: ranks=[1, 1, 1] is one tie", "drop the record"),
        files=ranks([1, 1, 1]),
    ),
    Case(
        "one text, two ranks",
        (
            "ranks.jsonl:5: completions[2]='b' equals completions[0]",
            "3 and 1",
            "one rank",
        ),
        files=ranks([1, 2, 3], "bcb"),
    ),
    Case("K = 1", ("ranks.jsonl:5: completions=['b'] has K = 1", "2 to 9"), files=ranks([1], "b")),
    Case(
        "K = 10",
        ("ranks.jsonl:5:", "K = 10", "at most 9"),
        files=ranks(list(range(1, 11)), "abcdefghij"),
    ),
    Case(
        "rank of 100 bits",
        ("ranks.jsonl:5: ranks=[1, 2, 1267", "integers from 1 to 2147483647"),
        files=ranks([1, 2, 2**100]),
    ),
    Case(
        "rank true",
        ("ranks.jsonl:5: ranks=[True, 2, 3]", "integers from 1"),
        files=ranks([True, 2, 3]),
    ),
    Case(
        "rank 1.5",
        ("ranks.jsonl:5: ranks=[1, 1.5, 2]", "integers from 1"),
        files=ranks([1, 1.5, 2]),
    ),
    Case("rank 0", ("ranks.jsonl:5: ranks=[0, 1, 2]", "integers from 1"), files=ranks([0, 1, 2])),
    Case(
        "fewer prompts than a batch",
        (
            "ppo.batch=64, but of 12 records in data.prompts 11 are left to learn from",
            "data.held_out=0.05",
            "add prompts, or set ppo.batch to 8 and ppo.minibatch to 4",
        ),
        "--ppo.batch 64",
    ),
    Case(
        "fewer prompts than a batch for being long",
        ("ppo.batch=8, but of 2 records in data.prompts 1 are left",),
        "--text.on_long drop",
        files={"prompts.jsonl": [{"prompt": "a"}, {"prompt": "b"}, *[{"prompt": "c " * 10}] * 9]},
    ),
    Case(
        "one prompt",
        (
            "data.prompts=['prompts.jsonl']: of 1 records none is left to measure with",
            "add prompts",
        ),
        "--stages pretrain,sft,reward,select",
        files={"prompts.jsonl": [{"prompt": "a"}]},
    ),
    Case(
        "demonstrations of held-out prompts",
        (
            "data.demonstrations=['demos.jsonl']: of 4 records none is left to learn from",
            "add some",
        ),
        files={"demos.jsonl": [{"prompt": "b f", "completion": "c d"}] * 4},
    ),
    Case(
        "long completion",
        (
            "demos.jsonl:2: prompt='a': its completion has 11 tokens",
            "max_completion=6",
            "set on_long",
        ),
        files={"demos.jsonl": demo(prompt="a", completion="b " * 10)},
    ),
    Case(
        "long prompt",
        (
            "prompts.jsonl:1: ",
            "prompt='a a a",
            "11 tokens",
            "max_prompt=6",
            "set on_long to drop, truncate_left or truncate_right",
        ),
        files={"prompts.jsonl": [{"prompt": "a " * 10}]},
    ),
    Case(
        "long prompts dropped, none left",
        ("prompts.jsonl: all 1 records", "max_prompt=6", "raise them"),
        "--text.on_long drop",
        files={"prompts.jsonl": [{"prompt": "a " * 10}]},
    ),
    Case(
        "unknown rule",
        ("text.on_long='middle'", "error, drop, truncate_left, truncate_right"),
        "--text.on_long middle",
    ),
    Case(
        "demonstration longer than a row",
        ("sft.length=4 is too short", "has 6 tokens"),
        "--sft.length 4",
    ),
    Case(
        "template without prompt",
        ("section text", "template='task'", "exactly once"),
        "--text.template task",
    ),
    Case(
        "weights of messages, and a loss on all",
        ("stages.sft.loss_on_prompt=true", "1 demonstrations have replies of weight 0", "false"),
        "--sft.loss_on_prompt true --text.max_prompt 10",
        files={
            "demos.jsonl": [
                *userfiles.DATA["demos.jsonl"],
                {
                    "prompt": [
                        *chat("user a"),
                        chat("assistant b")[0] | {"weight": 0},
                        *chat("user c"),
                    ],
                    "completion": "d",
                },
            ]
        },
    ),
    Case(
        "column that is not there",
        (
            "demos.jsonl:1: data.columns={'prompt': 'question'} names no column",
            "['completion', 'x']",
        ),
        '--data.columns {"prompt":"question"}',
        files={"demos.jsonl": [{"x": "a", "completion": "b"}]},
    ),
    Case(
        "column that no record needs",
        (
            "data.columns={labeler_id: 'worker'}: no record has the column worker",
            "remove the entry",
        ),
        '--data.columns {"labeler_id":"worker"}',
    ),
    Case(
        "field to leave out that is not there",
        ("data.columns={tools: null}: no record has the column tools", "remove the entry"),
        '--data.columns {"tools":null}',
    ),
    Case(
        "special token in a document",
        ("texts.jsonl:2: text='a <eos>' holds the eos_token", "remove it"),
        files={"texts.jsonl": [{"text": "a"}, {"text": "a <eos>"}]},
    ),
    Case(
        "megabyte in the name of a field",
        ("prompts.jsonl:13: 'aaaa", "=nan is no number"),
        files=prompts({"prompt": "a", "a" * 10**6: float("nan")}),
    ),
    Case(
        "special token in a text",
        ("prompts.jsonl:1: ", "<eos>", "remove it"),
        files={"prompts.jsonl": [{"prompt": "a <eos>"}]},
    ),
    # tokenizer
    Case(
        "no tokenizer",
        ("nowhere: no such model folder", "OWNER/NAME"),
        "--data.tokenizer nowhere",
        check=False,
    ),
    Case(
        "broken tokenizer",
        ("broken: not a tokenizer folder", "save_pretrained"),
        "--data.tokenizer broken",
        files={"broken/tokenizer.json": b"{"},
    ),
    Case(
        "no EOS",
        ("tok: eos_token=None", "set data.eos_token to one of ['<pad>'"),
        tokenizer={"eos_token": None},
    ),
    Case(
        "no PAD",
        ("tok: pad_token=None", "data.pad_token=...: a token of the vocabulary", "'<pad>'"),
        tokenizer={"pad_token": None},
    ),
    Case(
        "no UNK",
        ("prompts.jsonl:13: text='zebra': the tokenizer fails on it", "Missing [UNK]", "unk_token"),
        files=prompts("zebra"),
        prepare=lambda place: change_json(
            place / "tok/tokenizer.json", lambda core: core["model"].update(unk_token="[UNK]")
        ),
    ),
    Case(
        "PAD is EOS",
        ("tok: pad_token='<eos>' is also the eos_token", "its own token"),
        tokenizer={"pad_token": "<eos>"},
    ),
    Case(
        "EOS of another tokenizer",
        ("tok: data.eos_token='</s>' is not in the vocabulary", "use one of ['<pad>'"),
        "--data.eos_token </s>",
    ),
    Case(
        "PAD beyond the rows",
        (
            "pad_token='<new>' has id 17",
            "model.vocab_size=17 makes 17 rows",
            "model.vocab_multiple=64",
        ),
        "--data.pad_token <new> --model.vocab_size 17",
    ),
    Case(
        "vocabulary too small",
        ("model.vocab_size=16 is smaller than the tokenizer's 17", "at least 17"),
        "--model.vocab_size 16",
    ),
    # folders and checkpoints
    Case(
        "stage made from something else",
        (
            "the stage pretrain in runs/a was made from something else",
            "settings.steps: 5 then, 1 now",
            "--redo pretrain",
            "another out",
        ),
        prepare=finished("runs/a", "pretrain", {"settings.steps": 5}),
    ),
    Case(
        "note of a stage is broken",
        ("runs/a/pretrain/done.json is damaged", "restore it"),
        files={"runs/a/config.yaml": b"{}", "runs/a/pretrain/done.json": b"{"},
    ),
    Case(
        "folder of something else",
        ("runs/a is not empty", "choose another folder"),
        files={"runs/a/thesis.tex": b"x"},
    ),
    Case(
        "a name too long for a folder",
        ("aaa cannot be a run folder (File name too long)", "choose another"),
        f"--out {'a' * 300}",
    ),
    Case(
        "stage of another run that is not there",
        ("stages.ppo.reward=runs/b:reward: runs/b has not finished a stage reward", "run it"),
        "--ppo.reward runs/b:reward",
    ),
    Case(
        "base that is not there",
        ("runs/b has not finished a stage pretrain", "run it"),
        "--base runs/b:pretrain",
    ),
    Case(
        "model to compare with that is not there",
        ("stages.evaluate.models.x=runs/b:sft: runs/b has not finished a stage sft", "run it"),
        '--evaluate.models {"select":"select","x":"runs/b:sft"}',
    ),
    Case(
        "policy as a reward model",
        ("stages.ppo.reward=runs/b:sft leaves a policy", "a reward model is needed; use reward"),
        "--ppo.reward runs/b:sft",
        prepare=finished("runs/b", "sft"),
    ),
    Case(
        "base of another shape",
        ("model.layers=1, but runs/b:sft has 3", "remove it"),
        "--base runs/b:sft",
        prepare=model_of_another("runs/b", "sft", layers=3),
    ),
    Case(
        "reward model of another tokenizer",
        (
            "stages.ppo.reward=runs/b:reward was made with the tokenizer 0123456789abcdef",
            "put the tokenizer back",
        ),
        "--ppo.reward runs/b:reward",
        prepare=model_of_another("runs/b", "reward"),
    ),
    Case(
        "other model of another tokenizer",
        (
            "stages.evaluate.models.x=runs/b:sft was made with the tokenizer 0123456789abcdef",
            "put the tokenizer back",
        ),
        '--evaluate.models {"select":"select","x":"runs/b:sft"}',
        prepare=model_of_another("runs/b", "sft"),
    ),
    Case(
        "tokenizer changed since",
        (
            "the stage pretrain in runs/a was made from something else",
            'tokenizer: "0123456789abcdef" then, ',
            "--redo pretrain",
        ),
        prepare=made("runs/a", "pretrain", tokenizer="0123456789abcdef"),
    ),
    Case(
        "data changed since",
        (
            "the stage pretrain in runs/a was made from something else",
            "data.texts: ",
            "--redo pretrain",
        ),
        prepare=made("runs/a", "pretrain", **{"data.texts": "sha256:0123"}),
    ),
    Case(
        "out in a bucket",
        ("out=gs://bucket/run is no folder on this machine", "mount"),
        "--out gs://bucket/run",
    ),
    Case(
        "out in a bucket, with one slash",
        ("out=s3://bucket/run is no folder on this machine", "mount"),
        "--out s3:/bucket/run",
    ),
    Case("folder is a file", ("runs/a is a file", "choose another folder"), files={"runs/a": b"x"}),
    Case("report of no run", ("tok is no run folder", "config.yaml"), args="COMMAND report tok"),
    Case(
        "checkpoint of another shape",
        (
            "ckpt/3: params.w is float32[3] in the checkpoint but float32[4] here",
            "model and optimizer config",
        ),
        run=restore((4,), "one"),
    ),
    Case(
        "checkpoint of another tokenizer",
        ("ckpt/3 was made with another tokenizer: one there, two now", "Use the same tokenizer"),
        run=restore((3,), "two"),
    ),
    Case(
        "no checkpoint",
        ("no checkpoint folder", "run the stage that makes it"),
        run=lambda place: restore_params(place / "nothing", {}),
    ),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "ckpt"
    state = TrainState(
        jnp.int32(3), {"w": jnp.zeros(3)}, (), None, jax.random.key(0), jnp.float32(0)
    )
    with Checkpoints(folder, fingerprints={"tokenizer": "one"}) as checkpoints:
        checkpoints.save(state)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return userfiles.make(tmp_path)


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case: Case, place, checkpoint, monkeypatch, capsys):
    (place / "run.yaml").write_text(case.config(userfiles.CONFIG), errors="surrogateescape")
    for name, content in case.files.items():
        userfiles.write(place / name, content)
    case.prepare(place)
    if case.tokenizer:
        wordtok.words(**case.tokenizer).save_pretrained(place / "tok")
    (place / "ckpt").symlink_to(checkpoint)

    def run(*_: object) -> None:
        if case.run is None:
            pytest.fail("the run began")
        case.run(place)

    monkeypatch.setattr("instruct_jax.chain.run.run", run)
    words = case.args.split()
    argv = words[1:] if words[:1] == ["COMMAND"] else ["run", "--config", "run.yaml", *words]
    before = snapshot(place)

    with Recompiles() as compilations:
        userfiles.refused(main, argv, case.message, capsys)
        if case.check and argv[0] == "run" and not case.run:
            userfiles.refused(main, ["check", *argv[1:]], case.message, capsys)
    assert snapshot(place) == before
    assert compilations.total == 0


ODD = {  # files, and what `check` shows
    "byte order mark, Windows line ends": (
        {
            "demos.jsonl": (
                b'\xef\xbb\xbf{"prompt": "a b", "completion": "c"}\r\n\r\n{"prompt": "a b",'
                b' "completion": "d"}'
            )
        },
        "2 demonstrations",
    ),
    "line separators": (
        {"demos.jsonl": '{"prompt": "a \u2028 b", "completion": "c\u2029 \x85 d\\t\\f"}'.encode()},
        "1 demonstrations",
    ),
    "10 MB in one line": ({"texts.jsonl": [{"text": "a " * 5_000_000}]}, "1 texts"),
    "nulls": (
        {
            "ranks.jsonl": (
                [
                    {
                        **userfiles.DATA["ranks.jsonl"][0],
                        "id": None,
                        "ended": None,
                        "likert": None,
                        "labeler_id": None,
                    }
                ]
                * 2
            )
        },
        "2 rankings",
    ),
    "what a model said": (
        {
            "ranks.jsonl": (
                [{**userfiles.DATA["ranks.jsonl"][0], "completions": ["\0 b", "\x1b", "b"]}] * 2
            )
        },
        "2 rankings",
    ),
    "columns of another name": (
        {
            "run.yaml": userfiles.CONFIG.replace(
                "  tokenizer: tok", "  tokenizer: tok\n  columns: {prompt: question, tools: null}"
            ).encode(),
            "demos.jsonl": [{"question": "a b", "completion": "c", "tools": "x"}] * 2,
        },
        "2 demonstrations",
    ),
    "one id of two labelers": (
        {
            "ranks.jsonl": [
                {**userfiles.DATA["ranks.jsonl"][0], "id": 1, "labeler_id": who} for who in "ab"
            ]
        },
        "2 rankings",
    ),
    "other fields": (
        {"demos.jsonl": demo(prompt="a b", completion="c", ended="no", ranks=None)},
        "2 demonstrations",
    ),
}


@pytest.mark.parametrize("files, shown", ODD.values(), ids=ODD)
def test_odd_input_is_read(files, shown, place, capsys):
    for name, content in files.items():
        userfiles.write(place / name, content)
    assert main(["check", "--config", "run.yaml"]) == 0
    assert shown in capsys.readouterr().out


def test_a_file_without_permission(place, monkeypatch, capsys):
    """Root may read everything, so the refusal is played."""

    def refuse(path: Path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    userfiles.refused(
        main,
        ["check", "--config", "run.yaml"],
        ("texts.jsonl: cannot be read (Permission denied)", "permissions"),
        capsys,
    )
    monkeypatch.setattr(Path, "read_text", refuse)
    userfiles.refused(
        main,
        ["check", "--config", "run.yaml"],
        ("run.yaml: cannot be read (Permission denied)", "permissions"),
        capsys,
    )
