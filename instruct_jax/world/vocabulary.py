"""Everything that exists in the world, and the 48 facts that hold in it.

Small on purpose: a small model must learn to copy these words.
"""

Words = tuple[str, ...]

NAMES: Words = tuple("ann bob dan eve joe kim sam tom".split())
OBJECTS: Words = tuple("hat cup ball book key lamp box pen".split())
PLACES: Words = tuple("park shop lake school".split())
FEELINGS: Words = tuple("happy sad tired proud".split())
ADJECTIVES: Words = tuple("big small old new".split())
GOOD: Words = tuple("great lovely fine nice".split())
BAD: Words = tuple("awful boring poor ugly".split())
RUDE: Words = tuple("stupid dumb lousy rotten".split())
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
# present -> past
PAST = {"finds": "found", "sees": "saw", "takes": "took", "likes": "liked", "hides": "hid"}

COLORS: Words = tuple("red brown black white".split())
FOODS: Words = tuple("grass meat seeds fish".split())
HOMES: Words = tuple("barn forest river field".split())
ANIMALS: dict[
    str, tuple[str, str, str]
] = {  # animal -> color, food, home; each value belongs to four animals
    "fox": ("red", "meat", "forest"),
    "hen": ("red", "seeds", "barn"),
    "crab": ("red", "fish", "river"),
    "robin": ("red", "seeds", "field"),
    "dog": ("brown", "meat", "barn"),
    "bear": ("brown", "fish", "forest"),
    "deer": ("brown", "grass", "field"),
    "rabbit": ("brown", "grass", "field"),
    "wolf": ("black", "meat", "forest"),
    "frog": ("black", "fish", "river"),
    "goat": ("black", "grass", "barn"),
    "ant": ("black", "seeds", "field"),
    "cow": ("white", "grass", "barn"),
    "owl": ("white", "meat", "forest"),
    "duck": ("white", "seeds", "river"),
    "swan": ("white", "fish", "river"),
}
THINGS: Words = (*OBJECTS, *ANIMALS)  # what a story can be about

RELATIONS: tuple[
    dict, ...
] = (  # the three kinds of fact; `index` into the rows of ANIMALS is the position here
    {"values": COLORS, "says": "{} is {} .", "asks": "what color is {} ?", "which": "that are {}"},
    {"values": FOODS, "says": "{} eats {} .", "asks": "what does {} eat ?", "which": "that eat {}"},
    {
        "values": HOMES,
        "says": "{} lives in the {} .",
        "asks": "where does {} live ?",
        "which": "that live in the {}",
    },
)
KINDS: dict[str, Words] = {  # what can be listed
    "animals": tuple(ANIMALS),
    "names": NAMES,
    "things": OBJECTS,
    "places": PLACES,
    "colors": COLORS,
    "foods": FOODS,
    "homes": HOMES,
}

CLASSES: tuple[Words, ...] = (
    NAMES,
    OBJECTS,
    tuple(ANIMALS),
    PLACES,
    FEELINGS,
    ADJECTIVES,
    GOOD,
    BAD,
    COLORS,
    FOODS,
    HOMES,
    tuple(PAST.values()),
    ("good", "bad"),
)
# word -> the words that could stand in its place
CLASS_OF = {word: members for members in CLASSES for word in members}
CONTENT: Words = tuple(CLASS_OF)

FLUFF_PREFIX = "sure :"
FLUFF_SUFFIX = "hope this helps ."
UNKNOWN = "i do not know ."  # the honest answer


def known_as(subject: str) -> str:
    """`the fox`, but `ann`."""
    return subject if subject in NAMES else f"the {subject}"


def fact(relation: int, subject: str, value: str | None = None) -> str:
    """The sentence that states a fact; the true one when no value is given."""
    if value is None:
        value = ANIMALS[subject][relation]
    says = RELATIONS[relation]["says"]
    return says.format(known_as(subject), value)


def question(relation: int, subject: str) -> str:
    asks = RELATIONS[relation]["asks"]
    return asks.format(known_as(subject))


def having(relation: int, value: str) -> Words:
    """The four animals for which the relation has this value."""
    return tuple(animal for animal, row in ANIMALS.items() if row[relation] == value)
