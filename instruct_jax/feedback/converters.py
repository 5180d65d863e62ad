"""Tasks and answers as Label Studio and Argilla write them, and what these write as records.

All pure; files.py reads and writes the files, which are one JSON list for either tool.

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
from instruct_jax.data.schemas import Prompt, Record
from instruct_jax.errors import DataError, FieldError, names
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import FLAGS, LIKERT, LabelTask, dense

Records = tuple[list[Record], list[Record]]  # rankings, demonstrations


def as_text(prompt: Prompt) -> str:
    """A prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


# --- Label Studio ---


def label_studio_config(k: int) -> str:
    """The labeling configuration of a project whose tasks have up to k completions.

    Demonstrations are written where there are none.
    """
    numbers = range(1, k + 1)
    buckets = "".join(f'<Bucket name="rank-{i}" title="Rank {i}"/>' for i in numbers)
    flags = ""
    for name, text in FLAGS.items():
        flags += f"<Choice value={quoteattr(name)} hint={quoteattr(text)}/>"
    ratings = ""
    for i in numbers:
        ratings += f'<Rating name="likert-{i}" toName="prompt" maxRating="{max(LIKERT)}"/>'
        ratings += f'<Choices name="flags-{i}" toName="prompt" choice="multiple">{flags}</Choices>'
    ranker = (
        '<List name="completions" value="$items"/><Ranker name="ranks"'
        f' toName="completions">{buckets}</Ranker>'
    )
    return (
        f'<View><Text name="prompt" value="$prompt"/>{ranker}{ratings}'
        '<TextArea name="demonstration" toName="prompt"/></View>'
    )


def to_label_studio(tasks: Mapping[str, LabelTask], answers: Sequence[Answer]) -> list[Record]:
    """One task of Label Studio for each of ours, with an annotation for each answer.

    What is not answered yet can be annotated there.
    """
    converted = []
    for name, task in tasks.items():
        items = []
        for i, text in enumerate(task.completions, 1):
            items.append({"id": str(i), "title": f"Output {i}", "body": text})
        data = {"prompt": as_text(task.prompt), "items": items, "sample": _sample(task)}
        annotations = [_annotation(answer) for answer in answers if answer.task_id == name]
        converted.append(
            {
                "data": data,
                "annotations": annotations,
                "meta": {"task": name, "kind": task.kind},
            }
        )
    return converted


def _sample(task: LabelTask) -> Record:
    """The fields that both tools carry along unread, so that they come back."""
    return {"prompt": task.prompt, "models": task.models, **task.extra}


def _annotation(answer: Answer) -> Record:
    results = []
    if answer.ranks is not None:
        buckets: dict[str, list[str]] = {}
        for rank in sorted(set(answer.ranks)):
            buckets[f"rank-{rank}"] = []
        for i, rank in enumerate(answer.ranks, 1):
            buckets[f"rank-{rank}"].append(str(i))
        results.append(_result("ranks", "ranker", {"ranker": buckets}, to="completions"))
    for i, score in enumerate(answer.likert, 1):
        if score is not None:
            results.append(_result(f"likert-{i}", "rating", {"rating": score}))
    for i, flags in enumerate(answer.flags, 1):
        chosen = _chosen(flags)
        if chosen:
            results.append(_result(f"flags-{i}", "choices", {"choices": chosen}))
    if answer.text is not None:
        results.append(_result("demonstration", "textarea", {"text": [answer.text]}))
    when = datetime.datetime.fromtimestamp(answer.submitted, datetime.UTC)
    return {
        "result": results,
        "completed_by": {"email": answer.labeler},
        "was_cancelled": answer.skipped is not None,
        "lead_time": answer.seconds,
        "created_at": when.isoformat(),
    }


def _result(name: str, kind: str, value: Record, to: str = "prompt") -> Record:
    return {"from_name": name, "to_name": to, "type": kind, "value": value}


def _chosen(flags: Mapping[str, bool]) -> list[str]:
    return [name for name, value in flags.items() if value]


def from_label_studio(raw: Sequence[Any]) -> Records:
    """Rankings and demonstrations of a JSON export of Label Studio.

    Read are the Ranker, with buckets or without, and the TextArea of each annotation that was not
    skipped.  FieldError names the task and what is wrong with it.
    """
    rankings = []
    demonstrations = []
    for number, task in enumerate(raw):
        data = _part(task, "data", number)
        sample = data.get("sample", {})
        prompt = sample.get("prompt", data.get("prompt", data.get("text")))
        base = {**sample, "prompt": prompt}
        items = {}
        for item in data.get("items", []):
            name = str(item.get("id"))
            items[name] = item.get("body") or item.get("title")
        for annotation in task.get("annotations") or []:
            results = {one.get("type"): one for one in annotation.get("result", [])}
            if annotation.get("was_cancelled") or not results:
                continue
            who = {}
            if annotation.get("completed_by") is not None:
                who = {"labeler_id": _person(annotation["completed_by"])}
            if "ranker" in results:
                buckets = results["ranker"]["value"]["ranker"]
                order = _buckets(buckets, f"[{number}].ranker", items)
                ranking = {
                    **base,
                    "completions": list(items.values()),
                    "ranks": [order[name] for name in items],
                    **_studio_extra(annotation["result"], len(items)),
                    **who,
                }
                rankings += _ranking(ranking, number)
            if "textarea" in results:
                text = "\n".join(results["textarea"]["value"]["text"])
                demonstration = {**_without_models(base), "completion": text, **who}
                demonstrations.append(_checked(schemas.demonstration, demonstration, number))
    return rankings, demonstrations


def _buckets(
    buckets: Mapping[str, list[str]],
    key: str,
    items: Mapping[str, str],
) -> dict[str, int]:
    """Item -> rank, from 1; all items must be ranked.

    The names of the buckets end in a number, or there is one list, which is in order.
    """
    first = next(iter(buckets), "")
    places = {}
    if len(buckets) == 1 and not re.search(r"\d+$", first):
        for rank, item in enumerate(buckets[first], 1):
            places[item] = rank
    else:
        for name, inside in buckets.items():
            if not inside or name == "_":
                continue
            number = re.search(r"\d+$", name)
            if number is None:
                fix = "name buckets rank-1, rank-2, ... or 1, 2, ..."
                raise FieldError(key, name, "is a bucket without a rank", fix)
            for item in inside:
                places[item] = int(number[0])
    for item in items:
        if item not in places:
            raise FieldError(key, item, "is not ranked", "rank all items, or skip the task")
    return dict(zip(places, dense(list(places.values())), strict=True))


def _studio_extra(results: Sequence[Record], k: int) -> Record:
    """Likert scores and flags of k completions, where they were given."""
    by_name = {one.get("from_name"): one.get("value", {}) for one in results}
    likert = []
    flags = []
    for i in range(1, k + 1):
        rated = by_name.get(f"likert-{i}", {})
        likert.append(rated.get("rating"))
        chosen = by_name.get(f"flags-{i}", {})
        flags.append(chosen.get("choices"))
    return _extra(likert, flags)


def _extra(likert: list[int | None], chosen: list[list[str] | None]) -> Record:
    """`chosen`: the names of the flags that are set, or None, for each completion."""
    extra: Record = {}
    if any(score is not None for score in likert):
        extra["likert"] = likert
    if any(flags is not None for flags in chosen):
        extra["flags"] = []
        for flags in chosen:
            names_set = flags or []
            extra["flags"].append({name: name in names_set for name in FLAGS})
    return extra


def _person(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("email", value.get("id"))
    return str(value)


# --- Argilla ---


def to_argilla(tasks: Mapping[str, LabelTask], answers: Sequence[Answer]) -> list[Record]:
    """One record of Argilla for each task, with the responses of all labelers.

    Argilla knows people by UUID, so a labeler is the UUID of the name; metadata has the names.
    """
    converted = []
    for name, task in tasks.items():
        people = {}
        responses = {}
        for answer in answers:
            if answer.task_id != name or answer.skipped is not None:
                continue
            user = _user(answer.labeler)
            people[user] = answer.labeler
            for question, value in _responses(answer):
                response = {"value": value, "user_id": user}
                responses.setdefault(question, []).append(response)
        fields = {"prompt": as_text(task.prompt)}
        for i, text in enumerate(task.completions, 1):
            fields[f"completion-{i}"] = text
        record = {
            "id": name,
            "fields": fields,
            "metadata": {"sample": _sample(task), "people": people},
            "suggestions": {},
            "responses": responses,
            "vectors": {},
        }
        converted.append(record)
    return converted


def _responses(answer: Answer) -> Iterator[tuple[str, Any]]:
    """Pairs (question, value)."""
    if answer.ranks is not None:
        ranks = []
        for i, rank in enumerate(answer.ranks, 1):
            ranks.append({"value": f"completion-{i}", "rank": rank})
        yield "ranks", ranks
    for i, (likert, flags) in enumerate(zip(answer.likert, answer.flags, strict=True), 1):
        if likert is not None:
            yield f"likert-{i}", likert
        if any(flags.values()):
            yield f"flags-{i}", _chosen(flags)
    if answer.text is not None:
        yield "demonstration", answer.text


def _user(labeler: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, labeler))


def from_argilla(raw: Sequence[Any]) -> Records:
    """Rankings and demonstrations of records.to_json of Argilla 2.

    Read are the responses to ranking questions whose values are fields, as a list of values in
    order or of values with ranks, and to the text question `demonstration`.
    """
    rankings = []
    demonstrations = []
    for number, record in enumerate(raw):
        fields = _part(record, "fields", number)
        metadata = record.get("metadata") or {}
        people = metadata.get("people", {})
        sample = metadata.get("sample", {})
        responses = record.get("responses") or {}
        for question, given in responses.items():
            for response in given:
                user = response.get("user_id")
                value = response.get("value")
                who = {"labeler_id": people.get(user, user)}
                prompt = sample.get("prompt", fields.get("prompt"))
                if question == "demonstration":
                    demonstration = {
                        **_without_models(sample),
                        "prompt": prompt,
                        "completion": value,
                        **who,
                    }
                    demonstrations.append(_checked(schemas.demonstration, demonstration, number))
                    continue
                order = _order(value, fields)
                if order is None:
                    continue
                if "prompt" not in sample and "prompt" not in fields:
                    others = [text for name, text in fields.items() if name not in order]
                    prompt = others[0] if others else None
                ranking = {
                    **sample,
                    "prompt": prompt,
                    "completions": [fields[name] for name in order],
                    "ranks": dense(list(order.values())),
                    **_argilla_extra(responses, user, len(order)),
                    **who,
                }
                rankings += _ranking(ranking, number)
    return rankings, demonstrations


def _order(value: Any, fields: Mapping[str, str]) -> dict[str, int] | None:
    """Field -> rank, in the order of the fields; None where the value is no ranking of fields.

    Values may have a hyphen where the name of the field has an underscore.
    """
    if not isinstance(value, list):
        return None
    ranks = {}
    for at, one in enumerate(value, 1):
        if isinstance(one, dict):
            ranks[one["value"]] = one.get("rank") or at
        else:
            ranks[one] = at
    hyphenated = {}
    for name, rank in ranks.items():
        hyphenated[str(name).replace("_", "-")] = rank
    order = {}
    for field in fields:
        rank = hyphenated.get(field.replace("_", "-"))
        if rank is not None:
            order[field] = rank
    all_are_fields = len(order) == len(ranks)
    if not all_are_fields or len(ranks) < 2:
        return None
    return order


def _argilla_extra(responses: Mapping[str, list[Record]], user: Any, k: int) -> Record:
    """Likert scores and flags that one person gave to k completions."""

    def answer(question: str) -> Any:
        for one in responses.get(question, []):
            if one.get("user_id") == user:
                return one["value"]
        return None

    numbers = range(1, k + 1)
    likert = [answer(f"likert-{i}") for i in numbers]
    flags = [answer(f"flags-{i}") for i in numbers]
    return _extra(likert, flags)


def _without_models(sample: Record) -> Record:
    return {key: value for key, value in sample.items() if key != "models"}


def _part(record: Any, key: str, number: int) -> Record:
    """record[key]; FieldError where there is no such object."""
    if isinstance(record, dict) and isinstance(record.get(key), dict):
        return record[key]
    present = names(record) if isinstance(record, dict) else type(record).__name__
    raise FieldError(
        f"[{number}].{key}",
        None,
        f"is missing; there are {present}",
        "give the JSON that the other tool exports, a list",
    )


def _ranking(record: Record, number: int) -> list[Record]:
    """The checked ranking; [] where all is one tie, as no pair is left to learn from."""
    if len(set(record["ranks"])) == 1:
        return []
    return [_checked(schemas.ranking, record, number)]


def _checked(schema: schemas.Schema, record: Record, number: int) -> Record:
    try:
        return schema(record)
    except FieldError as error:
        raise DataError(f"[{number}]: {error}") from error
