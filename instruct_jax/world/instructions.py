"""Prompts by use case, each with the hidden task that the gold score needs.

The use cases are those of the paper's Table 1 without chat and other; the shares are ours (the
paper's own mix is 57 % open generation, which no program can score).  A task is plain JSON.

Every prompt text belongs to exactly one split, chosen by a hash of the text, so two splits never
share a prompt whatever the seeds. Inside a split one call repeats a text only where the space is
small: open_qa has 432 texts and brainstorming 345, divided over the splits; generation has 6,720,
the others more.  The facts asked about are the same 48 everywhere: held out is the wording, not the
fact.
"""

import zlib
from collections.abc import Callable
from typing import Any

from . import vocabulary as v
from .dice import Dice

Task = dict[str, Any]

MAX_PROMPT_TOKENS = 24  # <bos> included
MAX_ANSWER_TOKENS = 20  # <eos> included

SHARES = {
    "generation": 0.30,
    "open_qa": 0.18,
    "closed_qa": 0.12,
    "brainstorming": 0.12,
    "rewrite": 0.08,
    "classification": 0.07,
    "extract": 0.07,
    "summarization": 0.06,
}
SPLITS = {  # share of the prompt texts
    "corpus": 0.08,  # threads in the pretraining documents and few-shot prefixes
    "demonstrations": 0.17,
    "comparisons": 0.25,
    "ppo": 0.25,
    "tuning": 0.05,
    "normalisation": 0.05,
    "report": 0.15,
}
TRIES = 8  # draws for a prompt that has not occurred yet, before a repetition is accepted
UNANSWERABLE = 0.15  # share of open questions
OPENINGS = (
    "",
    "tell me : ",
    "question : ",
    "please answer : ",
    "answer me : ",
    "please tell me : ",
)


def split_of(prompt: str) -> str:
    """The split that owns this text."""
    left = zlib.crc32(prompt.encode()) / 2**32
    for split, share in SPLITS.items():
        left -= share
        if left < 0:
            return split
    return next(reversed(SPLITS))


def prompt_text(instruction: str) -> str:
    return f"task : {instruction} reply :"


def prompts(
    seed: int,
    n: int,
    split: str = "ppo",
    use_case: str | None = None,
) -> list[dict[str, Any]]:
    """n records `prompt, id, use_case, task` of one split; all use cases by their shares unless one
    is named.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    dice = Dice(seed, f"prompts of {split}")
    seen = set()
    records = []
    for i in range(n):
        case = dice.weighted(SHARES) if use_case is None else use_case
        record = draw_prompt(dice, split, case)
        for _ in range(TRIES):
            if record["prompt"] not in seen:
                break
            record = draw_prompt(dice, split, case)
        seen.add(record["prompt"])
        records.append(record | {"id": f"{split}-{seed}-{i}"})
    return records


def draw_prompt(dice: Dice, split: str, use_case: str | None = None) -> dict[str, Any]:
    """One record without its id."""
    use_case = dice.weighted(SHARES) if use_case is None else use_case
    while True:
        instruction, task = INSTRUCTIONS[use_case](dice)
        text = prompt_text(instruction)
        if split_of(text) == split:
            return {
                "prompt": text,
                "use_case": use_case,
                "task": {"use_case": use_case} | task,
            }


def sentence(
    dice: Dice,
    name: str,
    verbs: tuple[str, ...],
    thing: str | None = None,
    adjective: str = "",
    place: str = "",
) -> str:
    """`ann found the [old] hat [in the park] .`"""
    adjective = adjective and f"{adjective} "
    place = place and f" in the {place}"
    verb = dice.pick(verbs)
    thing = thing or dice.pick(v.THINGS)
    return f"{name} {verb} the {adjective}{thing}{place} ."


def generation(dice: Dice) -> tuple[str, Task]:
    name = dice.pick(v.NAMES)
    thing = dice.pick(v.THINGS)
    sentences = dice.pick((None, None, 1, 2))
    classes = [v.PLACES, v.ADJECTIVES]
    if sentences != 1:
        classes.append(v.FEELINGS)  # a feeling needs its own sentence
    keyword = None
    if dice.chance(0.5):
        words = dice.pick(classes)
        keyword = dice.pick(words)
    text = f"write a story about {name} and the {thing} ."
    if sentences == 1:
        text += " use one sentence ."
    if sentences == 2:
        text += " use two sentences ."
    if keyword is not None:
        text += f" use the word {keyword} ."
    return text, {
        "name": name,
        "thing": thing,
        "sentences": sentences,
        "keyword": keyword,
    }


def open_qa(dice: Dice) -> tuple[str, Task]:
    relation = dice.integer(0, 2)
    unknown = dice.chance(UNANSWERABLE)
    subject = dice.pick(v.NAMES if unknown else tuple(v.ANIMALS))
    answer = v.UNKNOWN if unknown else v.fact(relation, subject)
    text = dice.pick(OPENINGS) + v.question(relation, subject)
    return text, {
        "answer": answer,
        "subject": subject,
        "relation": relation,
    }


def closed_qa(dice: Dice) -> tuple[str, Task]:
    names = dice.sample(v.NAMES, 2)
    things = dice.sample(v.OBJECTS, 2)
    text = possession(names, things)
    asked = dice.integer(0, 1)
    name = names[asked]
    thing = things[asked]
    query = ask_possession(dice, name, thing)
    return f"read : {text} {query}", {"answer": f"{name} has the {thing} ."}


def ask_possession(dice: Dice, name: str, thing: str) -> str:
    if dice.chance(0.5):
        return f"who has the {thing} ?"
    return f"what does {name} have ?"


def possession(names: list[str], things: list[str]) -> str:
    pairs = zip(names, things, strict=True)
    return " ".join(f"{name} has the {thing} ." for name, thing in pairs)


def brainstorming(dice: Dice) -> tuple[str, Task]:
    number = dice.pick(("two", "three", "four"))
    kind = dice.pick(tuple(v.KINDS))
    if dice.chance(0.5):
        relation = dice.integer(0, 2)
        value = dice.pick(v.RELATIONS[relation]["values"])
        which = v.RELATIONS[relation]["which"].format(value)
        kind = f"animals {which}"
        items = v.having(relation, value)
    else:
        items = v.KINDS[kind]
    first = dice.pick(items) if dice.chance(0.5) else None
    text = f"list {number} {kind} ."
    if first is not None:
        text += f" start with {first} ."
    return text, {
        "items": list(items),
        "count": v.NUMBERS[number],
        "first": first,
    }


def rewrite(dice: Dice) -> tuple[str, Task]:
    words = sentence_words(dice)
    present = " ".join(words)
    past = " ".join(v.PAST.get(word, word) for word in words)
    return f"rewrite in the past : {present}", {"answer": past}


def sentence_words(dice: Dice) -> list[str]:
    """A present-tense sentence as words."""
    adjective = dice.pick(v.ADJECTIVES) if dice.chance(0.5) else ""
    place = dice.pick(v.PLACES) if dice.chance(0.5) else ""
    name = dice.pick(v.NAMES)
    text = sentence(dice, name, tuple(v.PAST), None, adjective, place)
    return text.split()


def classification(dice: Dice) -> tuple[str, Task]:
    text, verdict = review(dice)
    return f"is this good or bad ? {text}", {"answer": f"it is {verdict} ."}


def review(dice: Dice) -> tuple[str, str]:
    verdict, words = dice.pick((("good", v.GOOD), ("bad", v.BAD)))
    first, second = dice.sample(words, 2)
    adjective = dice.pick(v.ADJECTIVES) + " " if dice.chance(0.5) else ""
    thing = dice.pick(v.THINGS)
    return f"the {adjective}{thing} was {first} and {second} .", verdict


def extract(dice: Dice) -> tuple[str, Task]:
    text, names = people(dice)
    return f"list all names : {text}", {"names": names}


def people(dice: Dice) -> tuple[str, list[str]]:
    """Two sentences and the two or three different names in them, in order."""
    names = dice.sample(v.NAMES, dice.integer(2, 3))
    verbs = tuple(v.PAST.values())
    cut = 1 if dice.chance(0.5) else len(names) - 1
    parts = [" and ".join(names[:cut]), " and ".join(names[cut:])]
    text = " ".join(sentence(dice, part, verbs) for part in parts)
    return text, names


def summarization(dice: Dice) -> tuple[str, Task]:
    name = dice.pick(v.NAMES)
    place = dice.pick(v.PLACES)
    feeling = dice.pick(v.FEELINGS)
    middle = sentence(dice, name, tuple(v.PAST.values()))
    text = f"{name} went to the {place} . {middle} {name} was {feeling} ."
    answer = f"{name} went to the {place} and was {feeling} ."
    return f"summarize : {text}", {"answer": answer}


INSTRUCTIONS: dict[str, Callable[[Dice], tuple[str, Task]]] = {
    "generation": generation,
    "open_qa": open_qa,
    "closed_qa": closed_qa,
    "brainstorming": brainstorming,
    "rewrite": rewrite,
    "classification": classification,
    "extract": extract,
    "summarization": summarization,
}
