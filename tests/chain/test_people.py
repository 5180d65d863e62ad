"""Rankings by people: the run waits for the labeling page."""

import threading
import time
import types

import pytest

from instruct_jax.chain import compare, people
from instruct_jax.chain.compare import CompareStage
from instruct_jax.chain.settings import PeopleConfig
from instruct_jax.errors import RunError
from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.tasks import Reply, task

SAMPLES = [
    {
        "prompt": f"question {i}",
        "completions": [f"good {i}", "", f"bad {i}", f"good {i}"],
        "ended": [True, True, False, True],
        "models": list("abcd"),
        "task": {},
    }
    for i in range(4)
]


def test_a_run_waits_for_people(tmp_path, monkeypatch):
    """It goes on when enough are in; ranks lie on the completions that were ranked; held-out people
    make no training data.
    """
    monkeypatch.setattr(people, "POLL", 0.02)
    place, found = tmp_path / "labels.db", []
    cfg = PeopleConfig(str(place), min_ranked_share=0.5, serve=False)
    waiting = threading.Thread(
        target=lambda: found.append(people.ranked_by_people(cfg, SAMPLES[:2], SAMPLES[2:]))
    )
    waiting.start()
    connection = wait_for_tasks(place, 4)
    accounts.invite(connection, "ann", "training", admin=False, now=time.time())
    accounts.invite(connection, "hal", "held-out", admin=False, now=time.time())
    answered(connection, "hal", SAMPLES[0])
    answered(connection, "hal", SAMPLES[2])
    answered(connection, "ann", SAMPLES[0])
    time.sleep(0.2)
    # one of two training prompts is enough, none of the held-out ones is not
    assert waiting.is_alive()
    answered(connection, "ann", SAMPLES[2])
    waiting.join(timeout=10)
    [rankings] = found
    assert [(r["prompt"], r["ranks"], r["labeler_id"]) for r in rankings.train] == [
        ("question 0", [1, 2], "ann")
    ]
    [record] = rankings.train
    assert (record["completions"], record["ended"], record["models"]) == (
        ["good 0", "bad 0"],
        [True, False],
        ["a", "c"],
    )
    assert "task" not in record and record["likert"] == [7, 2]
    assert [r["labeler_id"] for r in rankings.held_out_prompts] == ["ann"]
    assert [r["labeler_id"] for r in rankings.held_out_labelers] == ["hal"]
    connection.close()


def test_people_are_asked_about_the_samples_that_are_there(tmp_path, monkeypatch):
    """Their answers are to these, and other devices would draw others.

    Nobody else's samples are kept.
    """
    drawn = []

    def draw(stage, prompts, purpose):
        drawn.append(purpose)
        return SAMPLES

    monkeypatch.setattr(compare, "_draw", draw)
    by_people = CompareStage(kind="compare", people=PeopleConfig("x.db"))
    for settings, times in ((by_people, 1), (CompareStage(kind="compare"), 3)):
        stage = types.SimpleNamespace(settings=settings, folder=tmp_path)
        for _ in range(2):
            samples = compare._sampled(stage, "samples", [], "compare")  # type: ignore[arg-type]
            assert samples == SAMPLES
        assert len(drawn) == times


def test_without_two_replies_that_differ_nobody_is_asked(tmp_path):
    same = [{**sample, "completions": ["x"] * 4} for sample in SAMPLES]
    with pytest.raises(RunError, match="of 4 samples none has two replies that differ"):
        people.ranked_by_people(PeopleConfig(str(tmp_path / "labels.db"), serve=False), same, same)


def wait_for_tasks(place, count):
    for _ in range(500):
        if place.exists():
            try:
                connection = store.open_store(place)
                if len(store.tasks(connection)) == count:
                    return connection
                connection.close()
            except Exception:  # it is being made
                pass
        time.sleep(0.02)
    raise AssertionError("no tasks")


def answered(connection, who, sample):
    """`good` before `bad`."""
    kept = [0, 2]
    row = {key: [sample[key][i] for i in kept] for key in ("completions", "ended", "models")}
    name = task({**{k: v for k, v in sample.items() if k != "task"}, **row}).id
    now = time.time()
    store.renew(connection, name, who, now, 60)
    reply = Reply(ranks=[1, 2], likert=[7, 2], flags=[{}, {}], notes=["", ""])
    assert store.submit(
        connection, name, who, f"{who} {name}", reply, shown=[0, 1], seconds=1.0, now=now
    )
