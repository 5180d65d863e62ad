"""Who gets which task, and what the store keeps."""

import sqlite3

import pytest

from instruct_jax.data import readers
from instruct_jax.errors import DataError
from instruct_jax.feedback import instructions, progress, store
from instruct_jax.feedback.records import export
from instruct_jax.feedback.tasks import Reply, task

RANKED = Reply(ranks=[1, 2], likert=[5, 3], flags=[{"violent": False}] * 2, notes=["", "short"])
SAMPLES = [
    {"prompt": f"p{i}", "completions": ["x", "y"], "models": ["m", "n"], "id": i} for i in range(6)
]


@pytest.fixture
def db(tmp_path):
    connection = store.create_store(tmp_path / "labels.db")
    with store.writing(connection):
        for name, team in {
            "ann": "training",
            "ben": "training",
            "cas": "training",
            "dot": "held-out",
        }.items():
            connection.execute(
                "INSERT INTO labelers (name, team, admin) VALUES (?, ?, 0)", (name, team)
            )
    yield connection
    connection.close()


def fill(db, samples=SAMPLES, **options):
    found = [task(sample) for sample in samples]
    store.add_tasks(db, found, **options)
    return [of.id for of in found]


def answer(db, name, reply=RANKED, now=0.0):
    """The labeler takes the next task and answers it; its id."""
    found = store.lease(db, name, now, 60)
    assert found is not None and store.submit(
        db, found, name, f"{found} {name}", reply, shown=[1, 0], seconds=9.5, now=now
    )
    return found


def test_adding_again_adds_nothing(db):
    fill(db, SAMPLES[:4])
    assert store.add_tasks(db, [task(sample) for sample in SAMPLES]) == 2


def test_a_task_is_in_one_hand_until_its_lease_lapses(db):
    first, second, *_ = fill(db)
    assert store.lease(db, "dot", 0, 60) == first, "held-out labelers take nothing from the others"
    assert store.lease(db, "ann", 0, 60) == first == store.lease(db, "ann", 50, 60)
    assert store.lease(db, "ben", 0, 60) == second
    assert store.lease(db, "cas", 61, 60) == first, "it lapsed, and comes back"
    assert store.submit(db, first, "ann", "f", RANKED, shown=[0, 1], seconds=1, now=70), (
        "late work is kept"
    )
    assert [found.labeler for found in store.answers(db)] == ["ann"]


def test_overlap(db):
    """Every task for two training labelers; held-out labelers take nothing from them."""
    ids = fill(db, SAMPLES[:2], labelers=2, overlap=1.0)
    for name in ("ann", "ben", "dot"):
        assert [answer(db, name), answer(db, name)] == ids and store.lease(db, name, 0, 60) is None
    assert store.lease(db, "cas", 0, 60) is None
    assert progress.by_kind(db) == [("rank", 2, 2, 6, 0)]


def test_the_share_of_the_overlap(db):
    fill(db, [{"prompt": f"{i}"} for i in range(1000)], labelers=3, overlap=0.2)
    counts = dict(
        map(tuple, db.execute("SELECT left_training, count(*) FROM tasks GROUP BY left_training"))
    )
    assert counts.keys() == {1, 3} and 150 < counts[3] < 250


def test_screening_comes_first_and_is_for_everybody(db):
    known = {"ranks": [2, 1], "flags": [{}, {"violent": True}]}
    *_, screened = fill(db, [*SAMPLES, {"prompt": "s", "completions": ["x", "y"], "known": known}])
    assert [answer(db, name) for name in ("ann", "ben", "cas", "dot")] == [screened] * 4
    assert {found.task_id: found.known for found in store.answers(db)} == {screened: known}


def test_a_skipped_task_goes_to_others_and_rests_after_three(db):
    (only,) = fill(db, SAMPLES[:1])
    for name in ("ann", "ben", "cas"):
        assert answer(db, name, Reply(skipped="unclear")) == only
    assert store.lease(db, "dot", 0, 60) is None and progress.by_kind(db) == [("rank", 1, 1, 0, 3)]


def test_one_answer_for_each_labeler_and_task(db):
    (only,) = fill(db, SAMPLES[:1])
    assert store.lease(db, "ann", 0, 60) == only
    send = {"shown": [0, 1], "seconds": 1.0, "now": 2.0}
    assert store.submit(db, only, "ann", "form", RANKED, **send) and store.submit(
        db, only, "ann", "form", RANKED, **send
    )
    assert not store.submit(db, only, "ann", "other form", Reply(skipped="x"), **send)
    assert [found.ranks for found in store.answers(db)] == [[1, 2]]
    with pytest.raises(LookupError):
        store.submit(db, only, "ben", "f", RANKED, **send)
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(
            "INSERT INTO answers SELECT NULL, task, labeler, 'g', ranks, likert, flags, notes,"
            " text, skipped, shown, 1, 1, 1 FROM answers"
        )


def test_a_transaction_is_all_or_nothing(db):
    (only,) = fill(db, SAMPLES[:1])
    store.lease(db, "ann", 0, 60)
    db.execute("CREATE TRIGGER broken BEFORE UPDATE ON tasks BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        store.submit(db, only, "ann", "form", RANKED, shown=[0, 1], seconds=1, now=2)
    assert not store.answers(db) and store.open_lease(db, only, "ann") is not None


def test_the_version_that_the_labeler_had(db):
    fill(db)
    answer(db, "ann")
    opened = store.lease(db, "ben", 0, 60)
    instructions.write(db, "new", "boss", 1.0)
    assert instructions.changed(db, "ann") and not instructions.changed(db, "cas")
    answer(db, "ann")
    assert opened is not None
    store.submit(db, opened, "ben", "f", RANKED, shown=[0, 1], seconds=1, now=2)
    assert [(found.labeler, found.instructions) for found in store.answers(db)] == [
        ("ann", 1),
        ("ann", 2),
        ("ben", 1),
    ]
    assert (
        next(version.text for version in instructions.versions(db)) == "new"
        and len(instructions.versions(db)) == 2
    )


def test_every_answer_is_exported_once_and_the_readers_take_it(db, tmp_path):
    fill(
        db,
        [
            *SAMPLES,
            {"prompt": "s", "completions": ["x", "y"], "known": {"ranks": [1, 2]}},
            {"prompt": "d", "use_case": "poem"},
        ],
    )
    store.add_tasks(db, [task({"prompt": "c", "completions": ["x", "y"]}, compare=True)])
    for labeler in ("dot", "dot", "ann"):  # screening, held out, screening
        answer(db, labeler)
    answer(db, "ann")
    answer(db, "ann", Reply(skipped="why"))
    answer(db, "ann", Reply(ranks=[1, 1], likert=[4, 4], flags=[{}, {}], notes=["", ""]))
    for _ in range(3):
        answer(db, "ann")
    answer(db, "ann", Reply(text="Roses."))
    answer(db, "ann")
    found = export(store.answers(db), store.tasks(db))
    assert {name: len(records) for name, records in found.items()} == {
        "rankings.jsonl": 4,
        "demonstrations.jsonl": 1,
        "comparisons.jsonl": 1,
        "held_out_rankings.jsonl": 1,
        "held_out_demonstrations.jsonl": 0,
        "ties.jsonl": 1,
        "screening.jsonl": 2,
        "skipped.jsonl": 1,
    }
    for name, records in found.items():
        readers.write_jsonl(tmp_path / name, records)
    first = readers.read_rankings(tmp_path / "rankings.jsonl")[0]
    assert (first["sample_id"], first["models"], first["labeler_id"], first["ranks"]) == (
        0,
        ["m", "n"],
        "ann",
        [1, 2],
    )
    assert (
        first["likert"] == [5, 3]
        and first["flags"] == [{"violent": False}] * 2
        and first["notes"] == ["", "short"]
    )
    demonstration = readers.read_demonstrations(tmp_path / "demonstrations.jsonl")[0]
    assert (demonstration["completion"], demonstration["use_case"]) == ("Roses.", "poem")
    assert readers.read_rankings(tmp_path / "held_out_rankings.jsonl")[0]["held_out"] is True


def test_counts_of_hours_and_times(db):
    fill(db)
    for now in (1000.0, 1001.0, 8000.0):
        answer(db, "ann", now=now)
    assert progress.per_hour(db, 8001.0, 3) == [0, 2, 1]
    assert progress.median_seconds(store.answers(db)) == {"ann": 9.5}
    assert [(row.name, row.answers, row.last) for row in progress.by_labeler(db)][:2] == [
        ("ann", 3, 8000.0),
        ("ben", 0, None),
    ]


def test_an_answer_is_on_the_disk(db, tmp_path):
    """WAL with a sync at the commit: what SQLite promises to outlive a loss of power; for its owner
    only.
    """
    fill(db)
    found = store.lease(db, "ann", 0, 60)
    assert found is not None
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    store.submit(db, found, "ann", "f", RANKED, shown=[0, 1], seconds=1, now=2)
    assert (
        statements[0] == "PRAGMA synchronous = FULL"
        and statements[1] == "BEGIN IMMEDIATE"
        and statements[-1] == "COMMIT"
    )
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert (tmp_path / "labels.db").stat().st_mode & 0o777 == 0o600


def test_a_backup_is_a_store(db, tmp_path):
    fill(db)
    answer(db, "ann")
    db.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    backup = store.open_store(tmp_path / "backup.db")
    assert (
        store.answers(backup) == store.answers(db) and store.lease(backup, "ann", 0, 60) is not None
    )
    backup.close()


def test_what_is_no_store(tmp_path):
    with pytest.raises(DataError, match="no such store"):
        store.open_store(tmp_path / "none.db")
    (tmp_path / "text.db").write_text(
        "no database, but long enough to have a header of one hundred bytes" * 9
    )
    with pytest.raises(DataError, match="cannot be opened as a store"):
        store.open_store(tmp_path / "text.db")
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    for use in (store.open_store, store.create_store):
        with pytest.raises(DataError, match="is no store of the labeling page"):
            use(tmp_path / "other.db")
