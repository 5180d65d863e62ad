"""`data clean`, from files to files."""

import collections
import dataclasses
import itertools
import json
import os
import random
import re
import sys
from pathlib import Path

import pytest
import userfiles
from data.wordtok import gpt2_folder

from instruct_jax.chain.load import load_config
from instruct_jax.cleaning.clean import (
    CleanConfig,
    CleanData,
    LanguagesConfig,
    OverlapConfig,
    PersonalConfig,
    cleaned,
)
from instruct_jax.cleaning.filters import KINDS, SPLITS, contents, normal
from instruct_jax.cleaning.summary import KEEP, describe, table
from instruct_jax.cli import main
from instruct_jax.data import public_sets, readers

ROOT = os.environ.get("INSTRUCT_JAX_DATA", "")
DOCS = Path(__file__).parents[2] / "docs" / "hygiene.md"
CONFIG = """
out: out
data:
  tokenizer: tok
  prompts: [p1.jsonl, p2.jsonl]
  demonstrations: [demos.jsonl]
  rankings: [ranks.jsonl]
  on_bad_record: skip
max_prompt: 60
prefix: 20
per_user: 3
valid: 0.3
test: 0.3
overlap: {files: {questions.jsonl: question}, ngram: 4}
"""
CLEAN = ["data", "clean", "--config", "clean.yaml"]
ONLY_PROMPTS = ["--data.rankings", "[]", "--data.demonstrations", "[]"]


def records(seed: int) -> dict[str, list]:
    """Random records with all that the steps look for."""
    draw = random.Random(seed)
    words = "alpha beta gamma delta omega".split()

    def prompt():
        text = " ".join(draw.choices(words, k=draw.randint(1, 7)))
        return draw.choice(
            [
                text,
                text + " a@b.org",
                [{"role": "user", "content": text}],
                "Tell me what love really is, " + text,
            ]
        )

    def record(i, **fields):
        return {
            "prompt": prompt(),
            "id": i,
            "user_id": draw.choice([None, *range(15)]),
            "use_case": draw.choice(["chat", None]),
        } | fields

    return {
        "p1.jsonl": (
            [record(i) for i in range(60)]
            + [{"prompt": 1}, {"prompt": "who was the FIRST on top of it, then?"}]
        ),
        "p2.jsonl": [record(i) for i in range(60)],
        "demos.jsonl": (
            [record(i, completion=draw.choice(words)) for i in range(60)]
            + [{"prompt": "again", "completion": text} for text in "xy"]
        ),
        "ranks.jsonl": [
            record(i, completions=["x", "y +1 555 123 4567"], ranks=draw.choice([[1, 2], [2, 1]]))
            for i in range(30)
        ],
        "questions.jsonl": [
            {"question": "Tell me what love really is."},
            {"question": "Who was the first on top of it?"},
        ],
    }


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    gpt2_folder(tmp_path / "tok")
    (tmp_path / "clean.yaml").write_text(CONFIG)
    for name, rows in records(0).items():
        userfiles.write(tmp_path / name, rows)
    return tmp_path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, list[str]]:
    """The written files, except those that name places and times."""
    return {
        str(path.relative_to(folder)): path.read_text().splitlines()
        for path in sorted(folder.glob("*/*.jsonl"))
    }


def test_every_record_is_written_or_dropped_for_a_reason(place, capsys):
    assert main(CLEAN) == 0
    shown, summary = capsys.readouterr().out, json.loads((place / "out/summary.json").read_text())
    flow = {row["kind"]: row for row in summary["flow"]}
    read = {"prompts": 122, "demonstrations": 62, "rankings": 30}
    assert {kind: row["read"] for kind, row in flow.items()} == read
    dropped = lines(place / "out/dropped.jsonl")
    reasons = {"bad record", "too long", "overlap", "duplicate", "shared prefix", "over the cap"}
    assert {row["reason"] for row in dropped} == reasons
    places = {f"{name}:{i}" for name in records(0) for i in range(1, 63)}
    for row in dropped:
        if row["reason"] in ("duplicate", "shared prefix"):
            assert row["of"] in places
            assert row["of"] != row["place"]
    counted = collections.Counter((row["kind"], row["reason"]) for row in dropped)
    for kind in KINDS:
        total = 0
        for part in SPLITS:
            written = len(lines(place / f"out/{part}/{kind}.jsonl"))
            assert flow[kind][part] == written
            total += written
        for reason in reasons:
            assert flow[kind][reason] == counted[kind, reason]
            total += counted[kind, reason]
        assert read[kind] == total
    assert sum(row["records"] for row in summary["sizes"]) + len(dropped) == 214

    def by_kind(name, column):
        totals = collections.Counter()
        for row in summary[name]:
            totals[row["kind"]] += row[column]
        return totals

    prompts = by_kind("sizes", "prompts")
    texts = []
    for part in SPLITS:
        for record in lines(place / f"out/{part}/demonstrations.jsonl"):
            texts.append(normal(contents(record["prompt"])[0]))
    assert prompts["demonstrations"] == len(set(texts)) < len(texts)
    assert by_kind("use_cases", "prompts") == prompts
    assert by_kind("tokens", "count") == prompts
    assert by_kind("tokens_by_use_case", "count") == prompts
    assert {row["use case"] for row in summary["use_cases"]} == {"chat", "(none given)"}
    users = {(row["kind"], row["split"]): row for row in summary["users"]}
    for size in summary["sizes"]:
        row = users[size["kind"], size["split"]]
        assert row["users"] * row["prompts for each"] == pytest.approx(size["user"])
        assert row["most"] <= 3
    assert "prompts: 122 read, " in shown and "done: out, see out/summary.md" in shown


def test_what_is_written_can_be_read(place):
    """The readers of a run read one file of each kind; nobody is in two splits; only the training
    split is without personal data.
    """
    assert main(CLEAN) == 0
    users, text = {}, {}
    for part in SPLITS:
        records = []
        for kind in KINDS:
            records += public_sets.load(kind, f"out/{part}/{kind}.jsonl")
        names = [str(record["user_id"]) for record in records if record.get("user_id") is not None]
        users[part] = set(names)
        text[part] = json.dumps(records)
    assert all(users.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not users[one] & users[other]
    assert "a@b.org" not in text["train"]
    assert "[EMAIL]" in text["train"]
    assert "[PHONE]" in text["train"]
    measured = text["valid"] + text["test"]
    assert "a@b.org" in measured
    assert "[EMAIL]" not in measured
    summary = json.loads((place / "out/summary.json").read_text())
    assert {row["found"] for row in summary["personal"]} == {"EMAIL", "PHONE"}


def test_the_order_of_files_and_lines_changes_nothing(place):
    assert main(CLEAN) == 0
    for name, rows in records(0).items():
        random.Random(1).shuffle(rows)
        userfiles.write(place / name, rows)
    assert main([*CLEAN, "--out", "other", "--data.prompts", "[p2.jsonl, p1.jsonl]"]) == 0
    assert files(place / "out") == files(place / "other") and files(place / "out")
    assert (place / "out/summary.json").read_text() == (place / "other/summary.json").read_text()
    assert main([*CLEAN, "--out", "third", "--seed", "1"]) == 0
    assert files(place / "out") != files(place / "third")


OFF = {
    "bad record": (),
    "too long": ("--max_prompt", "null", "--max_completion", "null"),
    "overlap": ("--overlap", "null"),
    "duplicate": ("--exact", "false"),
    "shared prefix": ("--prefix", "null"),
    "over the cap": ("--per_user", "null"),
}


@pytest.mark.parametrize("reason", [reason for reason in OFF if OFF[reason]])
def test_each_step_has_a_switch(reason, place):
    config = load_config(CleanConfig, "clean.yaml", OFF[reason])
    reasons = {drop.reason for _, drop in cleaned(config).dropped}
    assert reasons == OFF.keys() - {"bad record", reason}


def test_all_switches_off_keeps_all(place):
    off = [word for words in OFF.values() for word in words]
    assert main([*CLEAN, *off, "--valid", "0", "--test", "0", "--pii", "null"]) == 0
    assert {name: len(rows) for name, rows in files(place / "out").items()} == {
        "train/prompts.jsonl": 121,
        "train/demonstrations.jsonl": 62,
        "train/rankings.jsonl": 30,
    }
    ids = [record.get("id") for record in readers.read_prompts("out/train/prompts.jsonl")]
    assert len(set(map(str, ids))) == 121 and "59#2" in ids and None in ids


def test_records_with_personal_data_can_be_dropped(place):
    whole = cleaned(load_config(CleanConfig, "clean.yaml"))
    left = cleaned(load_config(CleanConfig, "clean.yaml", ["--pii.action", "drop"]))
    private = [item for item, drop in left.dropped if drop.reason == "personal data"]
    assert private
    assert len(left.dropped) - len(whole.dropped) == len(private)
    assert len(whole.written) - len(left.written) == len(private)
    assert left.personal == whole.personal
    assert not any("[" in str(item.prompt) for item, _ in left.written)


def test_a_step_that_drops_most_of_a_file_is_named(place, capsys):
    """All prompts of one file begin with the same preamble; those of the other file do not."""
    preamble = "Answer as a careful clerk of the city library would. "
    rows = [{"prompt": f"{preamble}Where is shelf {i}?"} for i in range(10)]
    userfiles.write(place / "p1.jsonl", rows)
    userfiles.write(place / "p2.jsonl", [{"prompt": f"{i} beta?"} for i in range(50)])
    words = [*CLEAN, *ONLY_PROMPTS, "--max_prompt", "null"]
    assert main(words) == 0
    summary = json.loads((place / "out/summary.json").read_text())
    [row] = summary["mostly_dropped"]
    assert (row["file"], row["reason"], row["dropped"], row["read"]) == (
        "p1.jsonl",
        "shared prefix",
        9,
        10,
    )
    assert re.fullmatch(
        r"p1.jsonl:\d+: the same first 20 characters \(p1.jsonl:\d+\)", row["such as"]
    )
    assert "Warning: one step dropped" in (place / "out/summary.md").read_text()
    shown = capsys.readouterr().out
    assert (
        f"warning: p1.jsonl: shared prefix dropped 9 of 10 prompts, such as {row['such as']}; to"
        " keep them raise prefix, or set it to null\n"
    ) in shown
    assert main([*words, "--prefix", "null", "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().out
    assert "Warning" not in (place / "out/summary.md").read_text()


def test_every_reason_says_how_its_records_are_kept(place):
    result = cleaned(load_config(CleanConfig, "clean.yaml", ["--pii.action", "drop"]))
    reasons = {drop.reason for _, drop in result.dropped}
    assert KEEP.keys() == reasons | {"language"}


def test_languages(place):
    pytest.importorskip("py3langid", reason="needs the extra language")
    userfiles.write(
        place / "p1.jsonl",
        [{"prompt": "Schreibe bitte eine kurze Geschichte \u00fcber eine Katze in Berlin."}],
    )
    userfiles.write(
        place / "p2.jsonl",
        [{"prompt": "Please write a short story about a cat in Berlin."}, {"prompt": "cat"}],
    )
    words = ["--languages", "{}", "--max_prompt", "null", *ONLY_PROMPTS]
    result = cleaned(load_config(CleanConfig, "clean.yaml", words))
    assert [(item.place, drop.reason, drop.detail[:2]) for item, drop in result.dropped] == [
        ("p1.jsonl:1", "language", "de")
    ]


def test_a_data_set_of_datasets(place):
    import datasets

    rows = [{"prompt": f"tell {i}", "user_id": str(i)} for i in range(9)]
    datasets.Dataset.from_list(rows).save_to_disk("set")
    assert main([*CLEAN, "--data.prompts", "[set]", *ONLY_PROMPTS]) == 0
    assert sum(len(rows) for rows in files(place / "out").values()) == 9


def test_a_folder_that_exists_is_left_alone(place, capsys):
    assert main(CLEAN) == 0
    capsys.readouterr()
    before = files(place / "out")
    userfiles.refused(main, [*CLEAN, "--seed", "1"], ("out exists", "--overwrite"), capsys)
    assert files(place / "out") == before
    assert main([*CLEAN, "--seed", "1", "--overwrite"]) == 0 and files(place / "out") != before
    capsys.readouterr()
    userfiles.refused(
        main,
        [*CLEAN, "--out", "tok", "--overwrite"],
        ("tok was not made by data clean", "another folder"),
        capsys,
    )
    userfiles.refused(
        main, [*CLEAN, "--out", "p1.jsonl/out"], ("p1.jsonl/out", "choose another folder"), capsys
    )
    assert (place / "tok/vocab.bpe").exists() and not list(place.glob("*.partial"))


def test_a_bucket_is_refused(place, capsys):
    before = set(place.iterdir())
    message = ("out=gs://bucket/out is no folder on this machine", "mount it")
    userfiles.refused(main, [*CLEAN, "--out", "gs://bucket/out"], message, capsys)
    assert set(place.iterdir()) == before


BAD = {
    "--data.prompts=[nowhere.jsonl]": "nowhere.jsonl: no such file",
    "--data.on_bad_record=error": "p1.jsonl:61: prompt=1 must be text",
    "--data.prompts=[p1.jsonl,p1.jsonl]": "names a file twice",
    "--data={tokenizer: tok}": "names no records",
    "--per_user=0": "per_user=0 must be at least 1",
    "--valid=0.9": "must lie in [0, 1)",
    "--overlap.files={questions.jsonl: answer}": (
        "questions.jsonl:1: answer=null is no text; there are ['question']"
    ),
    "--languages.keep=[english]": "languages.keep=['english'] cannot be found",
    "--pii.action=hide": "pii.action='hide' must be one of mask, drop",
    "--ppo.batch=8": "ppo",
}


@pytest.mark.parametrize("word", BAD)
def test_bad_input(word, place, capsys):
    if "languages" in word:
        pytest.importorskip("py3langid", reason="needs the extra language")
    code = main([*CLEAN, word])
    shown = capsys.readouterr().err
    assert code == 2
    assert BAD[word] in shown
    assert "Traceback" not in shown
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("py3langid", ["--languages", "{}"], "language"),
        ("presidio_analyzer", ["--pii.library", "presidio"], "pii"),
    ],
)
def test_an_extra_that_is_missing_is_named(module, words, extra, place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    userfiles.refused(main, [*CLEAN, *words], (f"pip install '.[{extra}]'",), capsys)


def test_the_numbers_of_a_table():
    assert describe([1, 2, 3, 10]) == pytest.approx(
        {
            "count": 4,
            "mean": 4.0,
            "std": 12.5**0.5,
            "min": 1,
            "p25": 1.75,
            "p50": 2.5,
            "p75": 4.75,
            "max": 10,
        }
    )
    assert (
        table([{"a": "x|y", "n": 1000, "share": 0.125}])
        == "| a | n | share |\n| --- | --: | --: |\n| x\\|y | 1,000 | 12.5\u00a0% |"
    )


def test_every_key_is_explained_with_its_default():
    keys = DOCS.read_text(encoding="utf-8").partition("## The keys")[2]
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", keys, re.MULTILINE))
    expected = {}
    for prefix, cls in SECTIONS.items():
        expected |= defaults(prefix, cls)
    assert rows == expected


SECTIONS = {
    "": CleanConfig,
    "data.": CleanData,
    "languages.": LanguagesConfig,
    "overlap.": OverlapConfig,
    "pii.": PersonalConfig,
}


def defaults(prefix: str, cls: type):
    """(key, default as the docs write it)"""
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            default = f"`{json.dumps(field.default_factory())}`"
        elif field.default is dataclasses.MISSING:
            default = "required"
        elif dataclasses.is_dataclass(field.default):
            default = "section"
        else:
            default = f"`{json.dumps(field.default)}`"
        yield prefix + field.name, default


@pytest.mark.skipif(not ROOT, reason="real data: set INSTRUCT_JAX_DATA to the folder that holds it")
def test_real_data(place):
    """Open Assistant's follow-up turns begin like the turn before them; one reply quotes what BoolQ
    quotes.
    """
    (place / "clean.yaml").write_text(f"""
out: out
data:
  tokenizer: {ROOT}/gpt2_bpe
  prompts: ["self_instruct:{ROOT}", "oasst:{ROOT}"]
  demonstrations: ["oasst:{ROOT}"]
overlap: {{files: {{{ROOT}/superglue/boolq_val.jsonl.gz: passage}}}}
""")
    result = cleaned(load_config(CleanConfig, "clean.yaml"))
    counts = collections.Counter((item.kind, drop.reason) for item, drop in result.dropped)
    assert counts == {
        ("prompts", "shared prefix"): 165,
        ("prompts", "too long"): 10,
        ("demonstrations", "overlap"): 1,
        ("demonstrations", "shared prefix"): 39,
        ("demonstrations", "too long"): 8,
    }
    assert len(result.written) + len(result.dropped) == 252 + 480 + 252
    users = {(part, item.user) for item, part in result.written if item.user}
    assert len(users) == len({user for _, user in users}) == 71
