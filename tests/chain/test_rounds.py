"""Rounds of feedback: whose samples are ranked, by whom, what is learned from; and reward models
across groups of labelers.
"""

import collections
import json
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import userfiles
from instruct_jax.chain.measure import scored_rankings
from instruct_jax.chain.workspace import Workspace
from userfiles import OVERRIDES

from instruct_jax.chain import compare, people
from instruct_jax.chain.cross_validation import labeler_groups
from instruct_jax.chain.load import load_config
from instruct_jax.chain.preflight import check_config
from instruct_jax.chain.rounds import rounds_of
from instruct_jax.chain.run import run
from instruct_jax.chain.settings import CompareConfig, PeopleConfig, RunConfig
from instruct_jax.chain.task import Rankings, open_task
from instruct_jax.cli import main
from instruct_jax.data.readers import write_jsonl
from instruct_jax.errors import ConfigError, RunError
from instruct_jax.feedback import accounts, store
from instruct_jax.feedback.tasks import Reply, task
from instruct_jax.runtime.folders import file_hash, finish_stage

RANKED = [
    "--compare.judge",
    "runs/a:reward",
    "--compare.prompts",
    "7",
    "--compare.held_out_prompts",
    "2",
    "--compare.max_completions",
    "4",
]


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_rounds_of_a_config(place, monkeypatch):
    """Each is a run that could have been written by hand; the first is the run itself, so rounds
    can be added to a run that is there.
    """
    monkeypatch.chdir(place)
    config = load_config(
        RunConfig,
        "run.yaml",
        [
            *OVERRIDES,
            "--rounds.count",
            "3",
            "--rounds.shares.ppo",
            "0.25",
            "--rounds.judge",
            "b:reward",
        ],
    )
    first, second, third = rounds_of(config)
    assert first == load_config(RunConfig, "run.yaml", OVERRIDES) and rounds_of(first) == [first]
    assert [r.out for r in (second, third)] == ["runs/a/round_2", "runs/a/round_3"] and [
        r.round for r in (second, third)
    ] == [2, 3]
    assert third.start is not None and (third.start.folder, third.start.stages) == (
        "runs/a",
        ("pretrain", "sft", "ppo_start"),
    )
    assert (first.compare.judge, second.compare.judge, third.compare.judge) == (
        None,
        "b:reward",
        "b:reward",
    )
    assert (
        third.compare.models == {"runs/a/round_2:ppo": 0.25}
        and third.compare.earlier == "runs/a/round_2"
    )
    assert third.evaluation.others == {
        "ppo_round_1": "runs/a:ppo",
        "ppo_round_2": "runs/a/round_2:ppo",
    }


def test_run_goes_through_the_rounds(finished, monkeypatch, capsys):
    """One after the other, each checked when its turn comes: it reads what the one before it left."""
    monkeypatch.chdir(finished.parents[1])
    ran = []
    userfiles.fake_run(
        monkeypatch,
        lambda config, stages: ran.append((config.out, config.round)) or Path(config.out),
    )
    argv = ["run", "--config", "run.yaml", *OVERRIDES, "--rounds.count", "2"]
    assert main(argv) == 2
    assert "set rounds.people or rounds.judge" in capsys.readouterr().err
    assert main([*argv, "--rounds.judge", "runs/a:reward"]) == 0
    assert ran == [("runs/a", 1), ("runs/a/round_2", 2)]
    assert "round 2 of 2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def second(finished):
    """The rankings of a second round on files: by the reward model of the first one, half of the
    samples by its policy.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished.parents[1])
        config = load_config(RunConfig, "run.yaml", [*OVERRIDES, "--rounds.count", "2", *RANKED])
        return run(rounds_of(config)[1], ("compare",)).absolute()


def test_the_rankings_of_all_rounds_are_learned_from(second, finished):
    train, earlier = (
        lines(second / "compare" / "train.jsonl"),
        lines(finished / "compare" / "train.jsonl"),
    )
    assert [r["round"] for r in train] == [2] * 7 + [1] * len(earlier)
    assert train[7:] == earlier
    held_out = {
        r["prompt"] if isinstance(r["prompt"], str) else json.dumps(r["prompt"])
        for r in lines(second / "compare" / "held_out_prompts.jsonl")
    }
    assert not held_out & {str(r["prompt"]) for r in train}
    inputs = json.loads((second / "compare" / "done.json").read_text())["inputs"]
    for stage in ("ppo", "compare", "reward"):
        assert inputs[f"runs/a:{stage}"] == file_hash(finished / stage / "done.json")


def test_what_is_held_out_in_one_round_is_not_learned_from_in_another(tmp_path, monkeypatch):
    """The world's prompts come again: c was held out in round 1 and a was learned from, so in round
    2 neither changes sides.
    """

    def ranked(*prompts):
        return [
            {"prompt": prompt, "completions": ["x", "y"], "ranks": [1, 2]} for prompt in prompts
        ]

    first, folder = tmp_path / "one" / "compare", tmp_path / "two"
    (folder / "compare").mkdir(parents=True)
    for name, records in (
        ("train", ranked("a", "b")),
        ("held_out_prompts", ranked("c")),
        ("held_out_labelers", ranked("c")),
    ):
        write_jsonl(first / f"{name}.jsonl", [{**record, "round": 1} for record in records])
    finish_stage(first, {}, output={"labeler_noise": 0.25}, seconds=0)
    asked = {"compare": ranked("b", "c", "d"), "compare_held_out": ranked("a", "e")}
    noises = []

    def rank(samples, held_out, noise):
        noises.append(noise)
        return Rankings(samples, held_out, held_out, None, noise)

    monkeypatch.setattr(compare, "_samples", lambda ws, prompts, purpose: prompts)
    config = types.SimpleNamespace(
        compare=CompareConfig(earlier=str(tmp_path / "one")), round=2, world=object()
    )
    ws = types.SimpleNamespace(
        config=config, folder=folder, task=types.SimpleNamespace(prompts=asked, rank=rank)
    )
    compare.compare(ws)  # type: ignore[arg-type]
    found = {
        name: [(r["prompt"], r["round"]) for r in lines(folder / "compare" / f"{name}.jsonl")]
        for name in ("train", "held_out_prompts")
    }
    assert found == {
        "train": [("b", 2), ("d", 2), ("a", 1), ("b", 1)],
        "held_out_prompts": [("e", 2), ("c", 1)],
    }
    assert noises == [0.25]


def test_half_of_the_completions_are_by_the_policy_of_the_round_before(second):
    samples = lines(second / "compare" / "samples.jsonl")
    by = collections.Counter(model for sample in samples for model in sample["models"])
    assert by.keys() == {"sft", "runs/a:ppo"}
    assert (
        all(len(s["models"]) == len(s["completions"]) == 4 for s in samples)
        and by["sft"] == by["runs/a:ppo"] == 14
    )
    lineage = json.loads((second / "compare" / "done.json").read_text())["output"]["lineage"]
    counted = {(row["round"], row["model"]): row["completions"] for row in lineage}
    assert counted[2, "sft"] == counted[2, "runs/a:ppo"] == 14 and (1, "unknown") in counted


def test_a_reward_model_ranks_as_it_scores(second, finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    config = load_config(RunConfig, finished / "config.yaml")
    ws = Workspace(config, finished, open_task(config, finished))
    ranked = [r for r in lines(second / "compare" / "train.jsonl") if r["round"] == 2]
    assert {r["labeler_id"] for r in ranked} == {"runs/a:reward"}
    for record, scores, _ in scored_rankings(ws, ws.reward_params(), ranked):
        order = sorted(set(scores.tolist()), reverse=True)
        assert record["ranks"] == [order.index(score) + 1 for score in scores]


def test_each_round_goes_on_with_prompts_of_its_own(finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    config = load_config(RunConfig, "run.yaml", [*OVERRIDES, *RANKED, "--compare.prompts", "5"])
    asked = [
        open_task(
            load_config(
                RunConfig,
                "run.yaml",
                [*OVERRIDES, *RANKED, "--compare.prompts", "5", "--round", str(n)],
            ),
            finished,
        ).prompts
        for n in (1, 2)
    ]
    first, following = ([str(r["prompt"]) for r in prompts["compare"]] for prompts in asked)
    assert not set(first) & set(following)
    assert asked[0]["report"] == asked[1]["report"]
    ws = [
        Workspace(c, finished, open_task(c, finished))
        for c in (config, load_config(RunConfig, "run.yaml", [*OVERRIDES, "--round", "2"]))
    ]
    first_key, second_key = (jax.random.key_data(w.key("ppo")) for w in ws)
    assert not np.array_equal(first_key, second_key)


def test_labelers_are_as_noisy_in_the_second_round(tmp_path):
    """Calibrating them anew on other samples would make other people of them."""
    config = load_config(RunConfig, Path(__file__).with_name("tiny.yaml"), ["--out", str(tmp_path)])
    task_of = open_task(config, tmp_path)
    samples = [
        {**r, "completions": ["yes", "no", "a dog ."], "ended": [True] * 3}
        for r in task_of.prompts["compare"]
    ]
    first = task_of.rank(samples, samples, None)
    assert (
        first.noise is not None
        and task_of.rank(samples, samples[:3], first.noise).train == first.train
    )
    louder = task_of.rank(samples, samples, first.noise + 1)
    assert louder.noise == first.noise + 1 and louder.train != first.train


def test_rounds_need_what_they_name(finished, monkeypatch):
    monkeypatch.chdir(finished.parents[1])
    with pytest.raises(
        ConfigError, match=r"rounds\.shares\.sft is no policy of this config; use ppo"
    ):
        load_config(RunConfig, "run.yaml", [*OVERRIDES, "--rounds.shares.sft", "0.5"])
    with pytest.raises(ConfigError, match="both rank; remove one"):
        CompareConfig(judge="a:reward", people=PeopleConfig("x.db"))
    with pytest.raises(ConfigError, match="at most 1 can be shared"):
        CompareConfig(models={"a:ppo": 0.6, "b:ppo": 0.6})
    alone = load_config(RunConfig, "run.yaml", [*OVERRIDES, "--rounds.count", "2"])
    with pytest.raises(
        ConfigError,
        match=r"rounds\.count=2, but nobody ranks .*; set rounds\.people or rounds\.judge",
    ):
        check_config(alone, alone.stages)
    config = load_config(
        RunConfig,
        "run.yaml",
        [*OVERRIDES, *RANKED, "--compare.earlier", "runs/none", "--out", "runs/b"],
    )
    with pytest.raises(RunError, match="needs pretrain|runs/none"):
        run(config, ("compare",))


# --- people ---

SAMPLES = [
    {"prompt": f"question {i}", "completions": [f"good {i}", "", f"bad {i}", f"good {i}"], "ended": [True, True, False, True],
     "models": list("abcd"), "task": {}}
    for i in range(4)
]  # fmt: skip


def test_a_run_waits_for_people(tmp_path, monkeypatch):
    """It goes on when enough are in; ranks lie on the completions that were ranked; held-out people
    make no training data.
    """
    monkeypatch.setattr(people, "POLL", 0.02)
    place, found = tmp_path / "labels.db", []
    cfg = PeopleConfig(str(place), enough=0.5, serve=False)
    waiting = threading.Thread(
        target=lambda: found.append(people.by_people(cfg, SAMPLES[:2], SAMPLES[2:]))
    )
    waiting.start()
    connection = wait_for_tasks(place, 4)
    for name, group in (("ann", "training"), ("hal", "held-out")):
        accounts.invite(connection, name, group, admin=False, now=time.time())
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
    monkeypatch.setattr(
        compare, "_samples", lambda ws, prompts, purpose: drawn.append(purpose) or SAMPLES
    )
    (tmp_path / "compare").mkdir()
    for cfg, times in ((CompareConfig(people=PeopleConfig("x.db")), 1), (CompareConfig(), 3)):
        ws = types.SimpleNamespace(config=types.SimpleNamespace(compare=cfg), folder=tmp_path)
        for _ in range(2):
            assert compare._drawn(ws, "samples", [], "compare") == SAMPLES  # type: ignore[arg-type]
        assert len(drawn) == times


def test_without_two_replies_that_differ_nobody_is_asked(tmp_path):
    same = [{**sample, "completions": ["x"] * 4} for sample in SAMPLES]
    with pytest.raises(RunError, match="of 4 samples none has two replies that differ"):
        people.by_people(PeopleConfig(str(tmp_path / "labels.db"), serve=False), same, same)


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


# --- groups of labelers ---


def rankings_of(**counts):
    return [
        {"prompt": f"{who} {i}", "labeler_id": who}
        for who, count in counts.items()
        for i in range(count)
    ]


def test_groups_have_about_as_many_rankings_each():
    groups = labeler_groups(rankings_of(a=50, b=30, c=25, d=20, e=19, f=5), 3, seed=0)
    assert sorted(who for group in groups for who in group) == list("abcdef")
    sizes = {"a": 50, "b": 30, "c": 25, "d": 20, "e": 19, "f": 5}
    assert sorted(sum(sizes[who] for who in group) for group in groups) == [49, 50, 50]


@pytest.mark.parametrize("records, says", [
    (rankings_of(a=3, b=3), "the rankings name 2 labelers"),
    ([*rankings_of(a=3, b=3, c=3), {"prompt": "x"}], "1 of 10 name none"),
])  # fmt: skip
def test_groups_need_labelers(records, says):
    with pytest.raises(ConfigError, match=says):
        labeler_groups(records, 3, seed=0)


def test_cross_validation(finished, monkeypatch):
    """Each model learns from all but its group, and is measured on both sides; `across` and
    `within` divide the held-out pairs.
    """
    monkeypatch.chdir(finished.parents[1])
    start = [
        "--start.folder",
        "runs/a",
        "--start.stages",
        "[pretrain,sft]",
        "--out",
        "runs/groups",
        "--cross_validation.groups",
        "2",
    ]
    config = load_config(RunConfig, "run.yaml", [*OVERRIDES, *start])
    folder = finished.parents[1] / "runs" / "groups" / "compare"
    run(config, ("pretrain",))
    who = ("ann", "bob", "cid")
    for name in ("train", "held_out_prompts", "held_out_labelers"):
        records = lines(finished / "compare" / f"{name}.jsonl")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({**r, "labeler_id": who[i % 3]}) + "\n" for i, r in enumerate(records)
            )
        )
    finish_stage(folder, {"sft": file_hash(finished / "sft" / "done.json")}, output={}, seconds=0)
    seen = []
    monkeypatch.setattr("instruct_jax.chain.cross_validation.reward_training", spy(seen))
    run(config, ("cross_validation",))
    output = json.loads((folder.parent / "cross_validation" / "done.json").read_text())["output"]
    assert len(output["folds"]) == len(seen) == 2
    for fold, learned in zip(output["folds"], seen, strict=True):
        assert not set(fold["labelers"]) & {r["labeler_id"] for r in learned} and learned
        pairs = sum(
            len(r["ranks"]) * (len(r["ranks"]) - 1) // 2
            for r in lines(folder / "held_out_prompts.jsonl")
        )
        assert (
            fold["within"]["pairs"] + fold["across"]["pairs"] == pairs
            and fold["across"]["pairs"] > 0
        )
    assert output["across"]["mean"] == pytest.approx(
        np.mean([fold["across"]["accuracy"] for fold in output["folds"]])
    )


def spy(seen):
    from instruct_jax.chain.train import reward_training

    def training(ws, name, rankings):
        seen.append(rankings)
        return reward_training(ws, name, rankings)

    return training
