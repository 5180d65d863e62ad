"""The command `label`, from samples to records that the next stages take, and what it refuses."""

import contextlib
import importlib.util
import json
import socket
import time

import pytest
import userfiles

from instruct_jax.cli import main
from instruct_jax.data.readers import read_demonstrations, read_rankings
from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.command import reach
from instruct_jax.feedback.tasks import Reply

SAMPLES = [
    {
        "prompt": "a b",
        "completions": ["c", "d", "e"],
        "models": ["sft", "ppo", "ppo"],
        "ended": [True, False, True],
        "id": "7",
    },
    {"prompt": "c d"},
    {"prompt": "e", "completions": ["f", "g"]},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    userfiles.write(tmp_path / "samples.jsonl", SAMPLES)
    return tmp_path


def add(capsys, *options):
    assert (
        main(["label", "add", "--samples", "samples.jsonl", "--store", "labels.db", *options]) == 0
    )
    return capsys.readouterr().out


def test_from_samples_to_the_stages(place, capsys):
    """Answers leave as files that `check` reads for sft and reward, the config that the stages
    would run with.
    """
    assert add(capsys) == "labels.db: 3 new tasks of 3 samples\n"
    assert add(capsys) == "labels.db: 0 new tasks of 3 samples; the others were there\n"
    assert main(["label", "invite", "ann", "--store", "labels.db"]) == 0
    link = capsys.readouterr().out.strip()
    with contextlib.closing(store.open_store("labels.db")) as db:
        assert accounts.accept(db, link.rpartition("/")[2], "long enough", time.time()) is not None
        ranked = Reply(
            ranks=[2, 1, 2],
            likert=[3, 5, 3],
            flags=[{"violent": True}, {}, {}],
            notes=["x", "", ""],
        )
        for reply in (ranked, Reply(text="f g"), Reply(skipped="unclear")):
            task = store.lease(db, "ann", 0, 60)
            store.submit(db, str(task), "ann", str(task), reply, shown=[], seconds=9, now=5)
    assert main(["label", "status", "--store", "labels.db"]) == 0
    assert (
        "rank: 2 tasks, 1 finished, 1 answers, 1 skipped\nann: training, 3 answers, 1 skipped"
        in capsys.readouterr().out
    )
    assert main(["label", "export", "--store", "labels.db", "--out", "out"]) == 0
    assert (
        "out/rankings.jsonl: 1 records\nout/demonstrations.jsonl: 1 records\n"
        in capsys.readouterr().out
    )
    (ranking,) = map(json.loads, (place / "out/rankings.jsonl").read_text().splitlines())
    wanted = SAMPLES[0] | {
        "ranks": [2, 1, 2],
        "likert": [3, 5, 3],
        "labeler_id": "ann",
        "sample_id": "7",
        "id": ranking["id"],
    }
    assert ranking.items() >= wanted.items() and ranking["flags"][0] == {"violent": True}
    config = userfiles.make(place) / "run.yaml"
    config.write_text(
        config.read_text()
        .replace("demos.jsonl", "out/demonstrations.jsonl")
        .replace("ranks.jsonl]", "ranks.jsonl, out/rankings.jsonl]")
    )
    assert main(["check", "--config", "run.yaml", "--stages", "pretrain,sft,reward"]) == 0
    assert (
        "1 demonstrations, 1 rows in sft" in (shown := capsys.readouterr().out)
        and "5 rankings of 15 completions" in shown
    )
    assert main(["label", "close", "ann", "--store", "labels.db"]) == 0


REFUSED = {
    "a bad line": (
        ["add", "--samples", "bad.jsonl"],
        ("bad.jsonl:2: completions=['x'] has K = 1", "give 2 to 9 completions"),
    ),
    "models": (
        ["--samples", "models.jsonl"],
        ("models.jsonl:1: models=['m'] must hold the names of 2 models",),
    ),
    "three to compare": (
        ["add", "--task", "compare", "--samples", "samples.jsonl"],
        ("samples.jsonl:1: completions=", "has K = 3"),
    ),
    "no samples": (["add", "--samples", "none.jsonl"], ("none.jsonl: no such file",)),
    "no store": ([], ("labels.db: no such store; make one with instruct-jax label --samples",)),
    "no account": (["close", "bob"], ("NAME='bob' has no account in labels.db",)),
    "a name": (["invite", "b\nb"], ("NAME='b\\nb' must be 1 to 60 printable characters",)),
    "a bucket": (
        ["export", "--out", "gs://bucket/out"],
        ("--out=gs://bucket/out is no folder on this machine", "mount it"),
    ),
    "there already": (
        ["export", "--out", "."],
        ("--out . is there already, and nothing is overwritten",),
    ),
    "a share": (
        ["add", "--samples", "samples.jsonl", "--overlap", "20"],
        ("--overlap 20.0 must lie in [0, 1]",),
    ),
    "an address": (["--host", "256.1.1.1"], ("--host 256.1.1.1 --port 8000: cannot listen there",)),
    "no port": (["--port", "70000"], ("--port 70000 must lie in [0, 65535]",)),
    "no lease": (["--lease", "0"], ("--lease 0.0 must be positive",)),
    "no url": (
        ["--url", "label.example.org"],
        ("--url label.example.org must begin with https://",),
    ),
}


def names(place):
    return {path.name for path in place.iterdir()}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_one_message(name, place, capsys):
    argv, message = REFUSED[name]
    userfiles.write(place / "bad.jsonl", [SAMPLES[0], {"prompt": "a", "completions": ["x"]}])
    userfiles.write(
        place / "models.jsonl", [{"prompt": "a", "completions": ["x", "y"], "models": ["m"]}]
    )
    if name not in ("a bad line", "models", "no store", "no samples", "three to compare"):
        add(capsys)
    before = names(place)
    userfiles.refused(main, ["label", *argv, "--store", "labels.db"], message, capsys)
    assert names(place) == before


def test_a_store_in_a_bucket(place, capsys):
    userfiles.refused(
        main,
        ["label", "add", "--samples", "samples.jsonl", "--store", "gs://bucket/labels.db"],
        ("--store=gs://bucket/labels.db is no folder on this machine",),
        capsys,
    )
    assert names(place) == {"samples.jsonl"}


def test_a_port_that_is_taken(place, capsys):
    add(capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        userfiles.refused(
            main,
            ["label", "--store", "labels.db", "--port", port],
            (f"--port {port}: cannot listen", "choose another"),
            capsys,
        )


def test_bad_samples_are_skipped_and_listed(place, capsys, caplog):
    userfiles.write(place / "samples.jsonl", [*SAMPLES, {"prompt": "a", "completions": ["x", ""]}])
    assert add(capsys, "--on_bad_record", "skip") == "labels.db: 3 new tasks of 3 samples\n"
    assert "samples.jsonl:4: completions[1]='' is empty" in caplog.text


def test_a_missing_library_names_the_extra(place, capsys, monkeypatch):
    add(capsys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    userfiles.refused(
        main,
        ["label", "--store", "labels.db"],
        ("needs itsdangerous", "pip install '.[label]'"),
        capsys,
    )


def test_who_can_reach_the_page():
    assert "this machine only" in reach("127.0.0.1") and "this machine only" in reach("::1")
    assert "other machines reach it, and passwords travel unencrypted" in reach("0.0.0.0")


@pytest.mark.parametrize(
    ("argv", "code"), [(["--help"], 0), (["serve", "--help"], 0), (["dance"], 2), (["invite"], 2)]
)
def test_help(argv, code, capsys):
    assert main(["label", *argv]) == code
    capsys.readouterr()


def test_to_other_tools_and_back(place, capsys):
    """Every form can be written; what Label Studio and Argilla would give back are the records that
    we export ourselves.
    """
    add(capsys)
    with contextlib.closing(store.open_store("labels.db")) as db:
        for who in ("ann", "bob"):
            accounts.invite(db, who, "training", admin=False, now=time.time())
        while task := store.lease(db, "ann", time.time(), 60):
            k = len(store.tasks(db)[task].completions)
            reply = Reply(text="f g")
            if k:
                ranks = [*range(1, k + 1)]
                reply = Reply(ranks=ranks, likert=[4] * k, flags=[{}] * k, notes=[""] * k)
            store.submit(db, task, "ann", task, reply, shown=[], seconds=9, now=5)
    for form in ("records", "datasets", "label-studio", "argilla"):
        argv = ["label", "export", "--store", "labels.db", "--out", form, "--format", form]
        assert main(argv) == 0
    for form in ("label-studio", "argilla"):
        file, out = f"{form}/tasks.json", f"from-{form}"
        assert main(["label", "import", file, "--format", form, "--out", out]) == 0
    assert read_rankings("datasets/rankings")
    assert read_demonstrations("datasets/demonstrations")
    ranking_keys = ("prompt", "completions", "ranks", "likert", "models", "labeler_id")
    demonstration_keys = ("prompt", "completion", "labeler_id")
    for kind, keys, read in (
        ("rankings", ranking_keys, read_rankings),
        ("demonstrations", demonstration_keys, read_demonstrations),
    ):

        def fields(folder, kind=kind, keys=keys, read=read):
            records = read(f"{folder}/{kind}.jsonl")
            return [{key: record.get(key) for key in keys} for record in records]

        ours = fields("records")
        assert len(ours)
        assert fields("from-label-studio") == ours
        assert fields("from-argilla") == ours
    capsys.readouterr()
    assert main(["label", "agreement", "--store", "labels.db"]) == 0
    assert "agreement on pairs" in capsys.readouterr().out


IMPORT = ["label", "import", "theirs.json", "--format", "label-studio", "--out", "new"]
PAIR = {
    "type": "pairwise",
    "from_name": "better",
    "to_name": "a,b",
    "value": {"selected": "right"},
}
CHOICES = {"type": "choices", "from_name": "topic", "to_name": "a", "value": {"choices": ["x"]}}


def theirs(place, *results, encoding="utf-8"):
    """An export of Label Studio with one annotation for each result."""
    annotations = [{"result": [result]} for result in results]
    tasks = [{"id": 1, "data": {"prompt": "p", "a": "x", "b": "y"}, "annotations": annotations}]
    (place / "theirs.json").write_text(json.dumps(tasks), encoding=encoding)


NOT_THEIRS = {
    "an object": ("{}", "theirs.json:1: data=null is no object"),
    "no JSON": ("[", "is not JSON"),
    "no objects": ('["x"]', "record 1: record='x' must be an object"),
    "empty": ("[]", "theirs.json: no records"),
    "half a surrogate pair": ('[{"data": "\\ud83d"}]', "half a surrogate pair"),
}


@pytest.mark.parametrize(("text", "says"), NOT_THEIRS.values(), ids=NOT_THEIRS)
def test_what_another_tool_did_not_write_is_refused(text, says, place, capsys):
    (place / "theirs.json").write_text(text)
    userfiles.refused(main, IMPORT, ("theirs.json", says), capsys)
    assert not (place / "new").exists()


def test_nothing_to_import_is_an_error(place, capsys):
    """It says what is there, and what would be read."""
    theirs(place, CHOICES, CHOICES)
    message = ("nothing to import; in 1 record there are 2 x choices 'topic'", "a Ranker")
    userfiles.refused(main, IMPORT, message, capsys)
    (place / "theirs.json").write_text(json.dumps([{"fields": {"prompt": "p"}}]))
    argv = [*IMPORT[:4], "argilla", *IMPORT[5:]]
    message = ("1 x records without a submitted response", "responses to a ranking question")
    userfiles.refused(main, argv, message, capsys)
    assert not (place / "new").exists()


def test_what_is_left_out_is_said(place, capsys):
    theirs(place, PAIR, CHOICES, PAIR | {"value": {}}, encoding="utf-8-sig")
    userfiles.refused(
        main, IMPORT, ("theirs.json: record 1: annotations[2]: better=", "on_bad_record"), capsys
    )
    assert main([*IMPORT, "--on_bad_record", "skip"]) == 0
    shown = capsys.readouterr().out
    assert "new/rankings.jsonl: 1 records\n" in shown
    assert "left out: 1 x choices 'topic'\n" in shown
    assert "dropped: 1 bad answer\n  theirs.json: record 1: annotations[2]: " in shown


def test_options_of_import_that_name_nothing(place, capsys):
    theirs(place, PAIR)
    for words in (["--only", "worse"], ["--rename", "worse=ranks"]):
        userfiles.refused(main, [*IMPORT, *words], (f"{words[0]} worse: nothing in",), capsys)
    assert main([*IMPORT, "--only", "better", "--rename", "better=ranks"]) == 0
    assert read_rankings("new/rankings.jsonl")[0]["ranks"] == [2, 1]
