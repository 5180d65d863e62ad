"""Every mistake of a user ends before any device work: exit code 2, one message with place, value and repair, nothing written."""

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import userfiles
from data import wordtok

from instruct_jax.cli import main
from instruct_jax.records import TrainState
from instruct_jax.runtime.checkpoints import Checkpoints, restore_params
from instruct_jax.runtime.metrics import Recompiles


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    message: tuple[str, ...]  # what it must hold: place, value, repair
    args: str = ""  # behind `run --config run.yaml`
    config: Callable[[str], str] = str  # changes the good config
    files: dict = dataclasses.field(default_factory=dict)  # file -> records, or bytes
    tokenizer: dict | None = None  # its special tokens
    run: Callable[[Path], None] | None = None  # in the place of the pipeline


def demo(**fields):
    return [{"prompt": "a b", "completion": "c d"}, fields]


def ranks(ranks, completions=("b", "c", "d")):
    return {"ranks.jsonl": [*userfiles.DATA["ranks.jsonl"], {"prompt": "a", "completions": list(completions), "ranks": ranks}]}


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


def restore(shape: tuple[int, ...], tokenizer: str) -> Callable[[Path], None]:
    def run(place: Path) -> None:
        restore_params(place / "ckpt", {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, fingerprints={"tokenizer": tokenizer})

    return run


CASES = [
    # keys
    Case("misspelt key", ("run.yaml: model.widht=16", "did you mean model.width?"), config=swap("width: 16", "widht: 16")),
    Case("misspelt section", ("run.yaml: modle={", "did you mean model?"), config=swap("model:", "modle:")),
    Case("misspelt override", ("command line: ppo.kl_coeff=0.1", "did you mean ppo.kl_coef?"), "--ppo.kl_coeff 0.1"),
    Case("key of another section", ("learning_rate=0.1", "did you mean pretrain.optimizer.learning_rate"), "--learning_rate 0.1"),
    Case("key like no other", ("mesh.zebra=1", "the keys of mesh are data, fsdp, tensor, context"), "--mesh.zebra 1"),
    Case("key twice", ("run.yaml:3: out stands twice", "remove one"), config=lambda text: text.replace("sample_batch: 8", "out: b")),
    Case("key missing", ("run.yaml: out is missing (text)", "add it"), config=swap("out: runs/a", "seed: 1")),
    Case("key of a section missing", ("files.tokenizer is missing", "add it"), config=swap("tokenizer: tok, ", "")),
    Case("verb misspelt", ("rnu", "run"), args="VERB rnu"),
    Case("no --config", ("--config",), args="VERB run"),
    Case("override without value", ("--seed has no value", "write --seed value"), "--seed"),
    Case("stray word", ("'quick' is not expected", "write --dotted.key value"), "quick"),
    # types
    Case("text for a whole number", ("run.yaml: model.width='wide'", "must be a whole number"), config=swap("width: 16", "width: wide")),
    Case("fraction for a whole number", ("model.layers=1.5", "must be a whole number"), "--model.layers 1.5"),
    Case("bool for a whole number", ("model.layers=True", "must be a whole number"), "--model.layers true"),
    Case("text for a number", ("reward.optimizer.learning_rate='fast'", "must be a number"), "--reward.optimizer.learning_rate fast"),
    Case("nan", ("ppo.kl_coef=nan", "must be a number"), "--ppo.kl_coef .nan"),
    Case("number for a bool", ("model.bias=2", "must be true or false"), "--model.bias 2"),
    Case("unknown choice", ("model.positions='sinus'", "learned, rotary"), "--model.positions sinus"),
    Case("null", ("model.heads=None", "must be a whole number"), "--model.heads null"),
    Case("number for a section", ("mesh=8", "must be a section"), "--mesh 8"),
    Case("text for a list", ("files.texts='texts.jsonl'", "must be a list, each entry text"), "--files.texts texts.jsonl"),
    # the file itself
    Case("no YAML", ("run.yaml:2: not YAML", "correct that line"), config=lambda text: "out: a\n\tseed: 1\n"),
    Case("empty config", ("run.yaml: holds no keys", "key: value"), config=lambda text: ""),
    Case("no such config", ("nowhere.yaml: no such config file", "correct --config"), args="VERB run --config nowhere.yaml"),
    # impossible combinations
    Case("minibatch", ("section ppo", "ppo.batch=8", "multiple of ppo.minibatch=3"), "--ppo.minibatch 3"),
    Case("micro-batches", ("sft.micro_batches=3 must divide sft.batch=4",), "--sft.micro_batches 3"),
    Case("context too short", ("text.max_prompt=6", "model.context=11", "lower one of them or raise model.context"), "--model.context 11"),
    Case("row too long", ("sft.length=17 exceeds model.context=16", "raise model.context"), "--sft.length 17"),
    Case("ptx row too long", ("ppo.ptx_length=128 exceeds model.context=16", "lower it"), "--ppo.ptx_coef 1 --ppo.ptx_batch 4"),
    Case("mesh too large", ("needs 99 devices, there are 8", "make the mesh smaller"), "--mesh.data 99"),
    Case("mesh does not fit", ("8 devices are not a multiple of 3", "change the mesh"), "--mesh.data -1 --mesh.fsdp 3 --model.width 24"),
    Case("mesh and batch", ("pretrain.batch / pretrain.micro_batches = 4 must be a multiple", "data 8 * fsdp 1 = 8", "or the mesh"),
         "--mesh.data 8"),
    Case("mesh and vocabulary", ("mesh.tensor=8 does not divide model.vocab_size=20", "set model.vocab_multiple=8"),
         "--mesh.tensor 8 --model.heads 8"),
    Case("logical axis", ("mesh.training.width is no axis of our arrays", "use one of batch, sequence"), "--mesh.training.width [data]"),
    Case("mesh axis of a rule", ("mesh.sampling.embed=['model']", "data, fsdp, tensor, context"), "--mesh.sampling.embed [model]"),
    Case("mesh and heads", ("mesh.tensor=4 does not divide model.heads=2", "change one"), "--mesh.tensor 4"),
    Case("heads and width", ("model.width=16", "model.heads=3", "set model.head_width"), "--model.heads 3"),
    Case("two tasks", ("exactly one of world", "files"), "--world.demonstrations 8"),
    Case("no task", ("exactly one of world", "files"), "--files null"),
    Case("K", ("min_completions=1", "2 <="), "--compare.min_completions 1"),
    Case("greedy PPO", ("temperature=0.0", "use temperature > 0"), "--ppo.sampler.temperature 0"),
    Case("half of ptx", ("ppo.ptx_coef=1.0", "ppo.ptx_batch=0", "both"), "--ppo.ptx_coef 1"),
    Case("ptx without texts", ("files.texts=[]", "stage ppo", "name files"),
         "--ppo.ptx_coef 1 --ppo.ptx_batch 4 --ppo.ptx_length 16 --files.texts [] --stages ppo"),
    Case("no rankings", ("files.rankings=[]", "stage compare", "leave compare out of --stages"), "--files.rankings []"),
    Case("pretrain mix of no row", ("sft.pretrain_mix=0.01 makes 0 of the 4 rows", "raise sft.batch"), "--sft.pretrain_mix 0.01"),
    Case("vocabularies", ("reward_model.vocab_size=50257", "model.vocab_size=20", "make them equal"), "--reward_model.width 768"),
    Case("context of the reward model", ("reward_model.context=8", "raise it"), "--reward_model.context 8 --reward_model.vocab_size 20"),
    Case("critic from another shape", ("ppo.value_init=policy", "remove reward_model"),
         "--ppo.value_init policy --reward_model.vocab_size 20"),
    Case("unknown stage", ("--stages rewards", "did you mean reward?"), "--stages sft,rewards"),
    Case("stage without section", ("--stages ppo_ptx", "add it"), "--stages ppo_ptx"),
    # data
    Case("no such file", ("nowhere.jsonl: no such file", "correct the path"), "--files.prompts [nowhere.jsonl]"),
    Case("bad JSON", ("demos.jsonl:2:", "'{\"prompt\":'", "one complete JSON object"),
         files={"demos.jsonl": b'{"prompt":"a","completion":"b"}\n{"prompt":\n'}),
    Case("empty file", ("prompts.jsonl: no records", "at least one"), files={"prompts.jsonl": b"\n"}),
    Case("field missing", ("demos.jsonl:2: completion=None is missing", "add completion"), files={"demos.jsonl": demo(prompt="a")}),
    Case("field of another type", ("demos.jsonl:2: completion=7 must be text", "JSON string"),
         files={"demos.jsonl": demo(prompt="a", completion=7)}),
    Case("not UTF-8", ("demos.jsonl:1:", "iconv"), files={"demos.jsonl": b'{"prompt": "\xff"}'}),
    Case("broken gzip", ("texts.jsonl.gz: broken gzip", "again"), "--files.texts [texts.jsonl.gz]",
         files={"texts.jsonl.gz": gzip.compress(b"abc" * 99)[:-9]}),
    Case("unknown suffix", ("data.csv", "'.csv' is unknown", "use one of .jsonl"), "--files.texts [data.csv]", files={"data.csv": b"a"}),
    Case("ranks of another length", ("ranks.jsonl:5: ranks=[1, 2] has 2 ranks for 3", "one rank for each"), files=ranks([1, 2])),
    Case("all tied", ("ranks.jsonl:5: ranks=[1, 1, 1] is one tie", "drop the record"), files=ranks([1, 1, 1])),
    Case("K = 1", ("ranks.jsonl:5: completions=['b'] has K = 1", "2 to 9"), files=ranks([1], "b")),
    Case("K = 10", ("ranks.jsonl:5:", "K = 10", "at most 9"), files=ranks(list(range(1, 11)), "abcdefghij")),
    Case("rank 0", ("ranks.jsonl:5: ranks=[0, 1, 2]", "integers from 1"), files=ranks([0, 1, 2])),
    Case("long prompt", ("prompts.jsonl:1: ", "prompt='a a a", "11 tokens", "max_prompt=6",
                         "set on_long to drop, truncate_left or truncate_right"),
         files={"prompts.jsonl": [{"prompt": "a " * 10}]}),
    Case("long prompts dropped, none left", ("prompts.jsonl: all 1 records", "max_prompt=6", "raise them"), "--text.on_long drop",
         files={"prompts.jsonl": [{"prompt": "a " * 10}]}),
    Case("unknown rule", ("text.on_long='middle'", "error, drop, truncate_left, truncate_right"), "--text.on_long middle"),
    Case("demonstration longer than a row", ("sft.length=4 is too short", "has 6 tokens"), "--sft.length 4"),
    Case("template without prompt", ("section text", "template='task'", "exactly once"), "--text.template task"),
    Case("special token in a text", ("prompts.jsonl:1: ", "<eos>", "remove it"), files={"prompts.jsonl": [{"prompt": "a <eos>"}]}),
    # tokenizer
    Case("no tokenizer", ("nowhere: no such tokenizer folder", "tokenizer.json"), "--files.tokenizer nowhere"),
    Case("broken tokenizer", ("broken: not a tokenizer folder", "save_pretrained"), "--files.tokenizer broken",
         files={"broken/tokenizer.json": b"{"}),
    Case("no EOS", ("tok: eos_token=None", "set eos_token"), tokenizer={"eos_token": None}),
    Case("no PAD", ("tok: pad_token=None", "set pad_token"), tokenizer={"pad_token": None}),
    Case("PAD is EOS", ("tok: pad_token='<eos>' is also the eos_token", "its own token"), tokenizer={"pad_token": "<eos>"}),
    Case("vocabulary too small", ("model.vocab_size=16 is smaller than the tokenizer's 17", "at least 17"), "--model.vocab_size 16"),
    # folders and checkpoints
    Case("folder of another run", ("runs/a/config.yaml", "seed: 5 there, 0 now", "choose another run folder"),
         files={"runs/a/config.yaml": b"{out: runs/a, seed: 5}"}),
    Case("folder of something else", ("runs/a is not empty", "choose another folder"), files={"runs/a/thesis.tex": b"x"}),
    Case("folder is a file", ("runs/a is a file", "choose another folder"), files={"runs/a": b"x"}),
    Case("report of no run", ("tok is no run folder", "config.yaml"), args="VERB report tok"),
    Case("checkpoint of another shape",
         ("ckpt/3: params.w is float32[3] in the checkpoint but float32[4] here", "model and optimizer config"),
         run=restore((4,), "one")),
    Case("checkpoint of another tokenizer", ("ckpt/3 was made with another tokenizer: one there, two now", "Use the same tokenizer"),
         run=restore((3,), "two")),
    Case("no checkpoint", ("no checkpoint folder", "run the stage that makes it"), run=lambda place: restore_params(place / "nothing", {})),
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "ckpt"
    state = TrainState(jnp.int32(3), {"w": jnp.zeros(3)}, (), None, jax.random.key(0), jnp.float32(0))
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
    (place / "run.yaml").write_text(case.config(userfiles.CONFIG))
    for name, content in case.files.items():
        userfiles.write(place / name, content)
    if case.tokenizer:
        wordtok.words(**case.tokenizer).save_pretrained(place / "tok")
    (place / "ckpt").symlink_to(checkpoint)
    userfiles.fake_run(monkeypatch, lambda config, stages: case.run(place) if case.run else pytest.fail("the run began"))
    words = case.args.split()
    argv = words[1:] if words[:1] == ["VERB"] else ["run", "--config", "run.yaml", *words]
    before = snapshot(place)

    with Recompiles() as compilations:
        userfiles.refused(main, argv, case.message, capsys)
    assert snapshot(place) == before
    assert compilations.total == 0
