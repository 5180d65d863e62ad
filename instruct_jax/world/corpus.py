"""Pretraining documents: facts, stories, lists, questions, who has what, tenses, reviews, names,
forum threads, and echoes.

Nothing here follows instructions on purpose; the forum threads look like prompts, but most of their
replies are careless.  Echoes are there so that copying emerges early.  Threads use the prompts of
the `corpus` split only.
"""

from collections.abc import Callable

from . import vocabulary as v
from .demonstrations import PAST_VERBS, forum, insult, listed
from .dice import Dice
from .instructions import ask_possession, people, possession, review, sentence, sentence_words

MAX_DOCUMENT_TOKENS = 90  # words of the longest document, without <bos> and <eos>
ECHOES = 0.20  # share of all documents
RUDE = 0.03  # share of documents with a rude word
WRONG = 0.08  # share of facts that are false
UNANSWERED = 0.20  # share of questions after which comes another question
NOBODY_KNOWS = 0.15  # share of questions about a person, to which the answer is "i do not know ."


def documents(seed: int, n_tokens: int) -> list[str]:
    """Texts of n_tokens words or a little more in all; each becomes one record {"text": ...}."""
    dice = Dice(seed, "corpus")
    texts = []
    while n_tokens > 0:
        text = document(dice)
        n_tokens -= text.count(" ") + 1
        texts.append(text)
    return texts


def document(dice: Dice) -> str:
    if dice.chance(ECHOES):
        text = echo(dice)
    else:
        kind = dice.weighted(SHARES)
        text = DOCUMENTS[kind](dice)
    return insult(text, dice) if dice.chance(RUDE) else text


def echo(dice: Dice) -> str:
    count = dice.integer(3, 10)
    words = " ".join(dice.sample(v.CONTENT, count))
    name = dice.pick(v.NAMES)
    return f"{name} said : {words} . yes : {words} ."


def facts(dice: Dice) -> str:
    return " ".join(_fact(dice) for _ in range(dice.integer(2, 6)))


def _fact(dice: Dice) -> str:
    relation = dice.integer(0, 2)
    value = None
    if dice.chance(WRONG * 4 / 3):  # one draw in four is right anyway
        value = dice.pick(v.RELATIONS[relation]["values"])
    subject = dice.pick(tuple(v.ANIMALS))
    return v.fact(relation, subject, value)


def story(dice: Dice) -> str:
    """A person, a thing, and what happened to them."""
    name = dice.pick(v.NAMES)
    thing = dice.pick(v.THINGS)
    adjective = dice.pick(v.ADJECTIVES) if dice.chance(0.4) else ""
    place = dice.pick(v.PLACES) if dice.chance(0.4) else ""
    parts = [sentence(dice, name, PAST_VERBS, thing, adjective, place)]
    if dice.chance(0.4):
        parts.insert(0, f"{name} went to the {dice.pick(v.PLACES)} .")
    if dice.chance(0.3):
        parts.append(f"the {thing} was {dice.pick(v.ADJECTIVES)} .")
    if dice.chance(0.6):
        parts.append(f"{name} was {dice.pick(v.FEELINGS)} .")
    return " ".join(parts)


def lists(dice: Dice) -> str:
    if dice.chance(0.5):
        relation = dice.integer(0, 2)
        value = dice.pick(v.RELATIONS[relation]["values"])
        which = v.RELATIONS[relation]["which"].format(value)
        kind = f"animals {which}"
        items = v.having(relation, value)
    else:
        kind = dice.pick(tuple(v.KINDS))
        items = v.KINDS[kind]
    number, count = dice.pick(tuple(v.NUMBERS.items()))
    return f"{number} {kind} : {listed(dice.sample(items, count))}"


def questions(dice: Dice) -> str:
    return " ".join(_question(dice) for _ in range(dice.integer(2, 4)))


def _question(dice: Dice) -> str:
    relation = dice.integer(0, 2)
    unknown = dice.chance(NOBODY_KNOWS)
    subject = dice.pick(v.NAMES if unknown else tuple(v.ANIMALS))
    query = v.question(relation, subject)
    if dice.chance(UNANSWERED):
        return query
    answer = v.UNKNOWN if unknown else v.fact(relation, subject)
    return f"{query} {answer}"


def dialogue(dice: Dice) -> str:
    """Who has what: the answer must be copied, or is not there."""
    count = dice.integer(2, 3)
    names = dice.sample(v.NAMES, count + 1)
    things = dice.sample(v.OBJECTS, count)
    parts = [possession(names[:count], things)]
    for asked in dice.sample(range(count), dice.integer(1, 2)):
        name = names[asked]
        thing = things[asked]
        query = ask_possession(dice, name, thing)
        parts.append(f"{query} {name} has the {thing} .")
    if dice.chance(0.15):
        nobody = names[count]
        parts.append(f"what does {nobody} have ? {v.UNKNOWN}")
    return " ".join(parts)


def tenses(dice: Dice) -> str:
    parts = []
    for _ in range(dice.integer(1, 2)):
        words = sentence_words(dice)
        past = [v.PAST.get(word, word) for word in words]
        parts += ["today", *words, "yesterday", *past]
    return " ".join(parts)


def reviews(dice: Dice) -> str:
    text, verdict = review(dice)
    return f"{text} it is {verdict} ."


def name_list(dice: Dice) -> str:
    text, names = people(dice)
    return f"{text} names : {listed(names)}"


SHARES = {  # of the documents that are no echoes
    "facts": 0.14,
    "story": 0.20,
    "lists": 0.09,
    "questions": 0.12,
    "dialogue": 0.14,
    "tenses": 0.09,
    "reviews": 0.05,
    "names": 0.09,
    "forum": 0.08,
}
DOCUMENTS: dict[str, Callable[[Dice], str]] = {
    "facts": facts,
    "story": story,
    "lists": lists,
    "questions": questions,
    "dialogue": dialogue,
    "tenses": tenses,
    "reviews": reviews,
    "names": name_list,
    "forum": forum,
}
