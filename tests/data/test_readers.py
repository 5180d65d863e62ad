"""Files in, records out; and every way in which a file can be bad."""

import datetime
import gzip
import json
import lzma
import os
from typing import Any

import pyarrow
import pytest

from instruct_jax.data import readers
from instruct_jax.data.public_sets import load
from instruct_jax.data.readers import (
    exists,
    read_demonstrations,
    read_prompts,
    read_rankings,
    read_samples,
    read_texts,
    write_jsonl,
)
from instruct_jax.data.schemas import named
from instruct_jax.errors import DataError

GOOD = {
    "prompts": {"prompt": "p"},
    "demonstrations": {"prompt": "p", "completion": "c"},
    "rankings": {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]},
    "texts": {"text": "t"},
    "samples": {"prompt": "p", "completions": ["a", ""]},
}


def line(kind, **changes):
    return json.dumps({k: v for k, v in (GOOD[kind] | changes).items() if v != "ABSENT"}).encode()


# kind, bad second line, what the message must hold beside file and line
BAD_LINES = [
    (
        "prompts",
        b'{"prompt": "x"',
        ["line=", '{"prompt": "x"', "not JSON", "one complete JSON object"],
    ),
    ("prompts", b"{'prompt': 'x'}", ["line=", "not JSON", "one complete JSON object"]),
    (
        "prompts",
        b'"just text"',
        ["record=", "just text", "object, not str", 'write {"field": value'],
    ),
    ("prompts", b"[1, 2]", ["record=", "[1, 2]", "object, not list", 'write {"field": value']),
    ("prompts", b'{"prompt": "caf\xe9"}', ["line=", r"b'\xe9", "not UTF-8 at byte 16", "iconv"]),
    (
        "prompts",
        b'{"prompt": "a\\ud800b"}',
        ["prompt=", "surrogate", "character 1", "write the character in UTF-8"],
    ),
    ("prompts", b'{"text": "x"}', ["prompt=null", "is missing", "['text']", "add prompt"]),
    ("prompts", line("prompts", prompt=None), ["prompt=null", "is null", "fill it in"]),
    ("prompts", line("prompts", prompt=7), ["prompt=7", "text, not int", "JSON string"]),
    ("prompts", line("prompts", prompt=" \n "), ["prompt=' \\n '", "is empty", "fill it in"]),
    ("prompts", line("prompts", prompt=[]), ["prompt=[]", "is empty", "at least one message"]),
    ("prompts", line("prompts", prompt=["hi"]), ["prompt[0]='hi'", "not a message", '"role"']),
    (
        "prompts",
        line("prompts", prompt=[{"content": "x"}]),
        ["prompt[0]=", "not a message", '"role"'],
    ),
    (
        "prompts",
        line("prompts", prompt=[{"role": "user"}]),
        ["prompt[0].content=null", "is null", "fill it in"],
    ),
    (
        "demonstrations",
        line("demonstrations", completion="ABSENT"),
        ["completion=null", "is missing", "add completion"],
    ),
    (
        "demonstrations",
        line("demonstrations", completion=""),
        ["completion=''", "is empty", "drop the record"],
    ),
    (
        "demonstrations",
        line("demonstrations", completion=["x"]),
        ["completion[0]='x'", "not a message", '"role"'],
    ),
    (
        "demonstrations",
        b'{"messages": [{"role": "user", "content": "x"}]}',
        ["messages=", "does not end with a reply", "role assistant"],
    ),
    ("demonstrations", b'{"messages": "x"}', ["messages='x'", "list, not str", "JSON array"]),
    (
        "demonstrations",
        b'{"instruction": "x", "input": "y"}',
        ["output=null", "is missing", "add output"],
    ),
    (
        "demonstrations",
        b'{"instruction": "", "output": "y"}',
        ["instruction=''", "is empty", "fill it in"],
    ),
    ("rankings", line("rankings", ranks="ABSENT"), ["ranks=null", "is missing", "add ranks"]),
    (
        "rankings",
        line("rankings", ranks=[1]),
        ["ranks=[1]", "1 ranks for 2 completions", "one rank for each"],
    ),
    (
        "rankings",
        line("rankings", ranks=[0, 1]),
        ["ranks=[0, 1]", "integers from 1", "1 for the best"],
    ),
    (
        "rankings",
        line("rankings", ranks=[1, 1.5]),
        ["ranks=[1, 1.5]", "integers from 1", "1 for the best"],
    ),
    (
        "rankings",
        line("rankings", ranks=[True, 2]),
        ["ranks=[True, 2]", "integers from 1", "1 for the best"],
    ),
    (
        "rankings",
        line("rankings", ranks=["1", "2"]),
        ["ranks=['1', '2']", "integers from 1", "1 for the best"],
    ),
    ("rankings", line("rankings", ranks=[1, 1]), ["ranks=[1, 1]", "one tie", "drop the record"]),
    ("rankings", line("rankings", ranks="1,2"), ["ranks='1,2'", "list, not str", "JSON array"]),
    (
        "rankings",
        line("rankings", completions=["a"], ranks=[1]),
        ["completions=['a']", "K = 1", "2 to 9"],
    ),
    (
        "rankings",
        line("rankings", completions=list("abcdefghij"), ranks=list(range(1, 11))),
        ["completions=", "K = 10", "at most 9"],
    ),
    (
        "rankings",
        line("rankings", completions=["a", ""]),
        ["completions[1]=''", "is empty", "fill it in"],
    ),
    (
        "rankings",
        line("rankings", completions=["a", 3]),
        ["completions[1]=3", "text, not int", "JSON string"],
    ),
    (
        "rankings",
        line("rankings", completions="ab"),
        ["completions='ab'", "list, not str", "JSON array"],
    ),
    (
        "rankings",
        line("rankings", likert=[7]),
        ["likert=[7]", "1 entries for 2", "one entry for each"],
    ),
    (
        "rankings",
        b'{"prompt": "p", "chosen": "a"}',
        ["rejected=null", "is missing", "add rejected"],
    ),
    (
        "rankings",
        b'{"prompt": "p", "chosen": "a", "rejected": "a"}',
        ["rejected='a'", "equals chosen", "drop the record"],
    ),
    (
        "rankings",
        b'{"chosen": "a", "rejected": "b"}',
        ["chosen='a'", "no prompt", "add a field prompt"],
    ),
    ("texts", line("texts", text="ABSENT"), ["text=null", "is missing", "add text"]),
    ("texts", line("texts", text=["x"]), ["text=['x']", "text, not list", "JSON string"]),
    ("samples", line("samples", completions=[]), ["completions=[]", "is empty", "at least one"]),
    (
        "samples",
        line("samples", completions=[None]),
        ["completions[0]=null", "is null", "fill it in"],
    ),
]


@pytest.mark.parametrize(("kind", "bad", "expected"), BAD_LINES)
def test_bad_line(tmp_path, kind, bad, expected):
    path, read = tmp_path / "data.jsonl", getattr(readers, f"read_{kind}")
    path.write_bytes(line(kind) + b"\n" + bad + b"\n" + line(kind) + b"\n")
    with pytest.raises(DataError) as raised:
        read(path)
    for part in [f"{path}:2: ", "; ", *expected]:
        assert part in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300
    kept = read(path, on_bad_record="skip")
    assert kept == [GOOD[kind]] * 2
    assert list(kept.dropped) == [str(raised.value)]


BAD_FILES = [
    ("data.jsonl", b"", read_prompts, ["no records", "at least one record"]),
    ("data.jsonl", b"\n\n \n", read_prompts, ["no records", "at least one record"]),
    ("data.json", b"[]", read_prompts, ["no records", "at least one record"]),
    (
        "data.json",
        b'[{"prompt": "x"}, {"prompt": 1}]',
        read_prompts,
        ["record 2", "prompt=1", "JSON string"],
    ),
    ("data.json", b'[{"prompt": "x"},', read_prompts, ["not JSON", "JSON object"]),
    ("data.jsonl.gz", b"not gzip", read_prompts, ["broken gzip", "again"]),
    (
        "data.jsonl.gz",
        gzip.compress(b'{"prompt": "x"}' * 99, mtime=0)[:-9],
        read_prompts,
        ["broken gzip", "again"],
    ),
    ("data.docx", b"x", read_prompts, ["'.docx'", "unknown", ".jsonl", ".zst"]),
    ("data.parquet.gz", b"x", read_prompts, ["'.gz'", "unknown"]),
    ("data.csv", b"prompt,id\nx,1\ny\n", read_prompts, [":3: has 1 cells for the 2 fields"]),
    ("data.csv", b"prompt,prompt\nx,y\n", read_prompts, [":1: the field 'prompt' stands twice"]),
    ("data.csv", b'prompt\n"x" y\n', read_prompts, [":2: is not CSV", "quotes around"]),
    ("data.csv", b"prompt\ncaf\xe9\n", read_prompts, [":2:", "not UTF-8", "iconv"]),
    ("data.csv", b"prompt\n", read_prompts, ["no records"]),
    ("data.csv", b"prompt,id\nx,1\n,2\n", read_prompts, [":3: prompt=null is null"]),
    ("data.jsonl.xz", lzma.compress(b"{}")[:-9], read_prompts, ["broken xz file", "again"]),
    ("data.jsonl.zst", b"not zstd", read_prompts, ["broken zstd file", "again"]),
    (
        "data.parquet",
        b"not parquet",
        read_prompts,
        ["cannot be read as a data set", "write JSON Lines"],
    ),
    ("data.txt", b"", read_texts, ["no records"]),
    ("data.txt", b"fine\ncaf\xe9", read_texts, [":2:", "text=", r"b'\xe9'", "not UTF-8", "iconv"]),
]


@pytest.mark.parametrize(("name", "content", "read", "expected"), BAD_FILES)
def test_bad_file(tmp_path, name, content, read, expected):
    path = tmp_path / name
    path.write_bytes(content)
    for on_bad_record in ("error", "skip"):
        if on_bad_record == "skip" and {"record 2", ":3: prompt=null is null"} & {*expected}:
            continue
        with pytest.raises(DataError) as raised:
            read(path, on_bad_record=on_bad_record)
        for part in [str(path), *expected]:
            assert part in str(raised.value)


def test_missing_file_and_wrong_options(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file.*correct the path"):
        read_prompts(tmp_path / "nowhere.jsonl")
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"question": "q"}])
    unknown: Any = "ignore"
    with pytest.raises(DataError, match="on_bad_record='ignore'.*use error or skip"):
        read_prompts(path, on_bad_record=unknown)
    with pytest.raises(
        DataError,
        match=(
            r"data\.jsonl:1: data\.columns=.*'answer'.*no column.*question.*correct the column"
            " map"
        ),
    ):
        read_prompts(path, columns={"prompt": "answer"})
    with pytest.raises(DataError, match="all 1 records were dropped.*data.jsonl:1"):
        read_prompts(path, on_bad_record="skip")


def test_accepted_variants(tmp_path):
    path = tmp_path / "data.jsonl"
    user, reply = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    other = {"role": "assistant", "content": "no"}

    def one(read, record, **options):
        write_jsonl(path, [record])
        [found] = read(path, **options)
        return found

    assert one(read_demonstrations, {"messages": [user, reply], "id": 1}) == {
        "prompt": [user],
        "completion": "yo",
        "id": 1,
    }
    assert one(read_demonstrations, {"instruction": "i", "input": "x", "output": "o"}) == {
        "prompt": "i\n\nx",
        "completion": "o",
    }
    assert one(read_demonstrations, {"instruction": "i", "input": "", "output": "o"}) == {
        "prompt": "i",
        "completion": "o",
    }
    pair = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}
    assert one(read_rankings, {"prompt": "p", "chosen": "a", "rejected": "b"}) == pair
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: yeah"}
    assert one(read_rankings, hh) == {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "completions": [" yes", " yeah"],
        "ranks": [1, 2],
    }
    chats = {"prompt": [user], "completions": ["yo", "no"], "ranks": [1, 2]}
    assert one(read_rankings, {"chosen": [user, reply], "rejected": [user, other]}) == chats
    assert one(read_rankings, {"prompt": [user], "chosen": [reply], "rejected": [other]}) == chats
    # UltraFeedback
    assert (
        one(read_rankings, {"prompt": "hi", "chosen": [user, reply], "rejected": [user, other]})
        == chats
    )
    assert one(read_prompts, {"prompt": "hi", "messages": [user, reply]}) == {"prompt": [user]}
    assert one(read_prompts, {"messages": [user, reply, user]}) == {"prompt": [user, reply, user]}
    assert one(read_prompts, {"question": "q", "n": 1}, columns={"prompt": "question"}) == {
        "prompt": "q",
        "n": 1,
    }
    assert one(read_samples, GOOD["samples"] | {"temperature": 1.0})["temperature"] == 1.0


def test_columns_are_renamed_where_they_are_there(tmp_path):
    path = tmp_path / "data.jsonl"
    theirs = {"question": "q", "response_j": "a", "response_k": "b", "tools": "x"}
    ours = {"prompt": "q", "chosen": "a", "rejected": "b"}
    write_jsonl(path, [theirs, ours])
    columns = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}
    found = read_rankings(path, columns={**columns, "tools": None, "labeler_id": "worker"})
    assert found == [{"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}] * 2
    assert found.mapped == {*columns, "tools"}
    write_jsonl(path, [{"a": "x", "b": "y"}])
    swapped = {"a": "b", "b": "a", "prompt": "a"}
    assert read_prompts(path, columns=swapped) == [{"a": "y", "b": "x", "prompt": "x"}]


def test_all_containers(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    records = [{"prompt": "odd \u2028 separators \u0085 and \r inside", "n": i} for i in range(3)]
    write_jsonl(tmp_path / "a.jsonl", records)
    write_jsonl(tmp_path / "a.jsonl.gz", records)
    write_jsonl(tmp_path / "a.json.gz", records)
    (tmp_path / "array.json").write_text(json.dumps(records))
    lines = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.ndjson").write_bytes(lines)
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(lines))
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(lines)
    (tmp_path / "windows.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n")
    )
    data = datasets.Dataset.from_list(records)
    data.to_parquet(tmp_path / "a.parquet")
    data.to_parquet(tmp_path / "files" / "train.parquet")
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "two")
    for name in (
        "a.jsonl",
        "a.jsonl.gz",
        "a.json.gz",
        "array.json",
        "a.ndjson",
        "a.jsonl.xz",
        "a.jsonl.zst",
        "windows.jsonl",
        "a.parquet",
        "one",
        "files",
    ):
        assert read_prompts(tmp_path / name) == records, name
    assert read_prompts(tmp_path / "two", split="test") == records[:1]
    one = read_prompts(f"{tmp_path / 'two'}:test")
    assert one == records[:1] and one.places == [f"{tmp_path / 'two'}:test: record 1"]
    assert load("prompts", f"{tmp_path / 'two'}:test") == records[:1]
    assert exists(f"{tmp_path / 'two'}:test")
    with pytest.raises(
        DataError, match=r"splits \['train', 'test'\]; choose one, such as .*two:train$"
    ):
        read_prompts(tmp_path / "two")
    for name in ("one", "a.jsonl"):
        with pytest.raises(DataError, match="split='dev' does not exist, it is one whole"):
            read_prompts(tmp_path / name, split="dev")
    with pytest.raises(DataError, match="split='dev' does not exist"):
        read_prompts(tmp_path / "two", split="dev")
    data.add_column("ranks", [[1, 2]] * 3).save_to_disk(tmp_path / "three")
    with pytest.raises(DataError, match="three: record 1: completions=null is missing"):
        read_rankings(tmp_path / "three")


def test_splits_of_the_hub(tmp_path, monkeypatch):
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        datasets.Dataset.from_list([{"prompt": split}]).to_parquet(
            tmp_path / "O" / "N" / "data" / f"{split}-00000.parquet"
        )

    asked = []

    def download(name, *, repo_type, revision):
        asked.append(revision)
        assert repo_type == "dataset" and (tmp_path / name).is_dir(), "404"
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert read_prompts("hub:O/N:test") == [{"prompt": "test"}] and read_prompts(
        "hub:O/N:train"
    ).places == ["hub:O/N:train: record 1"]
    assert asked == [None] * 2
    assert read_prompts("hub:O/N@v1.0:test") == [{"prompt": "test"}] and asked[-1] == "v1.0"
    assert exists("hub:O/N:train") and not exists("hub:O/M")
    with pytest.raises(
        DataError,
        match=(
            r"hub:O/N: there are the splits \['train', 'test'\]; choose one, such as hub:O/N:train"
        ),
    ):
        read_prompts("hub:O/N")
    with pytest.raises(
        DataError,
        match="O/M: neither here nor to be had from the Hugging Face hub.*404.*hf download O/M",
    ):
        read_prompts("hub:O/M:train")


def test_write_is_atomic(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    write_jsonl(path, [{"prompt": "x"}])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_jsonl(path, [{"prompt": "y"}, {"prompt": object()}])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.jsonl"]


def test_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\n\r\ntwo\n"))
    assert read_texts(tmp_path / "a.txt.gz") == [{"text": "one\n\ntwo\n"}]
    (tmp_path / "b.txt").write_text("three")
    assert read_texts(tmp_path) == [{"text": "one\n\ntwo\n"}, {"text": "three"}]


def test_texts_about_the_data_are_not_the_data(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shards = tmp_path / "shards"
    for i in range(2):
        write_jsonl(shards / f"shard_{i}.jsonl", [{"text": f"{i}"}])
    about = ("LICENSE.txt", "README.txt", "LICENSE-MIT.txt", "README.md", ".hidden.txt")
    for name in about:
        (shards / name).write_text("no data")
    assert read_texts(shards) == [{"text": "0"}, {"text": "1"}]
    documents = tmp_path / "documents"
    (documents / "more").mkdir(parents=True)
    (documents / "SOURCE.txt").write_text("no data")
    for name in ("a.txt", "more/b.txt"):
        (documents / name).write_text(name)
    assert read_texts(documents) == [{"text": "a.txt"}, {"text": "more/b.txt"}]
    with pytest.raises(DataError, match="split='train' does not exist, it is one whole"):
        read_texts(f"{documents}:train")
    (documents / "more" / "b.txt").rename(documents / "NOTICE.txt")
    (documents / "a.txt").unlink()
    with pytest.raises(DataError, match="documents: no data in it; give files"):
        read_texts(documents)


@pytest.mark.parametrize("other", ["a.txt", "a.parquet", "a.csv.gz"])
def test_a_folder_of_several_kinds_is_refused(tmp_path, other):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "t"}])
    (tmp_path / other).write_bytes(b"x")
    with pytest.raises(DataError, match=f"several kinds of files, {other} and b.jsonl; name the"):
        read_texts(tmp_path)


def test_cells_of_a_table_are_text(tmp_path):
    rows = b'\xef\xbb\xbfprompt,completion,id\r\n"a ""b"",\n c",None,007\r\n\r\nd,1.0,\r\n'
    (tmp_path / "a.csv").write_bytes(rows)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"prompt\tcompletion\na, b\tc\n"))
    found = read_demonstrations(tmp_path / "a.csv")
    assert found == [
        {"prompt": 'a "b",\n c', "completion": "None", "id": "007"},
        {"prompt": "d", "completion": "1.0", "id": None},
    ]
    assert [place.rpartition(":")[2] for place in found.places] == ["2", "5"]
    assert read_demonstrations(tmp_path / "a.tsv.gz") == [{"prompt": "a, b", "completion": "c"}]


def test_who_is_named_is_text_and_null_is_absent():
    """The reward model's accuracy is sorted by labeler: a number beside a text, or a null, would
    end a run there.
    """
    records = [{"labeler_id": 7}, {"labeler_id": None, "source": "hh"}, {"labeler_id": None}, {}]
    assert [named(record, "labeler_id", "source", default="unknown") for record in records] == [
        "7",
        "hh",
        "unknown",
        "unknown",
    ]


def test_dates_of_a_data_set_become_text(tmp_path, monkeypatch):
    """JSON has none, and `compare` writes what it read."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_list([{"prompt": "p", "made": datetime.datetime(2020, 1, 2)}]).to_parquet(
        tmp_path / "a.parquet"
    )
    [record] = read_prompts(tmp_path / "a.parquet")
    assert record == {"prompt": "p", "made": "2020-01-02 00:00:00"}
