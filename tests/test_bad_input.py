"""Every mistake of a user ends before any device work: exit code 2, one message with place, value
and repair, nothing written.
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

from instruct_jax.chain.load import load_config
from instruct_jax.chain.settings import RunConfig
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


def stage_of_another(folder: str, tokenizer: str = "0123456789abcdef") -> Callable[[Path], object]:
    """A run folder with the same config, whose reward stage is done and was made with a tokenizer
    of this fingerprint.
    """

    def prepare(place: Path) -> None:
        (place / folder / "reward").mkdir(parents=True)
        (place / folder / "reward/done.json").write_text("{}")
        config = dataclasses.asdict(load_config(RunConfig, place / "run.yaml"))
        (place / folder / "config.yaml").write_text(yaml.safe_dump(config))
        metadata = place / folder / "reward/checkpoints/3/_CHECKPOINT_METADATA"  # of orbax
        userfiles.write(
            metadata, json.dumps({"custom_metadata": {"tokenizer": tokenizer}}).encode()
        )

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
    Case("key over several lines", ("run.yaml: 'a\\nb'=1 is unknown", "the keys of the file are"),
         config=lambda text: text + '"a\\nb": 1\n'),
    Case("stray word", ("'quick' is not expected", "write --dotted.key value"), "quick"),
    # types
    Case("text for a whole number", ("run.yaml: model.width='wide'", "must be a whole number"), config=swap("width: 16", "width: wide")),
    Case("fraction for a whole number", ("model.layers=1.5", "must be a whole number"), "--model.layers 1.5"),
    Case("bool for a whole number", ("model.layers=True", "must be a whole number"), "--model.layers true"),
    Case("text for a number", ("reward.optimizer.learning_rate='fast'", "must be a number"), "--reward.optimizer.learning_rate fast"),
    Case("nan", ("ppo.kl_coef=nan", "must be a number"), "--ppo.kl_coef .nan"),
    Case("whole number of 70 bits", ("model.vocab_size=999999999999999999999", "below 2**31"), "--model.vocab_size 999999999999999999999"),
    Case("a day that is none", ("command line: seed='2001-13-99' is not YAML", "put quotes"), "--seed 2001-13-99"),
    Case("NUL in a path", (r"run.yaml: out='a\x00b' must be text",), config=swap("out: runs/a", r'out: "a\0b"')),
    Case("half a surrogate pair in a path", (r"run.yaml: out='a\ud800b' must be text",), config=swap("out: runs/a", r'out: "a\ud800b"')),
    Case("negative seed", ("run.yaml: seed=-1 must not be negative",), "--seed -1"),
    Case("no heads for keys", ("section model: model.kv_heads=0 must be at least 1, or null",), "--model.kv_heads 0"),
    Case("beta of 1", ("section sft.optimizer: b1=1.0 must lie in [0, 1)",), "--sft.optimizer.b1 1"),
    Case("best of none", ("evaluation.best_of=[0, 4] must be at least 1",), "--evaluation.best_of [0,4]"),
    Case("number for a bool", ("model.bias=2", "must be true or false"), "--model.bias 2"),
    Case("unknown choice", ("model.positions='sinus'", "learned, rotary"), "--model.positions sinus"),
    Case("null", ("model.heads=None", "must be a whole number"), "--model.heads null"),
    Case("number for a section", ("mesh=8", "must be a section"), "--mesh 8"),
    Case("text for a list", ("files.texts='texts.jsonl'", "must be a list, each entry text"), "--files.texts texts.jsonl"),
    # the file itself
    Case("no YAML", ("run.yaml:2: not YAML", "correct that line"), config=lambda text: "out: a\n\tseed: 1\n"),
    Case("empty config", ("run.yaml: holds no keys", "key: value"), config=lambda text: ""),
    Case("config not UTF-8", ("run.yaml: not UTF-8 at byte 4", "iconv"), config=lambda text: "a: \udcff"),
    Case("config with a control character", ("run.yaml: not YAML (unacceptable character #x001b", "correct that line"),
         config=lambda text: text + "# \x1b"),
    Case("config holds itself", ("run.yaml: not YAML (maximum recursion", "correct that line"),
         config=lambda text: text + "ppo_start: &a {x: *a}\n"),
    Case("config is a folder", ("tok: no such config file", "correct --config"), args="VERB run --config tok"),
    Case("100 kB in a config", ("run.yaml: seed='kkkkk", "kk... must be a whole number"),
         config=lambda text: f"{text}seed: {'k' * 10**5}\n"),
    Case("no such config", ("nowhere.yaml: no such config file", "correct --config"), args="VERB run --config nowhere.yaml"),
    # impossible combinations
    Case("minibatch", ("section ppo", "batch=8 must be a multiple of minibatch=3"), "--ppo.minibatch 3"),
    Case("micro-batches", ("section sft: micro_batches=3 must divide batch=4",), "--sft.micro_batches 3"),
    Case("context too short", ("text.max_prompt=6", "model.context=11", "lower one of them or raise model.context"), "--model.context 11"),
    Case("row too long", ("sft.length=17 exceeds model.context=16", "raise model.context"), "--sft.length 17"),
    Case("ptx row too long", ("ppo.ptx_length=128 exceeds model.context=16", "lower it"), "--ppo.ptx_coef 1 --ppo.ptx_batch 4"),
    Case("mesh too large", ("needs 99 devices, there are 8", "make the mesh smaller"), "--mesh.data 99", check=False),
    Case("mesh does not fit", ("8 devices are not a multiple of 3", "change the mesh"), "--mesh.data -1 --mesh.fsdp 3 --model.width 24",
         check=False),
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
    Case("top-p in PPO", ("section ppo: sampler", "top_p=0.9", "ratios and KL are wrong", "use temperature > 0, top_k=0, top_p=1"),
         "--ppo.sampler.top_p 0.9"),
    Case("top-k in PPO", ("section ppo: sampler", "top_k=5", "use temperature > 0, top_k=0, top_p=1"), "--ppo.sampler.top_k 5"),
    Case("half of ptx", ("section ppo: ptx_coef=1.0", "ptx_batch=0", "both"), "--ppo.ptx_coef 1"),
    Case("ptx without texts", ("files.texts=[]", "stage ppo", "name files"),
         "--ppo.ptx_coef 1 --ppo.ptx_batch 4 --ppo.ptx_length 16 --files.texts [] --stages ppo"),
    Case("no rankings", ("files.rankings=[]", "stage compare", "leave compare out of --stages"), "--files.rankings []"),
    Case("pretrain mix of no row", ("sft.pretrain_mix=0.01 makes 0 of the 4 rows", "raise sft.batch"), "--sft.pretrain_mix 0.01"),
    Case("vocabularies", ("reward_model.vocab_size=50257", "model.vocab_size=20", "make them equal"), "--reward_model.width 768"),
    Case("context of the reward model", ("reward_model.context=8", "raise it"), "--reward_model.context 8 --reward_model.vocab_size 20"),
    Case("critic from another shape", ("ppo.value_init=policy", "remove reward_model"),
         "--ppo.value_init policy --reward_model.vocab_size 20"),
    Case("unknown stage", ("--stages rewards", "did you mean reward?"), "--stages sft,rewards"),
    Case("stage without name", ("--stages has an empty name", "one comma between two"), "--stages sft,,reward"),
    Case("stage without section", ("--stages ppo_ptx", "add it"), "--stages ppo_ptx"),
    # data
    Case("no such file", ("nowhere.jsonl: no such file", "correct the path"), "--files.prompts [nowhere.jsonl]", check=False),
    Case("a name too long for a file", ("cannot be read (File name too long)", "correct the path"), f"--files.prompts [{'a' * 300}.jsonl]"),
    Case("a pipe", ("prompts.jsonl: is neither file nor folder", "write its contents to a file"), prepare=pipe("prompts.jsonl")),
    Case("a device", ("/dev/null: is neither file nor folder", "write its contents to a file"), "--files.prompts [/dev/null]"),
    Case("a folder without data", ("empty: cannot be read as a data set", "write JSON Lines"), "--files.prompts [empty]",
         prepare=lambda place: (place / "empty").mkdir()),
    Case("bad JSON", ("demos.jsonl:2:", "'{\"prompt\":'", "one complete JSON object"),
         files={"demos.jsonl": b'{"prompt":"a","completion":"b"}\n{"prompt":\n'}),
    Case("empty file", ("prompts.jsonl: no records", "at least one"), files={"prompts.jsonl": b"\n"}),
    Case("field missing", ("demos.jsonl:2: completion=None is missing", "add completion"), files={"demos.jsonl": demo(prompt="a")}),
    Case("prompt is null", ("prompts.jsonl:13: prompt=None is null", "fill it in"), files=prompts({"prompt": None})),
    Case("completion is null", ("demos.jsonl:2: completion=None is null", "drop the record"),
         files={"demos.jsonl": demo(prompt="a", completion=None)}),
    Case("ranks are null", ("ranks.jsonl:5: ranks=None is null", "fill it in"), files=ranks(None)),
    Case("one completion is null", ("ranks.jsonl:5: completions[1]=None must be text", "JSON string"), files=ranks([1, 2], ["b", None])),
    Case("text is null", ("texts.jsonl:1: text=None is null", "fill it in"), files={"texts.jsonl": [{"text": None}]}),
    Case("message without content", ("prompts.jsonl:13: prompt[0].content=None must be text",),
         files=prompts([{"role": "user", "content": None}])),
    Case("blank prompt", ("prompts.jsonl:13: prompt=' \\n\\t' is empty", "fill it in"), files=prompts(" \n\t")),
    Case("empty completion", ("demos.jsonl:2: completion='' is empty", "fill it in"),
         files={"demos.jsonl": demo(prompt="a", completion="")}),
    Case("id twice", ("prompts.jsonl:14: id='x' is that of prompts.jsonl:13 too", "an id of its own"),
         files=prompts({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"})),
    Case("ended of another length", ("ranks.jsonl:1: ended=[True] has 1 entries for 3 completions", "one entry for each"),
         files={"ranks.jsonl": [{**userfiles.DATA["ranks.jsonl"][0], "ended": [True]}]}),
    Case("ended is no bool", ("ranks.jsonl:1: ended=[0, 1, 1] must hold true and false", "write false"),
         files={"ranks.jsonl": [{**userfiles.DATA["ranks.jsonl"][0], "ended": [0, 1, 1]}]}),
    Case("prompt is a whole conversation", ("prompts.jsonl:13: prompt=[", "asks for a reply to a reply", "role user"),
         files=prompts(chat("user a", "assistant b"))),
    Case("unknown role", ("prompts.jsonl:13: prompt=[", "the role wizard needs a chat template; use user, assistant, system"),
         files=prompts(chat("wizard a"))),
    Case("chat template fails", ("prompts.jsonl:13: prompt=[", "the chat template refuses it (TemplateError('no wizards'))",
         "correct the roles"),
         files=prompts(chat("wizard a")), prepare=template("{{ raise_exception('no wizards') }}")),
    Case("chat template is broken", ("prompts.jsonl:13: prompt=[", "TemplateSyntaxError", "chat_template of the tokenizer"),
         files=prompts(chat("user a")), prepare=template("{% if %}")),
    Case("chat template says nothing", ("prompts.jsonl:13: prompt=[", "makes no token", "correct chat_template"),
         files=prompts(chat("user a")), prepare=template("{# #}")),
    Case("field of another type", ("demos.jsonl:2: completion=7 must be text", "JSON string"),
         files={"demos.jsonl": demo(prompt="a", completion=7)}),
    Case("not UTF-8", ("demos.jsonl:1:", "iconv"), files={"demos.jsonl": b'{"prompt": "\xff"}'}),
    Case("UTF-16", ("demos.jsonl:1:", "not UTF-8 at byte 1", "iconv -f utf-16"), files={"demos.jsonl": '{"prompt": "a"}'.encode("utf-16")}),
    Case("NUL in a text", (r"prompts.jsonl:13: prompt='a\x00 b' has the control character '\x00' at character 1", "remove it"),
         files=prompts("a\0 b")),
    Case("escape sequence in a text", (r"demos.jsonl:2: completion='\x1b[1m' has the control character '\x1b'", "remove it"),
         files={"demos.jsonl": demo(prompt="a", completion="\x1b[1m")}),
    Case("NUL behind the last line", (r"prompts.jsonl:2: line='\x00\x00", "is not JSON"),
         files={"prompts.jsonl": b'{"prompt": "a"}\n' + bytes(4096)}),
    Case("half a surrogate pair", (r"prompts.jsonl:13: prompt='a \ud83d' has half a surrogate pair at character 2", "UTF-8"),
         files=prompts("a \ud83d")),
    Case("half a surrogate pair in another field", (r"prompts.jsonl:13: use_case='\ud83d' has half a surrogate", "UTF-8"),
         files=prompts({"prompt": "a", "use_case": "\ud83d"})),
    Case("half a surrogate pair in a name", (r"prompts.jsonl:13: field='\ud83d' has half a surrogate", "UTF-8"),
         files=prompts({"prompt": "a", "\ud83d": 1})),
    Case("NaN", ("prompts.jsonl:13: score=nan is no number of JSON", "write null"), files=prompts({"prompt": "a", "score": float("nan")})),
    Case("name twice in an object", ("prompts.jsonl:1: field='prompt' stands twice", "remove one"),
         files={"prompts.jsonl": b'{"prompt": "a", "prompt": "b"}'}),
    Case("deep JSON", ("prompts.jsonl:1: line='[[[[", "is not JSON (maximum recursion", "one complete JSON object"),
         files={"prompts.jsonl": b"[" * 10**5}),
    Case("rather deep JSON", ("prompts.jsonl:13: 'x.x.x.", "nested deeper than 200 levels", "write it flat"),
         files=prompts({"prompt": "a", "x": functools.reduce(lambda inner, _: {"x": inner}, range(250), 1)})),
    Case("number of 5000 digits", ("prompts.jsonl:1: line='9999", "is not JSON", "one complete JSON object"),
         files={"prompts.jsonl": b"9" * 5000}),
    Case("10 MB that are no JSON", ("prompts.jsonl:1: line='aaaa", "is not JSON"), files={"prompts.jsonl": b"a" * 10**7}),
    Case("10 MB in the name of a field", ("prompts.jsonl:1: prompt=None is missing; there are ['aaaa", "aaa...; add prompt"),
         files={"prompts.jsonl": b'{"' + b"a" * 10**7 + b'": 1}'}),
    Case("1 MB in a prompt", ("prompts.jsonl:13: prompt='a a", "has 500001 tokens", "max_prompt=6", "set on_long"),
         files=prompts("a " * 500_000)),
    Case("broken gzip", ("texts.jsonl.gz: broken gzip", "again"), "--files.texts [texts.jsonl.gz]",
         files={"texts.jsonl.gz": gzip.compress(b"abc" * 99, mtime=0)[:-9]}),
    Case("unknown suffix", ("data.csv", "'.csv' is unknown", "use one of .jsonl"), "--files.texts [data.csv]", files={"data.csv": b"a"}),
    Case("ranks of another length", ("ranks.jsonl:5: ranks=[1, 2] has 2 ranks for 3", "one rank for each"), files=ranks([1, 2])),
    Case("all tied", ("ranks.jsonl:5: ranks=[1, 1, 1] is one tie", "drop the record"), files=ranks([1, 1, 1])),
    Case("K = 1", ("ranks.jsonl:5: completions=['b'] has K = 1", "2 to 9"), files=ranks([1], "b")),
    Case("K = 10", ("ranks.jsonl:5:", "K = 10", "at most 9"), files=ranks(list(range(1, 11)), "abcdefghij")),
    Case("rank of 100 bits", ("ranks.jsonl:5: ranks=[1, 2, 1267", "integers from 1 to 2147483647"), files=ranks([1, 2, 2**100])),
    Case("rank true", ("ranks.jsonl:5: ranks=[True, 2, 3]", "integers from 1"), files=ranks([True, 2, 3])),
    Case("rank 1.5", ("ranks.jsonl:5: ranks=[1, 1.5, 2]", "integers from 1"), files=ranks([1, 1.5, 2])),
    Case("rank 0", ("ranks.jsonl:5: ranks=[0, 1, 2]", "integers from 1"), files=ranks([0, 1, 2])),
    Case("fewer prompts than a batch", ("ppo.batch=64, but of 12 records in files.prompts 11 are left to learn from", "files.held_out=0.05",
                                        "add prompts, or lower ppo.batch"), "--ppo.batch 64"),
    Case("fewer prompts than a batch for being long", ("ppo.batch=8, but of 2 records in files.prompts 1 are left",), "--text.on_long drop",
         files={"prompts.jsonl": [{"prompt": "a"}, {"prompt": "b"}, *[{"prompt": "c " * 10}] * 9]}),
    Case("one prompt", ("files.prompts=['prompts.jsonl']: of 1 records none is left to measure with", "add prompts"), "--stages select",
         files={"prompts.jsonl": [{"prompt": "a"}]}),
    Case("demonstrations of held-out prompts", ("files.demonstrations=['demos.jsonl']: of 4 records none is left to learn from",
         "add some"),
         files={"demos.jsonl": [{"prompt": "a", "completion": "c d"}] * 4}),
    Case("long completion", ("demos.jsonl:2: prompt='a': its completion has 11 tokens", "max_completion=6", "set on_long"),
         files={"demos.jsonl": demo(prompt="a", completion="b " * 10)}),
    Case("long prompt", ("prompts.jsonl:1: ", "prompt='a a a", "11 tokens", "max_prompt=6",
                         "set on_long to drop, truncate_left or truncate_right"),
         files={"prompts.jsonl": [{"prompt": "a " * 10}]}),
    Case("long prompts dropped, none left", ("prompts.jsonl: all 1 records", "max_prompt=6", "raise them"), "--text.on_long drop",
         files={"prompts.jsonl": [{"prompt": "a " * 10}]}),
    Case("unknown rule", ("text.on_long='middle'", "error, drop, truncate_left, truncate_right"), "--text.on_long middle"),
    Case("demonstration longer than a row", ("sft.length=4 is too short", "has 6 tokens"), "--sft.length 4"),
    Case("template without prompt", ("section text", "template='task'", "exactly once"), "--text.template task"),
    Case("special token in a document", ("texts.jsonl:2: text='a <eos>' holds the eos_token", "remove it"),
         files={"texts.jsonl": [{"text": "a"}, {"text": "a <eos>"}]}),
    Case("megabyte in the name of a field", ("prompts.jsonl:13: 'aaaa", "=nan is no number"),
         files=prompts({"prompt": "a", "a" * 10**6: float("nan")})),
    Case("special token in a text", ("prompts.jsonl:1: ", "<eos>", "remove it"), files={"prompts.jsonl": [{"prompt": "a <eos>"}]}),
    # tokenizer
    Case("no tokenizer", ("nowhere: no such model folder", "OWNER/NAME"), "--files.tokenizer nowhere", check=False),
    Case("broken tokenizer", ("broken: not a tokenizer folder", "save_pretrained"), "--files.tokenizer broken",
         files={"broken/tokenizer.json": b"{"}),
    Case("no EOS", ("tok: eos_token=None", "set files.eos_token to one of ['<pad>'"), tokenizer={"eos_token": None}),
    Case("no PAD", ("tok: pad_token=None", "files.pad_token=...: a token of the vocabulary", "'<pad>'"), tokenizer={"pad_token": None}),
    Case("no UNK", ("prompts.jsonl:13: text='zebra': the tokenizer fails on it", "Missing [UNK]", "unk_token"), files=prompts("zebra"),
         prepare=lambda place: change_json(place / "tok/tokenizer.json", lambda core: core["model"].update(unk_token="[UNK]"))),
    Case("PAD is EOS", ("tok: pad_token='<eos>' is also the eos_token", "its own token"), tokenizer={"pad_token": "<eos>"}),
    Case("EOS of another tokenizer", ("tok: files.eos_token='</s>' is not in the vocabulary", "use one of ['<pad>'"),
         "--files.eos_token </s>"),
    Case("PAD beyond the rows", ("pad_token='<new>' has id 17", "model.vocab_size=17 makes 17 rows", "model.vocab_multiple=64"),
         "--files.pad_token <new> --model.vocab_size 17"),
    Case("vocabulary too small", ("model.vocab_size=16 is smaller than the tokenizer's 17", "at least 17"), "--model.vocab_size 16"),
    # folders and checkpoints
    Case("folder of another run", ("runs/a/config.yaml", "seed: 5 there, 0 now", "choose another run folder"),
         files={"runs/a/config.yaml": b"{out: runs/a, seed: 5}"}),
    Case("folder of something else", ("runs/a is not empty", "choose another folder"), files={"runs/a/thesis.tex": b"x"}),
    Case("config of a run folder is broken", ("runs/a/config.yaml cannot be read", "choose another run folder"),
         files={"runs/a/config.yaml": b"{"}),
    Case("a name too long for a folder", ("aaa cannot be a run folder (File name too long)", "choose another"), f"--out {'a' * 300}"),
    Case("start without the stage", ("start.folder=runs/b has not finished the stage pretrain", "run it there"), "--start.folder runs/b"),
    Case("start with another config", ("start.folder=runs/b was run with model.init_std: 0.02, and here it is 0.5", "make them equal"),
         "--start.folder runs/b --start.stages [reward] --model.init_std 0.5", prepare=stage_of_another("runs/b")),
    Case("reward model of another tokenizer",
         ("start.folder: the model runs/b/reward was made with the tokenizer 0123456789abcdef, and the one of this run is ", "(tok)",
         "use the same"),
         "--start.folder runs/b --start.stages [reward]", prepare=stage_of_another("runs/b")),
    Case("other model of another tokenizer",
         ("evaluation.others.x: the model runs/b/reward was made with the tokenizer 0123456789abcdef", "(tok)", "use the same"),
         "--evaluation.others.x runs/b:reward", prepare=stage_of_another("runs/b")),
    Case("tokenizer changed since", ("out: the model runs/a/reward was made with the tokenizer 0123456789abcdef", "(tok)", "use the same"),
         prepare=stage_of_another("runs/a")),
    Case("no such other model", ("evaluation.others.x=runs/b:sft", "no checkpoints of a stage sft", "run that first"),
         "--evaluation.others.x runs/b:sft"),
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
    userfiles.fake_run(
        monkeypatch,
        lambda config, stages: case.run(place) if case.run else pytest.fail("the run began"),
    )
    words = case.args.split()
    argv = words[1:] if words[:1] == ["VERB"] else ["run", "--config", "run.yaml", *words]
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
                [{**userfiles.DATA["ranks.jsonl"][0], "completions": ["\0", "\x1b", "b"]}] * 2
            )
        },
        "2 rankings",
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
