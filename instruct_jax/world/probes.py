"""Has copying emerged?  Texts whose next words stand in the context; chance is about 1 in 8 for the
first word of each answer.
"""

from collections.abc import Callable

from . import vocabulary as v
from .demonstrations import listed
from .dice import Dice
from .instructions import people, possession

KINDS = ("echo", "possession", "names")


def copy_probes(seed: int, n: int) -> list[dict[str, str]]:
    """n records `kind, prompt, answer`, the three kinds in turn; a greedy base model that copies
    continues the prompt with the answer.
    """
    dice = Dice(seed, "copy probes")
    records = []
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        records.append(_probe(kind, dice))
    return records


def _probe(kind: str, dice: Dice) -> dict[str, str]:
    prompt, answer = PROBES[kind](dice)
    return {"kind": kind, "prompt": prompt, "answer": answer}


def _echo(dice: Dice) -> tuple[str, str]:
    """`ann said : u v w x . yes : u v` -> `w x .`"""
    words = dice.sample(v.CONTENT, dice.integer(4, 8))
    shown = dice.integer(1, len(words) - 2)
    name = dice.pick(v.NAMES)
    said = " ".join(words)
    begun = " ".join(words[:shown])
    rest = " ".join(words[shown:])
    return f"{name} said : {said} . yes : {begun}", f"{rest} ."


def _possession(dice: Dice) -> tuple[str, str]:
    """`... who has the cup ?` -> `bob`"""
    names = dice.sample(v.NAMES, 2)
    things = dice.sample(v.OBJECTS, 2)
    asked = dice.integer(0, 1)
    text = possession(names, things)
    return f"{text} who has the {things[asked]} ?", names[asked]


def _names(dice: Dice) -> tuple[str, str]:
    """`... names :` -> `ann , bob , kim .`"""
    text, names = people(dice)
    return f"{text} names :", listed(names)


PROBES: dict[str, Callable[[Dice], tuple[str, str]]] = {
    "echo": _echo,
    "possession": _possession,
    "names": _names,
}
