"""Random bytes, random JSON and almost right records for everything that reads: good records come
out, or one clean error.
"""

import copy
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import userfiles
import yaml
from data import wordtok
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instruct_jax.chain.read import load_run
from instruct_jax.data import encode, readers
from instruct_jax.data import public_sets as adapters
from instruct_jax.data.tokenize import encode_completion, encode_prompt, load_tokenizer
from instruct_jax.errors import ConfigError, DataError

USER, REPLY = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}
NODE = {"message_id": "m", "role": "prompter", "text": "a", "replies": []}
REPLIES = [
    {
        "message_id": str(i),
        "role": "assistant",
        "text": f"b {i}",
        "replies": [NODE | {"message_id": f"n{i}"}],
        "rank": i,
    }
    for i in (0, 1)
]
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
GOOD: dict[str, list[dict]] = {  # kind -> records of every form
    "texts": [{"text": "a b"}],
    "prompts": [{"prompt": "a"}, {"prompt": [USER, REPLY, USER], "id": "x", "use_case": "y"}],
    "demonstrations": [
        {"prompt": "a", "completion": "b", "ended": [True]},
        {"messages": [{"role": "system", "content": "s"}, USER, REPLY]},
        {"instruction": "i", "input": "j", "output": "o", "system": "s", "history": [["a", "b"]]},
        {"prompt": [USER], "completion": [REPLY | {"weight": 0}, USER, REPLY]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ],
    "rankings": [
        {
            "prompt": "a",
            "completions": ["b", "c d", "e"],
            "ranks": [1, 2, 2],
            "ended": [True, False, True],
            "likert": [7, 1, 1],
        },
        {"prompt": [USER], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "completions": ["b", "c"], "scores": [0.5, 1]},
        {"chosen": HH + "d", "rejected": HH + "e"},
        {"chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "d"}]},
    ],
    "samples": [{"prompt": "a", "completions": ["b", ""], "ended": [True, False]}],
}
PUBLISHED = {  # adapter and kind -> file, records as published
    ("oasst", "demonstrations"): (
        "oasst_en100/a_tree.jsonl",
        [{"prompt": NODE | {"replies": REPLIES}}],
    ),
    ("oasst", "rankings"): ("oasst_en100/a_tree.jsonl", [{"prompt": NODE | {"replies": REPLIES}}]),
    ("oasst", "prompts"): ("oasst_en100/a_tree.jsonl", [{"prompt": NODE | {"replies": REPLIES}}]),
    ("hh", "rankings"): (
        "hh_rlhf_harmless_test/test.jsonl",
        [{"chosen": HH + "d", "rejected": HH + "e"}],
    ),
    ("self_instruct", "demonstrations"): (
        "self_instruct_seed/seed_tasks.jsonl",
        [{"id": "s", "instruction": "a", "instances": [{"input": "b", "output": "c"}]}],
    ),
    ("self_instruct", "prompts"): (
        "self_instruct_seed/user_oriented_instructions.jsonl",
        [
            {
                "id": "u",
                "motivation_app": "x",
                "instruction": "a",
                "instances": [{"input": "b", "output": "c"}],
            }
        ],
    ),
    ("novels", "texts"): ("gutenberg/a.txt", []),
    ("wikitext", "texts"): ("wikitext2/valid.txt", []),
}
ODD = [
    "",
    " ",
    "\u2028",
    "\x85",
    "\ufeff",
    "\0",
    "\x1b[1m",
    "\ud800",
    "<eos>",
    "<|endoftext|>",
    "{prompt}",
    "a " * 30,
    HH,
    "\n\nAssistant:",
]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(), max_size=8)  # half surrogate pairs included
NUMBERS = st.sampled_from([0, 1, -1, 2**31, 10**400, 0.5, -0.0, 1e400, float("nan")])
ATOMS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def almost(draw: st.DrawFn, good: list[dict]) -> Any:
    """A good value in which up to two parts were dropped, doubled or replaced."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 2))):
        parts = list(_parts(value))
        if not parts:
            break
        holder, key = draw(st.sampled_from(parts))
        match draw(st.sampled_from(["drop", "double", "atom", "json"])):
            case "drop":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case "double":
                holder[draw(TEXTS)] = copy.deepcopy(holder[key])
            case "atom":
                holder[key] = draw(ATOMS)
            case "json":
                holder[key] = draw(JSON)
    return value


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """(list or dict, key) of everything inside."""
    for key, part in list(enumerate(value) if isinstance(value, list) else value.items()):
        yield value, key
        if isinstance(part, list | dict):
            yield from _parts(part)


def lines(good: list[dict]) -> st.SearchStrategy[bytes]:
    """Contents of a file: records, almost records, JSON, bytes."""
    line = (almost(good) | JSON).map(lambda value: json.dumps(value).encode()) | st.binary(
        max_size=12
    )
    return st.lists(line, max_size=4).map(b"\n".join) if good else st.binary(max_size=30)


def clean(read: Callable[[], Any], place: str) -> Any:
    """What is read; None after an error that is one short paragraph and names the place."""
    try:
        return read()
    except (DataError, ConfigError) as error:
        message = str(error)
        assert place in message and "\n" not in message and len(message) < len(place) + 1000
        message.encode("utf-8")
        return None


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return [wordtok.words(), load_tokenizer(wordtok.gpt2_folder(tmp_path_factory.mktemp("tok")))]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("random")


ENCODE = {
    "prompts": encode.encode_prompts,
    "samples": encode.encode_prompts,
    "demonstrations": encode.encode_demonstrations,
    "rankings": encode.encode_rankings,
    "texts": lambda tok, records, form: encode.encode_texts(tok, records, form.max_prompt),
}
FORMS = st.builds(
    encode.TextFormat,
    template=st.sampled_from(["{prompt}", "task : {prompt} reply :"]),
    completion_prefix=st.sampled_from(["", " "]),
    max_prompt=st.integers(2, 9),
    max_completion=st.integers(2, 9),
    on_long=st.sampled_from(["error", "drop", "truncate_left", "truncate_right"]),
)


@pytest.mark.parametrize("kind", GOOD)
def test_readers(kind, place, tokenizers):
    """What is read can be written and read again, and encoded."""
    read = getattr(readers, f"read_{kind}")

    @settings(max_examples=250)
    @given(
        lines(GOOD[kind]),
        st.sampled_from(["a.jsonl", "a.json", "a.txt", "a.jsonl.gz", "a.csv", "a.tsv"]),
        st.sampled_from(["error", "skip"]),
        FORMS,
    )
    def run(content, name, on_bad_record, form):
        path = place / name
        path.write_bytes(content)
        records = clean(lambda: read(path, on_bad_record=on_bad_record), str(path))
        if records:
            readers.write_jsonl(place / "again.jsonl", records)
            assert read(place / "again.jsonl") == records
            for tok in tokenizers:
                clean(functools.partial(ENCODE[kind], tok, records, form), str(path))

    run()


@pytest.mark.parametrize(("adapter", "kind"), PUBLISHED)
def test_adapters(adapter, kind, place):
    file, good = PUBLISHED[adapter, kind]

    @settings(max_examples=150)
    @given(lines(good))
    def run(content):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(content)
        records = clean(
            lambda: adapters.load(kind, f"{adapter}:{place}"), str((place / file).parent)
        )
        if records:
            readers.write_jsonl(place / "again.jsonl", records)
            again = adapters.load(kind, str(place / "again.jsonl"))
            assert again == records

    run()


@pytest.mark.parametrize("suffix", ["parquet", "json", "csv", "jsonl.xz", "jsonl.zst"])
def test_a_file_of_bytes(suffix, place):
    @settings(max_examples=20)
    @given(st.binary(max_size=40))
    def run(content):
        path = place / f"b.{suffix}"
        path.write_bytes(content)
        clean(lambda: readers.read_prompts(path), str(path))

    run()


def test_config(place):
    """Bytes, YAML of anything, almost right configs and overrides."""
    path, good = place / "run.yaml", yaml.safe_load(userfiles.CONFIG)
    trees = (almost([good]) | JSON).map(lambda tree: yaml.safe_dump(tree).encode())
    words = st.lists(
        st.sampled_from(["--seed", "--ppo.batch=8", "--mesh", "--", "--out", "--data.x"]) | TEXTS,
        max_size=3,
    )

    @settings(max_examples=400)
    @given(trees | st.binary(max_size=40), words)
    @example(b"? [a]\n: 1", [])
    @example(b"out: 2001-99-99", [])
    @example(b"out: !!python/object:os.system x", [])
    def run(content, overrides):
        path.write_bytes(content)
        clean(lambda: load_run(path, overrides), "" if overrides else str(path))

    run()


@pytest.mark.parametrize("form", ["words", "gpt2"])
def test_tokenizer(form, place):
    """A folder in which one file is almost right; what can be loaded can encode."""
    with tempfile.TemporaryDirectory() as name:
        (
            wordtok.words().save_pretrained(name)
            if form == "words"
            else wordtok.gpt2_folder(Path(name))
        )
        files = {path.name: path.read_text() for path in Path(name).iterdir()}
    folder = place / form
    folder.mkdir()
    changed = st.sampled_from(sorted(files)).flatmap(
        lambda file: st.tuples(st.just(file), contents(files[file]))
    )

    @settings(max_examples=100)
    @given(changed)
    def run(change):
        for file, text in files.items():
            (folder / file).write_bytes(change[1] if file == change[0] else text.encode())
        if tok := clean(lambda: load_tokenizer(folder), str(folder)):
            clean(lambda: encode_prompt(tok, "a b"), "")
            clean(lambda: encode_completion(tok, "a b"), "")

    run()


def contents(text: str) -> st.SearchStrategy[bytes]:
    if not text.startswith("{"):
        return st.binary(max_size=20)
    return (almost([json.loads(text)]) | JSON).map(
        lambda value: json.dumps(value).encode()
    ) | st.binary(max_size=20)
