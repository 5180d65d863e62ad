"""The shapes of records that other libraries write: each is read as they read it, or refused."""

import pytest

from instruct_jax.data import schemas
from instruct_jax.errors import FieldError


def say(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


def user(content, **more) -> dict:
    return say("user", content, **more)


def reply(content, **more) -> dict:
    return say("assistant", content, **more)


HI, YO = user("hi"), reply("yo")
TALK = [HI, YO]
TEXT = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CALL = [{"type": "function", "function": {"name": "f", "arguments": {}}}]

DEMONSTRATIONS = {  # what is given -> prompt, completion
    "messages": ({"messages": TALK}, [HI], "yo"),
    "conversations": ({"conversations": TALK}, [HI], "yo"),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "yo"},
            ]
        },
        [say("system", "s"), HI],
        "yo",
    ),
    "system beside messages": ({"messages": TALK, "system": "s"}, [say("system", "s"), HI], "yo"),
    "the same system twice": (
        {"messages": [say("system", "s"), *TALK], "system": "s"},
        [say("system", "s"), HI],
        "yo",
    ),
    "prompt and completion of TRL": ({"prompt": [HI], "completion": [YO]}, [HI], "yo"),
    "a completion of several turns": (
        {"prompt": [HI], "completion": [YO, user("and"), reply("so")]},
        [HI, YO, user("and")],
        "so",
    ),
    "text, and a completion of messages": ({"prompt": "hi", "completion": [YO]}, [HI], "yo"),
    "a prompt that agrees": ({"prompt": "hi", "messages": TALK}, [HI], "yo"),
    "messages, and text behind them": ({"messages": [HI], "completion": "yo"}, [HI], "yo"),
    "Alpaca": ({"instruction": "i", "input": "x", "output": "o"}, "i\n\nx", "o"),
    "Alpaca, with nulls": (
        {"instruction": "i", "input": None, "output": "o", "system": "", "history": []},
        "i",
        "o",
    ),
    "Alpaca, with system and history": (
        {"instruction": "i", "output": "o", "system": "s", "history": [["hi", "yo"]]},
        [say("system", "s"), HI, YO, user("i")],
        "o",
    ),
    "parts of text": (
        {
            "messages": [
                user([{"type": "text", "text": "h"}, {"type": "text", "text": "i", "image": None}]),
                reply([{"type": "text", "text": "yo"}]),
            ]
        },
        [HI],
        "yo",
    ),
    "nulls of a table": (
        {"messages": [user("hi", tool_calls=None, weight=None), reply("yo", tool_calls=[])]},
        [HI],
        "yo",
    ),
    "weights": (
        {"messages": [HI, reply("no", weight=0), user("and"), reply("so", weight=1)]},
        [HI, reply("no", weight=0), user("and")],
        "so",
    ),
    "train": (
        {"messages": [HI, reply("no", train=False), user("x", train=False), reply("so", train=1)]},
        [HI, reply("no", weight=0), user("x")],
        "so",
    ),
    "what nothing learns from at the end": (
        {"messages": [*TALK, user("and"), reply("no", weight=0.0)]},
        [HI],
        "yo",
    ),
    "a completion that KTO calls good": (TEXT | {"label": True}, "p", "c"),
    "neutral fields": (
        TEXT | {"weight": 1, "train": True, "tools": [], "loss_mask": None},
        "p",
        "c",
    ),
}


@pytest.mark.parametrize(
    ("raw", "prompt", "completion"), DEMONSTRATIONS.values(), ids=list(DEMONSTRATIONS)
)
def test_demonstrations(raw, prompt, completion):
    found = schemas.demonstration(raw)
    assert (found["prompt"], found["completion"]) == (prompt, completion)
    left = {"messages", "conversations", "instruction", "input", "output", "system", "history"}
    assert not left & found.keys()
    assert schemas.demonstration(found) == found  # it may be written and read again


FRUIT = [user("Name a fruit."), reply("Apple."), user("Another.")]
RANKINGS = {  # what is given -> prompt, completions, ranks
    "scores": (
        {"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [8.5, 2, 8, 2.0]},
        "p",
        ["a", "b", "c", "d"],
        [1, 3, 2, 3],
    ),
    "one text twice, in one rank": (
        {"prompt": "p", "completions": ["a", "b", "a"], "ranks": [2, 1, 2]},
        "p",
        ["a", "b", "a"],
        [2, 1, 2],
    ),
    "scores and ranks that agree": (
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "ranks": [7, 3]},
        "p",
        ["a", "b"],
        [7, 3],
    ),
    "turns that both share join the prompt": (
        {
            "prompt": FRUIT[:1],
            "chosen": [*FRUIT[1:], reply("Pear.")],
            "rejected": [*FRUIT[1:], reply("No.")],
        },
        FRUIT,
        ["Pear.", "No."],
        [1, 2],
    ),
    "the prompt is in both": (
        {"prompt": FRUIT, "chosen": [*FRUIT, reply("Pear.")], "rejected": [*FRUIT, reply("No.")]},
        FRUIT,
        ["Pear.", "No."],
        [1, 2],
    ),
    "UltraFeedback": (
        {"prompt": "hi", "messages": TALK, "chosen": TALK, "rejected": [HI, reply("no")]},
        [HI],
        ["yo", "no"],
        [1, 2],
    ),
    "ShareGPT, one message each": (
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "yo"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        [HI],
        ["yo", "no"],
        [1, 2],
    ),
    "Alpaca": (
        {"instruction": "i", "input": "x", "chosen": "a", "rejected": "b"},
        "i\n\nx",
        ["a", "b"],
        [1, 2],
    ),
    "completions of messages": (
        {"prompt": [HI], "completions": [[YO], [reply("no")]], "ranks": [2, 1]},
        [HI],
        ["yo", "no"],
        [2, 1],
    ),
}


@pytest.mark.parametrize(
    ("raw", "prompt", "completions", "ranks"), RANKINGS.values(), ids=list(RANKINGS)
)
def test_rankings(raw, prompt, completions, ranks):
    found = schemas.ranking(raw)
    assert (found["prompt"], found["completions"], found["ranks"]) == (prompt, completions, ranks)
    assert schemas.ranking(found) == found


PROMPTS = {
    "Alpaca": ({"instruction": "i", "input": "x"}, "i\n\nx"),
    "system": ({"prompt": "hi", "system": "s"}, [say("system", "s"), HI]),
    "conversations": ({"conversations": TALK}, [HI]),
}


@pytest.mark.parametrize(("raw", "prompt"), PROMPTS.values(), ids=list(PROMPTS))
def test_prompts(raw, prompt):
    assert schemas.prompt(raw) == {"prompt": prompt}


REFUSED = [
    # of records
    ("demonstration", TEXT | {"tools": CALL}, ["tools=", "is not supported", "{tools: null}"]),
    ("prompt", {"prompt": "p", "chat_template_kwargs": {"x": 1}}, ["chat_template_kwargs="]),
    ("ranking", PAIR | {"system_prompt": "s"}, ["data.columns: {system: system_prompt}"]),
    ("demonstration", TEXT | {"images": ["a.png"]}, ["images=", "only text is read"]),
    ("demonstration", TEXT | {"weight": 0.5}, ["weight=0.5", "{weight: null}"]),
    ("demonstration", TEXT | {"train": False}, ["train=false", "drop the records"]),
    ("text", {"text": "t", "weight": 2}, ["weight=2", "repeat those"]),
    ("demonstration", TEXT | {"loss_mask": [0, 1]}, ["loss_mask=[0, 1]", "the weight 0"]),
    ("demonstration", TEXT | {"label": False}, ["label=false", "not to be learned"]),
    ("ranking", PAIR | {"labels": 0}, ["labels=0", "the better one"]),
    ("ranking", PAIR | {"margin": 2}, ["margin=2", "{margin: null}"]),
    ("ranking", TEXT | {"label": True}, ["label=true", "KTO", "chosen and rejected"]),
    # of messages
    (
        "demonstration",
        {"messages": [HI, reply(None, tool_calls=CALL)]},
        ["messages[1].tool_calls="],
    ),
    ("demonstration", {"messages": [HI, reply("a", tool_calls=CALL)]}, ["remove tool_calls"]),
    ("prompt", {"prompt": [HI, reply("a", reasoning_content="t"), HI]}, ["reasoning_content='t'"]),
    ("ranking", PAIR | {"prompt": [user("a", thinking="t")]}, ["prompt[0].thinking='t'"]),
    (
        "demonstration",
        {"messages": [HI, reply("a", loss_mask=0)]},
        ["loss_mask=0", "weight 0 or 1"],
    ),
    ("demonstration", {"messages": [HI, reply("a", weight=0.5)]}, ["weight=0.5", "0 or 1"]),
    (
        "demonstration",
        {"messages": [user("a", weight=1), YO]},
        ["messages[0].weight=1", "role user"],
    ),
    ("demonstration", {"messages": [HI, reply("a", weight=0, train=True)]}, ["says both"]),
    ("demonstration", {"messages": [HI, reply("a", weight=0)]}, ["no reply that is learned"]),
    (
        "demonstration",
        {"messages": [user([{"type": "image_url", "image_url": "x"}]), YO]},
        ["messages[0].content[0]=", "of type 'image_url'", "only text"],
    ),
    (
        "demonstration",
        {"conversations": [{"from": "observation", "value": "x"}]},
        ["conversations[0].from='observation'", "use one of human"],
    ),
    # two readings
    (
        "demonstration",
        {"prompt": "other", "messages": TALK},
        ["prompt='other'", "messages=[", "data.columns: {prompt: null}"],
    ),
    ("demonstration", {"messages": TALK, "conversations": TALK}, ["conversations=", "messages="]),
    ("demonstration", {"messages": TALK, "completion": "c"}, ["messages=", "reply to a reply"]),
    ("demonstration", {"instruction": "i", "prompt": "p", "completion": "c"}, ["prompt='p'"]),
    (
        "demonstration",
        {"instruction": "i", "output": "o", "completion": "c"},
        ["output='o'", "stands beside completion='c'"],
    ),
    (
        "demonstration",
        {"messages": [say("system", "a"), *TALK], "system": "b"},
        ["system='b'", "begin otherwise"],
    ),
    ("demonstration", {"messages": TALK, "history": [["a", "b"]]}, ["history=", "begin otherwise"]),
    ("demonstration", TEXT | {"history": "a question"}, ["history=", "{prompt: history}"]),
    (
        "ranking",
        {"prompt": [user("x")], "chosen": TALK, "rejected": [HI, reply("no")]},
        ["prompt=", "chosen=", "{prompt: null}"],
    ),
    (
        "ranking",
        {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]},
        ["ranks=[1, 2]", "scores=[1, 2]"],
    ),
    (
        "ranking",
        {"prompt": "p", "completions": ["a", "b", "a"], "ranks": [1, 2, 3]},
        ["completions[2]='a' equals completions[0]", "3 and 1", "on_bad_record=skip"],
    ),
    ("ranking", {"prompt": "p", "completions": ["a", "b"], "scores": [1, "2"]}, ["be numbers"]),
    ("ranking", {"prompt": "p", "completions": ["a", "b"], "scores": [1]}, ["1 entries for 2"]),
    ("ranking", {"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]}, ["one tie"]),
    # turns
    ("demonstration", {"prompt": [HI], "completion": [YO, HI]}, ["completion=", "with a reply"]),
    (
        "ranking",
        {
            "prompt": FRUIT[:1],
            "chosen": [reply("A?"), user("Yes."), reply("So.")],
            "rejected": [reply("B?"), user("No."), reply("So not.")],
        },
        ["rejected=", "differs from chosen before the last message", "cannot be compared yet"],
    ),
    ("ranking", {"chosen": [*TALK, HI], "rejected": TALK}, ["chosen=", "end with a reply"]),
    ("ranking", PAIR | {"ended": [True]}, ["ended=", "1 entries for 2"]),
    (
        "ranking",
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
            "system": "s",
        },
        ["system='s'", "stands beside transcripts"],
    ),
]


@pytest.mark.parametrize(("kind", "raw", "expected"), REFUSED)
def test_refused(kind, raw, expected):
    with pytest.raises(FieldError) as raised:
        getattr(schemas, kind)(raw)
    for part in [*expected, "; "]:
        assert part in str(raised.value)
    assert len(str(raised.value)) < 300
