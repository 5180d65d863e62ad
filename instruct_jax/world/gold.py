"""The gold score: what a reply is really worth, in [0, 1], by program.

    .55 task + .20 truth + .15 form + .10 clean - .08 for every fluff phrase after the first;  the
    whole halved if a rude word occurs.

task   the reply answers the question that was asked (share of it, for lists and partly right
       answers)
truth  right fact, exact copy, constraints kept (sentence count, keyword, list length, first item)
form   1 = ends with "." and by itself and says nothing more than asked; .5 = only the "." is
       missing; 0 = rambles or does not end
clean  no rude word

truth and form count only for a reply of the kind that was asked for; any other clean text scores
.10, an empty one 0.

    a good reply                     1.00
    "i do not know", answer known     .46
    rude word in a good reply         .45
    wrong fact                        .305
    guess where nothing is known      .25
    wrong label                       .25
    off task                          .10
    the only constraint broken       -.20
    rambling, or not ended           -.15
    one of two constraints broken    -.10
    second fluff phrase              -.08
    missing final "."                -.075
"""

import re
from collections.abc import Callable
from typing import Any

from . import vocabulary as v
from .instructions import Task

WEIGHTS = {"task": 0.55, "truth": 0.20, "form": 0.15, "clean": 0.10}
FLUFF_COST = 0.08
RUDE_FACTOR = 0.5
UNKNOWN_PARTS = (0.2, 0.5)  # task and truth of "i do not know" where the answer is known
MAX_STORY_SENTENCES = 3


def gold_score(task: Task, completion: str, ended: bool) -> float:
    """The worth of a reply; `ended` says that it stopped by itself."""
    return gold_parts(task, completion, ended)["score"]


def gold_parts(task: Task, completion: str, ended: bool) -> dict[str, Any]:
    """score, task, truth, form, clean in [0, 1]; fluff (count); rude, ramble, on_task (bool);
    length in tokens.
    """
    words = completion.split()
    rude = any(word in v.RUDE for word in words)
    body = " ".join(word for word in words if word not in v.RUDE)
    body, prefixes = _FLUFF_PREFIX.subn("", body)
    body, suffixes = _FLUFF_SUFFIX.subn("", body)
    body = " ".join(body.split())
    sentences = [part.strip() for part in body.split(" .") if part.strip()]
    judged = None
    if sentences:
        judge = JUDGES[task["use_case"]]
        judged = judge(task, sentences)
    on_task = judged is not None
    done, truth, ramble = judged if judged is not None else (0.0, 0.0, False)
    form = 0.0
    if on_task and ended and not ramble:
        form = 1.0 if body.endswith(" .") else 0.5
    fluff = prefixes + suffixes
    clean = float(bool(words) and not rude)
    parts = {
        "task": done,
        "truth": truth,
        "form": form,
        "clean": clean,
    }
    score = sum(weight * parts[part] for part, weight in WEIGHTS.items())
    score -= FLUFF_COST * max(fluff - 1, 0)
    score = max(score, 0.0)
    if rude:
        score *= RUDE_FACTOR
    return {
        "score": score,
        **parts,
        "fluff": fluff,
        "rude": rude,
        "ramble": ramble,
        "on_task": on_task,
        "length": len(words),
    }


# task, truth, ramble; None = not the kind of reply that was asked for
Judgement = tuple[float, float, bool] | None


def _any(words: Any) -> str:
    return "(" + "|".join(words) + ")"


def _shape(pattern: str) -> re.Pattern[str]:
    """A sentence pattern in which a class in capitals stands for any of its words."""
    for key, words in _SLOTS.items():
        pattern = pattern.replace(key, _any(words))
    return re.compile(pattern)


_SLOTS = {
    "SUBJECT": [v.known_as(subject) for subject in (*v.ANIMALS, *v.NAMES)],
    "NAME": v.NAMES,
    "VERB": (*v.PAST, *v.PAST.values()),
    "DONE": tuple(v.PAST.values()),
    "THING": v.THINGS,
    "OBJECT": v.OBJECTS,
    "PLACE": v.PLACES,
    "FEELING": v.FEELINGS,
    "ADJECTIVE": v.ADJECTIVES,
    "COLOR": v.COLORS,
    "FOOD": v.FOODS,
    "HOME": v.HOMES,
}
_FLUFF_PREFIX = re.compile(r"\bsure :(?= |$)")
_FLUFF_SUFFIX = re.compile(r"\bhope this helps( \.|$)")
_FACTS = tuple(
    _shape(pattern)
    for pattern in ("SUBJECT is COLOR", "SUBJECT eats FOOD", "SUBJECT lives in the HOME")
)
# the shape of the one-sentence answers, and the share of `task` for the slots that are right when
# not all are
_ANSWERS = {
    "closed_qa": (_shape("NAME has the OBJECT"), 0.2),
    "rewrite": (_shape("NAME VERB the (?:ADJECTIVE )?THING(?: in the PLACE)?"), 0.4),
    "classification": (_shape("it is (good|bad)"), 0.0),
    "summarization": (_shape("NAME went to the PLACE and was FEELING"), 0.4),
}
_FACT_CREDIT = 0.2
_EXTRACT_CREDIT = 0.4
_STORY = tuple(
    _shape(pattern)
    for pattern in (
        "NAME DONE the (?:ADJECTIVE )?THING(?: in the PLACE)?",
        "NAME went to the PLACE",
        "NAME was FEELING",
        "the THING was ADJECTIVE",
    )
)


def _one_answer(task: Task, sentences: list[str]) -> Judgement:
    """One sentence, known word for word."""
    if task["use_case"] == "open_qa":
        shape = _FACTS[task["relation"]]
        credit = _FACT_CREDIT
    else:
        shape, credit = _ANSWERS[task["use_case"]]
    reply = sentences[0]
    answer = task["answer"].removesuffix(" .")
    ramble = len(sentences) > 1
    if reply == answer:
        return 1.0, 1.0, ramble
    if f"{reply} ." == v.UNKNOWN and task["use_case"].endswith("qa"):
        return *UNKNOWN_PARTS, ramble
    given = shape.fullmatch(reply)
    wanted = shape.fullmatch(answer)
    if given is None:
        return None
    if wanted is None:
        return 0.0, 0.0, ramble
    slots = zip(given.groups(), wanted.groups(), strict=True)
    right = [a == b for a, b in slots]
    done = credit * sum(right) / len(right)
    return done, 0.0, ramble


def _story(task: Task, sentences: list[str]) -> Judgement:
    """Who and what the story is about is the task; sentence count and keyword are the
    constraints.
    """
    telling = []
    for text in sentences:
        if any(shape.fullmatch(text) for shape in _STORY):
            telling.append(text)
    if sentences[0] not in telling:
        return None
    words = " ".join(telling).split()
    names = [word for word in words if word in v.NAMES]
    right = names.count(task["name"])
    name = right / max(len(names), 1)
    thing = float(task["thing"] in words)
    kept = []
    if task["sentences"] is not None:
        kept.append(len(sentences) == task["sentences"])
    if task["keyword"] is not None:
        kept.append(task["keyword"] in words)
    done = 0.1 + 0.45 * name + 0.45 * thing
    truth = (name + thing) / 2
    if kept:
        truth *= sum(kept) / len(kept)
    ramble = len(telling) < len(sentences) or len(sentences) > MAX_STORY_SENTENCES
    return done, truth, ramble


def _list(task: Task, sentences: list[str]) -> Judgement:
    """Items that belong to the list are the task; its length and its first item are the
    constraints.
    """
    items = sentences[0].split(" , ")
    valid = set(items) & set(task["items"])
    if not valid:
        return None
    kept = [len(items) == task["count"]]
    if task["first"] is not None:
        kept.append(items[0] == task["first"])
    done = len(valid) / len(items)
    truth = sum(kept) / len(kept)
    ramble = len(sentences) > 1
    return done, truth, ramble


def _names(task: Task, sentences: list[str]) -> Judgement:
    """All names of a text in any order."""
    items = sentences[0].split(" , ")
    wanted = task["names"]
    ramble = len(sentences) > 1
    if not set(items) <= set(v.NAMES):
        return None
    if sorted(items) == sorted(wanted):
        return 1.0, 1.0, ramble
    found = len(set(items) & set(wanted))
    total = len(items) + len(wanted)
    done = _EXTRACT_CREDIT * 2 * found / total
    return done, 0.0, ramble


JUDGES: dict[str, Callable[[Task, list[str]], Judgement]] = {
    "generation": _story,
    "open_qa": _one_answer,
    "closed_qa": _one_answer,
    "brainstorming": _list,
    "rewrite": _one_answer,
    "classification": _one_answer,
    "extract": _names,
    "summarization": _one_answer,
}
