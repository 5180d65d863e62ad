"""Agreement between people, on answers whose agreement is known by hand."""

import math

import numpy as np
import pytest

from instruct_jax.feedback import agreement
from instruct_jax.feedback.store import Answer


def answer(
    task,
    labeler,
    ranks,
    *,
    held_out=False,
    flags=(),
    likert=(),
    known=None,
    submitted=0.0,
    skipped=None,
):
    k = len(ranks or ())
    return Answer(
        task_id=task,
        kind="rank",
        labeler=labeler,
        held_out=held_out,
        prompt="p",
        completions=["x"] * k,
        models=[None] * k,
        ranks=ranks,
        likert=[*likert] or [None] * k,
        flags=[*flags] or [{} for _ in range(k)],
        notes=[""] * k,
        text=None,
        skipped=skipped,
        seconds=1.0,
        submitted=submitted,
        instructions=1,
        known=known,
    )


def test_pairs_that_nobody_ties_are_counted():
    """(1, 2, 3) and (1, 3, 2) agree on two of three pairs; a tie of either leaves the pair out; a
    skip is no answer.
    """
    answers = [
        answer("a", "ann", [1, 2, 3]),
        answer("a", "bob", [1, 3, 2]),
        answer("a", "cid", None, skipped="unclear"),
    ]
    assert agreement.pairwise(answers)[::3] == (pytest.approx(2 / 3), 3)
    tied = [answer("b", "ann", [1, 1, 2]), answer("b", "bob", [1, 2, 3])]
    assert agreement.pairwise(tied)[::3] == (1.0, 2)
    assert agreement.pairwise(answers + tied)[::3] == (pytest.approx(4 / 5), 5)


def test_other_tasks_and_the_same_person_are_not_compared():
    assert agreement.pairwise([answer("a", "ann", [1, 2]), answer("b", "bob", [1, 2])]).pairs == 0
    assert math.isnan(agreement.pairwise([]).mean)


def test_the_interval_takes_tasks_as_its_sample():
    """The plain interval of a mean where each task has one pair; no narrower where each pair is
    there 16 times.
    """
    rng = np.random.default_rng(0)
    alike = rng.random(400) < 0.73

    def answers(k):
        given = []
        first, second = [1] * k + [2] * k, [2] * k + [1] * k
        for i, same in enumerate(alike):
            given.append(answer(str(i), "ann", first))
            given.append(answer(str(i), "bob", first if same else second))
        return given

    one, many = agreement.pairwise(answers(1)), agreement.pairwise(answers(4))
    plain = 1.96 * math.sqrt(alike.mean() * (1 - alike.mean()) / (len(alike) - 1))
    assert one.high - one.mean == pytest.approx(plain)
    assert many.pairs == 16 * one.pairs and many[:3] == pytest.approx(one[:3])


def test_groups():
    answers = [
        answer("a", "ann", [1, 2]),
        answer("a", "bob", [1, 2]),
        answer("a", "hal", [2, 1], held_out=True),
        answer("a", "hugo", [2, 1], held_out=True),
    ]
    found = agreement.by_group(answers)
    assert [found[name].mean for name in ("training", "held-out", "between")] == [1.0, 1.0, 0.0]
    assert found["between"].pairs == 4
    means = {who: share.mean for who, share in agreement.by_labeler(answers).items()}
    assert means == pytest.approx(dict.fromkeys(["ann", "bob", "hal", "hugo"], 1 / 3))


def test_over_time():
    """An answer belongs to the stretch in which it came, and is compared with older ones too."""
    answers = [
        answer("a", "ann", [1, 2], submitted=0.0), answer("b", "ann", [1, 2], submitted=1.0),
        answer("a", "bob", [1, 2], submitted=2.0), answer("b", "bob", [2, 1], submitted=10.0),
    ]  # fmt: skip
    early, late = agreement.over_time(answers, 2)
    assert (early[0], late[0]) == (2.5, 7.5)
    assert (early[1].mean, early[1].pairs) == (0.5, 2) and (late[1].mean, late[1].pairs) == (0.0, 1)
    assert agreement.over_time([], 3) == []


def test_screening():
    """Against researchers: ranks by pairs, sensitive flags by yes and no; below 75 % in either is
    not passed.
    """
    known = {
        "ranks": [1, 2, 3],
        "flags": [{"violent": True}, {"violent": False}, {"violent": False}],
    }
    right = [{"violent": True}, {"violent": False}, {}]
    answers = [
        answer("a", "good", [1, 2, 3], flags=right, known=known),
        answer("a", "other", [3, 2, 1], flags=right, known=known),
        answer("a", "blind", [1, 2, 3], flags=[{}, {}, {"violent": True}], known=known),
        answer("b", "good", [2, 1]),
    ]
    found = agreement.screening(answers)
    assert {who: one.passed for who, one in found.items()} == {
        "good": True,
        "other": False,
        "blind": False,
    }
    assert (
        found["blind"].ranks.mean,
        found["blind"].sensitive.mean,
        found["blind"].sensitive.pairs,
    ) == (1.0, pytest.approx(1 / 3), 3)
    only_flags = agreement.screening(
        [
            answer(
                "a",
                "ann",
                [2, 1],
                flags=[{"sexual": True}, {}],
                known={"flags": [{"sexual": True}, {}]},
            )
        ]
    )
    assert only_flags["ann"].passed and only_flags["ann"].ranks.pairs == 0


def test_flags_between_labelers():
    two = [
        answer("a", "ann", [1, 2], flags=[{"opinion": True, "violent": False}, {"opinion": True}])
    ]
    two.append(answer("a", "bob", [1, 2], flags=[{"opinion": True}, {"opinion": False}]))
    found = agreement.flags(two)
    assert (found["opinion"].mean, found["violent"].mean) == (0.5, 1.0)


def test_alpha():
    """1 where all agree, about 0 for random ranks, NaN where nothing was answered twice."""
    rng = np.random.default_rng(0)
    same, random = [], []
    for i in range(20):
        ranks = rng.permutation(4).tolist()
        same += [answer(str(i), who, ranks, likert=ranks) for who in ("ann", "bob")]
    for i in range(200):
        random += [answer(str(i), who, rng.permutation(4).tolist()) for who in ("ann", "bob")]
    assert agreement.alphas(same)["ranking"] == pytest.approx(1.0)
    assert agreement.alphas(same)["likert"] == pytest.approx(1.0)
    assert abs(agreement.alphas(random)["ranking"]) < 0.1
    assert math.isnan(agreement.alphas(random[::2])["ranking"])
    assert math.isnan(agreement.alphas([])["likert"])


def test_agreement_as_text():
    known = {"ranks": [1, 2], "flags": [{"violent": True}, {}]}
    answers = [
        answer("a", "ann", [1, 2], flags=[{"violent": True}, {}], known=known),
        answer("a", "bob", [1, 2], flags=[{"violent": False}, {}], known=known),
    ]
    assert agreement.as_text(answers).splitlines() == [
        "agreement on pairs      share   95 %            pairs",
        "training labelers       100.0%  0.0% to 100.0%  1",
        "held-out labelers       -       -               0",
        "training with held-out  -       -               0",
        "",
        "agreement on pairs  share   95 %            pairs",
        "ann                 100.0%  0.0% to 100.0%  1",
        "bob                 100.0%  0.0% to 100.0%  1",
        "",
        "Krippendorff's alpha",
        "violent               0.000",
        "",
        "flags: both say yes, or both no  share  95 %            pairs",
        "violent                          50.0%  0.0% to 100.0%  2",
        "",
        "screening, against researchers  ranks   95 %            sensitive flags  95 %"
        "            passed",
        "ann                             100.0%  0.0% to 100.0%  100.0%           0.0% to 100.0%"
        "  yes",
        "bob                             100.0%  0.0% to 100.0%  0.0%             0.0% to 100.0%"
        "  no",
    ]
