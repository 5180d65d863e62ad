"""Good answers, and the imperfect ones that people write: demonstrations, forum replies and
few-shot prefixes.

A careful writer gives a good answer; a lazy one skips a constraint, guesses instead of "i do not
know", or lists too few or too many (and is as good as a careful one where there is nothing to
skip); a careless one rambles, is rude, gets the content wrong or answers something else.  Fluff
("sure :", "hope this helps .") is a habit of all three.
"""

from collections.abc import Callable
from typing import Any

from . import vocabulary as v
from .dice import Dice
from .gold import gold_score
from .instructions import (
    INSTRUCTIONS,
    MAX_ANSWER_TOKENS,
    SHARES,
    Task,
    draw_prompt,
    prompts,
    sentence,
)

CARELESS = 0.20  # share of demonstrations
LAZY = 0.45
FLUFF = 0.15  # share with the prefix, and with the suffix
FLAWS = ("ramble", "rude", "wrong", "off_task")  # equally frequent among the careless
FORUM_CARELESS = 0.70
WRITERS = 8  # people who write demonstrations
MAX_WORDS = MAX_ANSWER_TOKENS - 1  # <eos> is the last token
MAX_FACT_WORDS = 7
MAX_THREADS = 3
MAX_FORUM_WORDS = 88  # two threads always fit, three often do
LESS_THAN_GOOD = 0.95
PAST_VERBS = tuple(v.PAST.values())


def demonstrations(
    seed: int,
    n: int,
    careless: float = CARELESS,
    lazy: float = LAZY,
) -> list[dict[str, Any]]:
    """n records `prompt, completion, labeler_id, id, use_case, kind`; kind is good, lazy or one of
    FLAWS.
    """
    dice = Dice(seed, "demonstrations")
    records = []
    for prompt in prompts(seed, n, "demonstrations"):
        kind, completion = imperfect_answer(prompt["task"], dice, careless, lazy)
        writer = dice.integer(0, WRITERS - 1)
        records.append(
            {
                "prompt": prompt["prompt"],
                "id": prompt["id"],
                "use_case": prompt["use_case"],
                "completion": completion,
                "labeler_id": f"writer-{writer}",
                "kind": kind,
            }
        )
    return records


def imperfect_answer(
    task: Task,
    dice: Dice,
    careless: float = CARELESS,
    lazy: float = LAZY,
) -> tuple[str, str]:
    """(kind, answer) as a person would write it, fluff included."""
    kind = dice.weighted({"careless": careless, "lazy": lazy, "good": 1 - careless - lazy})
    if kind == "careless":
        kind = dice.pick(FLAWS)
    answer = ANSWERS[kind](task, dice)
    return kind, with_fluff(answer, dice)


def few_shot_prefix(seed: int, n: int) -> str:
    """n good threads of different use cases, in the style of the forum documents; put `{prefix}
    {prompt}` before a base model.
    """
    dice = Dice(seed, "few-shot prefix")
    shuffled = dice.sample(tuple(SHARES), len(SHARES))
    turns = n // len(SHARES) + 1
    cases = (shuffled * turns)[:n]
    records = [draw_prompt(dice, "corpus", use_case) for use_case in cases]
    threads = []
    for record in records:
        answer = good_answer(record["task"], dice)
        threads.append(f"{record['prompt']} {answer}")
    return " ".join(threads)


def forum(dice: Dice) -> str:
    """Up to MAX_THREADS tasks with mostly careless replies; the only corpus document that looks
    like a prompt.
    """
    lazy = LAZY * (1 - FORUM_CARELESS)
    threads: list[str] = []
    for _ in range(dice.integer(1, MAX_THREADS)):
        record = draw_prompt(dice, "corpus")
        _, reply = imperfect_answer(record["task"], dice, FORUM_CARELESS, lazy)
        thread = f"{record['prompt']} {reply}"
        words = " ".join((*threads, thread)).split()
        if len(words) <= MAX_FORUM_WORDS:
            threads.append(thread)
    return " ".join(threads)


def good_answer(task: Task, dice: Dice) -> str:
    """An answer that scores 1."""
    if task["use_case"] == "generation":
        return _story(task, dice)
    if task["use_case"] == "brainstorming":
        first = task["first"]
        if first is None:
            return listed(dice.sample(task["items"], task["count"]))
        others = [item for item in task["items"] if item != first]
        rest = dice.sample(others, task["count"] - 1)
        return listed([first, *rest])
    if task["use_case"] == "extract":
        return listed(task["names"])
    return task["answer"]


def listed(items: list[str]) -> str:
    return " , ".join(items) + " ."


def _story(task: Task, dice: Dice) -> str:
    name = task["name"]
    keyword = task["keyword"]
    count = task["sentences"]
    if count is None:
        count = dice.integer(1, 2)
    if keyword in v.FEELINGS:
        count = 2
    adjective = dice.pick(v.ADJECTIVES) if dice.chance(0.3) else ""
    place = dice.pick(v.PLACES) if dice.chance(0.3) else ""
    if keyword in v.ADJECTIVES:
        adjective = keyword
    if keyword in v.PLACES:
        place = keyword
    story = sentence(dice, name, PAST_VERBS, task["thing"], adjective, place)
    if count == 2:
        feeling = keyword if keyword in v.FEELINGS else dice.pick(v.FEELINGS)
        story += f" {name} was {feeling} ."
    return story


def _lazy(task: Task, dice: Dice) -> str:
    """Skips one thing that was asked for, where there is one to skip."""
    if task["use_case"] == "generation":
        asked = [key for key in ("sentences", "keyword") if task[key] is not None]
        if not asked:
            return good_answer(task, dice)
        free = dict(task)
        if dice.pick(asked) == "sentences":
            free["sentences"] = 3 - task["sentences"]
        else:
            free["keyword"] = None
        if free["sentences"] == 1 and free["keyword"] in v.FEELINGS:
            free["keyword"] = None
        return good_answer(free, dice)
    if task["use_case"] == "brainstorming":
        others = [count for count in v.NUMBERS.values() if count != task["count"]]
        wrong = dice.pick(others)
        return good_answer(task | {"count": wrong}, dice)
    if task.get("answer") == v.UNKNOWN:
        relation = task["relation"]
        guess = dice.pick(v.RELATIONS[relation]["values"])
        return v.fact(relation, task["subject"], guess)
    return good_answer(task, dice)


def _ramble(task: Task, dice: Dice) -> str:
    """Goes on with a fact nobody asked for."""
    answer = good_answer(task, dice)
    while len(answer.split()) + MAX_FACT_WORDS > MAX_WORDS:  # a long story leaves no room
        answer = good_answer(task | {"keyword": None, "sentences": 1}, dice)
    animals = tuple(v.ANIMALS)
    extra = v.fact(dice.integer(0, 2), dice.pick(animals))
    more = v.fact(dice.integer(0, 2), dice.pick(animals))
    both = f"{answer} {extra} {more}"
    if dice.chance(0.5) and len(both.split()) <= MAX_WORDS:
        return both
    return f"{answer} {extra}"


def _rude(task: Task, dice: Dice) -> str:
    return insult(good_answer(task, dice), dice)


def insult(text: str, dice: Dice) -> str:
    """The text with a rude word somewhere before its last word."""
    words = text.split()
    place = dice.integer(0, len(words) - 1)
    words.insert(place, dice.pick(v.RUDE))
    return " ".join(words)


def _wrong(task: Task, dice: Dice) -> str:
    """The right kind of reply with a wrong word in it."""
    while True:
        answer = good_answer(task, dice)
        if answer == v.UNKNOWN:
            answer = _lazy(task, dice)
        words = answer.split()
        places = [i for i, word in enumerate(words) if word in v.CLASS_OF]
        place = dice.pick(places)
        others = v.CLASS_OF[words[place]]
        if task["use_case"] == "brainstorming":
            others = v.CONTENT
        words[place] = dice.pick(others)
        answer = " ".join(words)
        if gold_score(task, answer, True) < LESS_THAN_GOOD:
            return answer


def _off_task(task: Task, dice: Dice) -> str:
    """A good answer to something else."""
    others = [use_case for use_case in SHARES if use_case != task["use_case"]]
    other = dice.pick(others)
    _, hidden = INSTRUCTIONS[other](dice)
    return good_answer({"use_case": other} | hidden, dice)


ANSWERS: dict[str, Callable[[Task, Dice], str]] = {
    "good": good_answer,
    "lazy": _lazy,
    "ramble": _ramble,
    "rude": _rude,
    "wrong": _wrong,
    "off_task": _off_task,
}


def with_fluff(answer: str, dice: Dice) -> str:
    """The answer with each polite phrase by chance, where it fits."""
    prefix = dice.chance(FLUFF)
    suffix = dice.chance(FLUFF)
    if prefix and len(answer.split()) + 2 <= MAX_WORDS:
        answer = f"{v.FLUFF_PREFIX} {answer}"
    if suffix and len(answer.split()) + 4 <= MAX_WORDS:
        answer = f"{answer} {v.FLUFF_SUFFIX}"
    return answer
