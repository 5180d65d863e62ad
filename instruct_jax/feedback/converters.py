"""Tasks and answers as Label Studio and Argilla write them, and back to records.  All pure; a file
of either is one JSON list.

Label Studio: a project with the configuration of `label_studio_config`; ranks are buckets.  Argilla
2: what records.to_json writes, with fields prompt and completion-1, ..., a ranking question
`ranks`, ratings `likert-1`, labels `flags-1`, a text `demonstration`.
"""

import datetime
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from instruct_jax.data import schemas
from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError, FieldError, names
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import FLAGS, LIKERT, Prompt, Task, dense

Found = tuple[list[Record], list[Record]]  # rankings, demonstrations


def shown(prompt: Prompt) -> str:
    """A prompt as one text."""
    return (
        prompt
        if isinstance(prompt, str)
        else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    )


# --- Label Studio ---


def label_studio_config(k: int) -> str:
    """The labeling configuration of a project whose tasks have up to k completions; demonstrations
    are written where there are none.
    """
    buckets = "".join(f'<Bucket name="rank-{i}" title="Rank {i}"/>' for i in range(1, k + 1))
    flags = "".join(
        f"<Choice value={quoteattr(name)} hint={quoteattr(text)}/>" for name, text in FLAGS.items()
    )
    each = "".join(
        f'<Rating name="likert-{i}" toName="prompt" maxRating="{max(LIKERT)}"/>'
        f'<Choices name="flags-{i}" toName="prompt" choice="multiple">{flags}</Choices>'
        for i in range(1, k + 1)
    )
    ranker = (
        '<List name="completions" value="$items"/><Ranker name="ranks"'
        f' toName="completions">{buckets}</Ranker>'
    )
    return (
        f'<View><Text name="prompt" value="$prompt"/>{ranker}{each}<TextArea name="demonstration"'
        ' toName="prompt"/></View>'
    )


def to_label_studio(tasks: Mapping[str, Task], answers: Sequence[Answer]) -> list[Record]:
    """One task of Label Studio for each of ours, with an annotation for each answer; what is not
    answered can be annotated there.
    """
    found = []
    for name, task in tasks.items():
        items = [
            {"id": str(i), "title": f"Output {i}", "body": text}
            for i, text in enumerate(task.completions, 1)
        ]
        data = {
            "prompt": shown(task.prompt),
            "items": items,
            "sample": {"prompt": task.prompt, "models": task.models, **task.extra},
        }
        annotations = [_annotation(answer) for answer in answers if answer.task_id == name]
        found.append(
            {"data": data, "annotations": annotations, "meta": {"task": name, "kind": task.kind}}
        )
    return found


def _annotation(answer: Answer) -> Record:
    def result(name: str, kind: str, value: Any, to: str = "prompt") -> Record:
        return {"from_name": name, "to_name": to, "type": kind, "value": {kind: value}}

    results = []
    if answer.ranks is not None:
        buckets = {
            f"rank-{r}": [str(i) for i, rank in enumerate(answer.ranks, 1) if rank == r]
            for r in sorted(set(answer.ranks))
        }
        results.append(result("ranks", "ranker", buckets, to="completions"))
    results += [
        result(f"likert-{i}", "rating", value)
        for i, value in enumerate(answer.likert, 1)
        if value is not None
    ]
    set_flags = [[name for name, value in flags.items() if value] for flags in answer.flags]
    results += [
        result(f"flags-{i}", "choices", flags) for i, flags in enumerate(set_flags, 1) if flags
    ]
    if answer.text is not None:
        results.append(
            {**result("demonstration", "textarea", None), "value": {"text": [answer.text]}}
        )
    when = datetime.datetime.fromtimestamp(answer.submitted, datetime.UTC).isoformat()
    about = {
        "was_cancelled": answer.skipped is not None,
        "lead_time": answer.seconds,
        "created_at": when,
    }
    return {"result": results, "completed_by": {"email": answer.labeler}, **about}


def from_label_studio(raw: Sequence[Any]) -> Found:
    """Rankings and demonstrations of an export of Label Studio (JSON): of each annotation that was
    not skipped its Ranker, with buckets or without, and its TextArea.  FieldError names the task
    and what is wrong with it."""
    rankings, demonstrations = [], []
    for number, task in enumerate(raw):
        data = _in(task, "data", number)
        base = {
            **data.get("sample", {}),
            "prompt": data.get("sample", {}).get("prompt", data.get("prompt", data.get("text"))),
        }
        items = {
            str(item.get("id")): item.get("body") or item.get("title")
            for item in data.get("items", [])
        }
        for annotation in task.get("annotations") or []:
            results = {one.get("type"): one for one in annotation.get("result", [])}
            if annotation.get("was_cancelled") or not results:
                continue
            who = (
                {}
                if annotation.get("completed_by") is None
                else {"labeler_id": _person(annotation["completed_by"])}
            )
            if ranker := results.get("ranker"):
                order = _buckets(ranker["value"]["ranker"], f"[{number}].ranker", items)
                extra = _studio_extra(annotation["result"], [*items])
                ranked = {
                    "completions": [*items.values()],
                    "ranks": [order[name] for name in items],
                }
                rankings += _ranking({**base, **ranked, **extra, **who}, number)
            if area := results.get("textarea"):
                text = "\n".join(area["value"]["text"])
                demonstrations.append(
                    _checked(
                        schemas.demonstration,
                        {**_without_models(base), "completion": text, **who},
                        number,
                    )
                )
    return rankings, demonstrations


def _buckets(value: Mapping[str, list[str]], key: str, items: Mapping[str, str]) -> dict[str, int]:
    """Item -> rank: of buckets whose names end in a number, or of one list in order; all items must
    be ranked.
    """
    if len(value) == 1 and not re.search(r"\d+$", next(iter(value))):
        places = {item: rank for rank, item in enumerate(next(iter(value.values())), 1)}
    else:
        numbers = {
            name: re.search(r"\d+$", name)
            for name, inside in value.items()
            if inside and name != "_"
        }
        if odd := [name for name, match in numbers.items() if not match]:
            raise FieldError(
                key,
                odd[0],
                "is a bucket without a rank",
                "name buckets rank-1, rank-2, ... or 1, 2, ...",
            )
        places = {
            item: int(match[0]) for name, match in numbers.items() if match for item in value[name]
        }
    if missing := [item for item in items if item not in places]:
        raise FieldError(key, missing[0], "is not ranked", "rank all items, or skip the task")
    return dict(zip(places, dense([*places.values()]), strict=True))


def _studio_extra(results: Sequence[Record], items: Sequence[str]) -> Record:
    """Likert scores and flags, where they were given."""
    by_name = {one.get("from_name"): one.get("value", {}) for one in results}
    likert = [by_name.get(f"likert-{i}", {}).get("rating") for i in range(1, len(items) + 1)]
    flags = [by_name.get(f"flags-{i}", {}).get("choices") for i in range(1, len(items) + 1)]
    return _extra(likert, flags)


def _extra(likert: list[int | None], flags: list[list[str] | None]) -> Record:
    found: Record = {"likert": likert} if any(value is not None for value in likert) else {}
    if any(value is not None for value in flags):
        found["flags"] = [{name: name in (value or []) for name in FLAGS} for value in flags]
    return found


def _person(value: Any) -> str:
    return str(value.get("email", value.get("id"))) if isinstance(value, dict) else str(value)


# --- Argilla ---


def to_argilla(tasks: Mapping[str, Task], answers: Sequence[Answer]) -> list[Record]:
    """One record of Argilla for each task, with the responses of all labelers.  Argilla knows
    people by UUID, so a labeler is the UUID of the name; metadata has the names."""
    found = []
    for name, task in tasks.items():
        mine = [answer for answer in answers if answer.task_id == name and answer.skipped is None]
        responses: dict[str, list[Record]] = {}
        for answer in mine:
            for question, value in _responses(answer):
                responses.setdefault(question, []).append(
                    {"value": value, "user_id": _user(answer.labeler)}
                )
        fields = {"prompt": shown(task.prompt)} | {
            f"completion-{i}": text for i, text in enumerate(task.completions, 1)
        }
        about = {
            "sample": {"prompt": task.prompt, "models": task.models, **task.extra},
            "people": {_user(a.labeler): a.labeler for a in mine},
        }
        found.append(
            {
                "id": name,
                "fields": fields,
                "metadata": about,
                "suggestions": {},
                "responses": responses,
                "vectors": {},
            }
        )
    return found


def _responses(answer: Answer) -> Iterator[tuple[str, Any]]:
    if answer.ranks is not None:
        yield (
            "ranks",
            [{"value": f"completion-{i}", "rank": rank} for i, rank in enumerate(answer.ranks, 1)],
        )
    for i, (likert, flags) in enumerate(zip(answer.likert, answer.flags, strict=True), 1):
        if likert is not None:
            yield f"likert-{i}", likert
        if any(flags.values()):
            yield f"flags-{i}", [name for name, value in flags.items() if value]
    if answer.text is not None:
        yield "demonstration", answer.text


def _user(labeler: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, labeler))


def from_argilla(raw: Sequence[Any]) -> Found:
    """Rankings and demonstrations of records.to_json of Argilla 2: every response to a ranking
    question (a list of values in order, or of values with ranks) whose values are fields, and every
    response to a text question `demonstration`.
    """
    rankings, demonstrations = [], []
    for number, record in enumerate(raw):
        fields, responses = _in(record, "fields", number), record.get("responses") or {}
        metadata = record.get("metadata") or {}
        people, sample = metadata.get("people", {}), metadata.get("sample", {})
        for question, given in responses.items():
            for response in given:
                who = {"labeler_id": people.get(response.get("user_id"), response.get("user_id"))}
                value = response.get("value")
                if question == "demonstration":
                    asked = {
                        **_without_models(sample),
                        "prompt": sample.get("prompt", fields.get("prompt")),
                    }
                    demonstrations.append(
                        _checked(
                            schemas.demonstration, {**asked, "completion": value, **who}, number
                        )
                    )
                elif isinstance(value, list) and (order := _order(value, fields)):
                    others = [text for name, text in fields.items() if name not in order]
                    asked = {
                        **sample,
                        "prompt": sample.get(
                            "prompt", fields.get("prompt", others[0] if others else None)
                        ),
                    }
                    ranked = {
                        "completions": [fields[name] for name in order],
                        "ranks": dense([*order.values()]),
                    }
                    extra = _argilla_extra(responses, response.get("user_id"), len(order))
                    rankings += _ranking({**asked, **ranked, **extra, **who}, number)
    return rankings, demonstrations


def _order(value: list[Any], fields: Mapping[str, str]) -> dict[str, int] | None:
    """Field -> rank, in the order of the fields; None where the values are no fields (labels, say)."""
    ranks = {
        (one["value"] if isinstance(one, dict) else one): (
            (one.get("rank") if isinstance(one, dict) else None) or at
        )
        for at, one in enumerate(value, 1)
    }
    place = {name.replace("_", "-"): name for name in fields}
    found = {
        place[name.replace("_", "-")]: rank
        for name, rank in ranks.items()
        if str(name).replace("_", "-") in place
    }
    return (
        {name: found[name] for name in fields if name in found}
        if len(found) == len(ranks) > 1
        else None
    )


def _argilla_extra(responses: Mapping[str, list[Record]], user: Any, k: int) -> Record:
    def said(question: str) -> Any:
        return next(
            (one["value"] for one in responses.get(question, []) if one.get("user_id") == user),
            None,
        )

    return _extra(
        [said(f"likert-{i}") for i in range(1, k + 1)],
        [said(f"flags-{i}") for i in range(1, k + 1)],
    )


def _without_models(sample: Record) -> Record:
    return {key: value for key, value in sample.items() if key != "models"}


def _in(record: Any, key: str, number: int) -> Record:
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        here = names(record) if isinstance(record, dict) else type(record).__name__
        raise FieldError(
            f"[{number}].{key}",
            None,
            f"is missing; there are {here}",
            "give the JSON that the other tool exports, a list",
        )
    return record[key]


def _ranking(record: Record, number: int) -> list[Record]:
    """[] where all is one tie: no pair is left to learn from."""
    return [] if len(set(record["ranks"])) == 1 else [_checked(schemas.ranking, record, number)]


def _checked(schema: schemas.Schema, record: Record, number: int) -> Record:
    try:
        return schema(record)
    except FieldError as error:
        raise DataError(f"[{number}]: {error}") from error
