"""Tasks and answers as Label Studio writes them, and what it writes as records.  All pure.

We write tasks of a project with the configuration of `label_studio_config`; ranks are buckets.
files.py reads and writes the file, which is one JSON list.
"""

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from instruct_jax.data.schemas import Record
from instruct_jax.errors import FieldError, names
from instruct_jax.feedback import converters
from instruct_jax.feedback.converters import Import
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import FLAGS, LIKERT, LabelTask, dense

READ = (
    "a Ranker, a Pairwise, a Rating of each output, and a TextArea for the demonstration, in the"
    " export that Label Studio names JSON"
)
OWN = re.compile(r"(likert|flags)-\d+")  # controls of our configuration that stand beside a ranking
LEAVE_OUT = "rank all items, skip the task, or leave it out with --on_bad_record skip"
FORM = "give the export that Label Studio names JSON, not JSON-MIN"
Ranked = tuple[list[str], list[Any], list[int]]  # fields of data, completions, ranks
TYPES = ("ranker", "pairwise", "rating", "textarea")


@dataclasses.dataclass(frozen=True)
class Controls:
    """What an export tells of the controls of its project; the configuration is not in it."""

    texts: set[str]  # names of those of type TextArea
    rated: set[str]  # objects of those of type Rating, but for the prompt
    others: set[str]  # names of all but texts


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
        data = {
            "prompt": converters.as_text(task.prompt),
            "items": items,
            "sample": converters.sample(task),
        }
        annotations = [_annotation(answer) for answer in answers if answer.task_id == name]
        converted.append(
            {
                "data": data,
                "annotations": annotations,
                "meta": {"task": name, "kind": task.kind},
            }
        )
    return converted


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
        ticked = converters.chosen_flags(flags)
        if ticked:
            results.append(_result(f"flags-{i}", "choices", {"choices": ticked}))
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


def from_label_studio(tasks: Sequence[tuple[str, Record]], into: Import) -> None:
    """Reads the rankings and demonstrations of a JSON export, of pairs (place, task)."""
    controls = _controls(tasks, into)
    for place, task in tasks:
        with into.answers(place):
            given = converters.part(task, "data", FORM)
            data = {into.name(key): value for key, value in given.items()}
            annotations = _annotations(task)
            if not annotations:
                into.left_out["tasks without an annotation"] += 1
            for at, annotation in enumerate(annotations):
                with into.answers(f"{place}: annotations[{at}]"):
                    _read_annotation(annotation, data, controls, into)


def _controls(tasks: Sequence[tuple[str, Record]], into: Import) -> Controls:
    texts = set()
    rated = set()
    others = set()
    for _, task in tasks:
        with contextlib.suppress(FieldError):  # it is raised again by from_label_studio
            results = []
            for annotation in _annotations(task):
                if not annotation.get("was_cancelled"):
                    results += _results(annotation, into)
            for result in results:
                is_text = result["type"] == "textarea"
                (texts if is_text else others).add(result["from_name"])
                if result["type"] == "rating" and result["to_name"] != "prompt":
                    rated.add(result["to_name"])
    return Controls(texts, rated, others)


def _annotations(task: Record) -> list[Record]:
    return converters.objects(task, "annotations", FORM)


def _results(annotation: Record, into: Import) -> list[Record]:
    """The results of the controls that are read, under our names."""
    results = []
    for given in converters.objects(annotation, "result", FORM):
        control = given.get("from_name", "")
        to = str(given.get("to_name", "")).split(",")
        value = given.get("value")
        result = {
            "from_name": into.name(control),
            "to_name": ",".join(into.name(name) for name in to),
            "type": str(given.get("type")),
            "value": value if isinstance(value, dict) else {},
        }
        if into.reads(control):
            results.append(result)
    return results


def _read_annotation(
    annotation: Record,
    data: Record,
    controls: Controls,
    into: Import,
) -> None:
    if annotation.get("was_cancelled"):
        into.left_out["annotations that were skipped in Label Studio"] += 1
        return
    results = _results(annotation, into)
    if not results:
        into.left_out["annotations without a result"] += 1
    kinds = _by_kind(results)
    rankers = kinds["ranker"] | kinds["pairwise"]
    ratings = [result for result in kinds["rating"].values() if result["to_name"] in controls.rated]
    read = set()
    ranked = None
    ranker = converters.chosen(rankers, "ranks", "ranking")
    if ranker is not None:
        read = {ranker}
        ranked = _ranked(rankers[ranker], data, into)
    elif len({result["to_name"] for result in ratings}) > 1:
        read = {result["from_name"] for result in ratings}
        ranked = _rated(ratings, controls.rated, data)
    compared: list[str] = []
    if ranked is not None:
        by_name = {result["from_name"]: result for result in results}
        read |= {name for name in by_name if OWN.fullmatch(name)}
        compared, completions, ranks = ranked
        extra = _studio_extra(by_name, len(ranks))
        base = _base(annotation, data, compared)
        into.add_ranking({**base, "completions": completions, "ranks": ranks, **extra})
    area = _demonstration(kinds["textarea"], controls, into)
    if area is not None:
        read.add(area)
        base = _base(annotation, data, compared)
        into.add_demonstration({**base, "completion": _text(kinds["textarea"][area])})
    for result in results:
        if result["from_name"] not in read:
            into.left_out[f"{result['type']} {result['from_name']!r}"] += 1


def _by_kind(results: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Type -> control -> its result, of the types that are read; each control has one."""
    kinds: dict[str, dict[str, Record]] = {kind: {} for kind in TYPES}
    for result in results:
        kind, control = result["type"], result["from_name"]
        if kind not in kinds:
            continue
        if control in kinds[kind]:
            raise FieldError(
                "from_name",
                control,
                "has two results in one annotation",
                "keep one, or leave the annotation out with --on_bad_record skip",
            )
        kinds[kind][control] = result
    return kinds


def _base(annotation: Record, data: Record, compared: Sequence[str]) -> Record:
    """The fields of a record besides its completions: prompt, labeler, and other fields of data."""
    sample = converters.ours(data, "sample")
    fields = {}
    for key, value in data.items():
        if key not in ("items", *compared) and value is not sample:
            fields["sample_id" if key == "id" else key] = value
    if "prompt" not in sample:
        if "text" in fields and "prompt" not in fields:
            fields["prompt"] = fields.pop("text")
        name = converters.prompt_field(fields, "data")
        fields["prompt"] = fields.pop(name)
    base = {**fields, **sample}
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        person = person.get("email", person.get("id"))
    if person is not None:
        base["labeler_id"] = converters.nfc(person)
    return base


def _demonstration(texts: Mapping[str, Record], controls: Controls, into: Import) -> str | None:
    """The TextArea that is the demonstration, or None.

    It is the one of this name or, where the export has no other control, the only one.
    """
    if "demonstration" in controls.texts:
        return "demonstration" if "demonstration" in texts else None
    if not texts:
        return None
    area = converters.chosen(controls.texts, "demonstration", "demonstration")
    if controls.others and not into.only:
        raise FieldError(
            "from_name",
            area,
            f"may be a comment beside {names(controls.others)}, or the demonstration",
            f"take it by --rename {area!r}=demonstration, or name what else to read by --only",
        )
    return area


def _text(result: Record) -> str:
    """What was written into a TextArea."""
    text = result["value"].get("text")
    if isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise FieldError(
            result["from_name"],
            text,
            "is not one text",
            "keep one, or leave the annotation out with --on_bad_record skip",
        )
    return text


def _ranked(result: Record, data: Record, into: Import) -> Ranked:
    """What a Ranker or a Pairwise ranks."""
    if result["type"] == "pairwise":
        return _pair(result, data)
    field = _list_of_items(result, data)
    items = _items(field, data[field], into)
    order = _order(result, items, into)
    return [field], list(items.values()), [order[name] for name in items]


def _pair(result: Record, data: Record) -> Ranked:
    control = result["from_name"]
    sides = result["to_name"].split(",")
    if len(sides) != 2:
        raise FieldError(control, sides, "does not compare two objects", "correct its toName")
    completions = [_output(control, name, data) for name in sides]
    ranks = {"left": [1, 2], "right": [2, 1], sides[0]: [1, 2], sides[1]: [2, 1]}
    selected = str(result["value"].get("selected"))
    if selected not in ranks:
        raise FieldError(control, selected, f"is none of left, right and {names(sides)}", LEAVE_OUT)
    return sides, completions, ranks[selected]


def _output(control: str, name: str, data: Record) -> Any:
    """The text of an object that is compared; Label Studio exports its name, not its field."""
    if name not in data:
        raise FieldError(
            control,
            name,
            f"is no field of data; there are {names(data)}",
            f"say which field it shows by --rename FIELD={name}",
        )
    return data[name]


def _rated(ratings: Sequence[Record], rated: set[str], data: Record) -> Ranked:
    """The ranking that the ratings of several outputs make, the highest first."""
    stars: dict[str, Any] = {}
    controls: dict[str, str] = {}
    for result in ratings:
        name, control = result["to_name"], result["from_name"]
        _output(control, name, data)
        if name in stars:
            both = [controls[name], control]
            fix = f"name those to read, such as --only {both[0]!r}"
            raise FieldError(name, both, "rate the same output", fix)
        stars[name], controls[name] = result["value"].get("rating"), control
    compared = [name for name in data if name in rated]
    for name in compared:
        if not isinstance(stars.get(name), int | float):
            raise FieldError(name, stars.get(name), "is no rating of this output", LEAVE_OUT)
    ranks = dense([-stars[name] for name in compared])
    return compared, [data[name] for name in compared], ranks


def _list_of_items(result: Record, data: Record) -> str:
    """The field of data with the items that a Ranker orders.

    Label Studio exports the name of the List but not its field, which is `items` in its examples.
    """
    lists = []
    for key, value in data.items():
        if isinstance(value, list) and all(isinstance(one, dict) and "id" in one for one in value):
            lists.append(key)
    for field in (result["to_name"], "items"):
        if field in lists:
            return field
    if len(lists) == 1:
        return lists[0]
    raise FieldError(
        "data",
        lists or sorted(data),
        f"has no list of items for {result['from_name']!r} to rank, each with an id",
        "say which it is by --rename FIELD=items",
    )


def _items(field: str, given: Sequence[Record], into: Import) -> dict[str, Any]:
    """Id -> text of each item."""
    items: dict[str, Any] = {}
    for item in given:
        name = into.name(item["id"])
        if name in items:
            raise FieldError(field, name, "is the id of two items", "give each its own")
        texts = [item[key] for key in ("body", "html", "title") if key in item]
        items[name] = texts[0] if texts else None
    return items


def _order(result: Record, items: Mapping[str, Any], into: Import) -> dict[str, int]:
    """Item -> rank, from 1; all items must be ranked.

    A Ranker without buckets gives one list in order, under its own name.  The names of buckets end
    in their rank.
    """
    control = result["from_name"]
    given = converters.part(result["value"], "ranker", "give the result of a Ranker")
    buckets: dict[str, list[Any]] = {}
    for name, inside in given.items():
        if not isinstance(inside, list):
            raise FieldError(f"{control}.ranker", inside, "is no list of items", FORM)
        buckets[into.name(name)] = inside
    first = next(iter(buckets), "")
    in_order = first == control or not re.search(r"\d+$", first)
    places = {}
    if len(buckets) == 1 and in_order:
        for rank, item in enumerate(buckets[first], 1):
            places[into.name(item)] = rank
    else:
        for name, inside in buckets.items():
            if not inside or name == "_":
                continue
            number = re.search(r"\d+$", name)
            if number is None:
                fix = "say its rank by --rename BUCKET=rank-1 and so on, for each bucket"
                raise FieldError(f"{control}.ranker", name, "is a bucket without a rank", fix)
            for item in inside:
                places[into.name(item)] = int(number[0])
    for item in items:
        if item not in places:
            raise FieldError(f"{control}.ranker", item, "is not ranked", LEAVE_OUT)
    unknown = places.keys() - items.keys()
    if unknown:
        reason = f"are no items of the task; there are {names(items)}"
        raise FieldError(f"{control}.ranker", sorted(unknown), reason, "correct the ids")
    return dict(zip(places, dense(list(places.values())), strict=True))


def _studio_extra(by_name: Mapping[str, Record], k: int) -> Record:
    """Likert scores and flags of k completions, where they were given."""
    likert = []
    flags = []
    for i in range(1, k + 1):
        rated = by_name.get(f"likert-{i}", {"value": {}})
        likert.append(rated["value"].get("rating"))
        ticked = by_name.get(f"flags-{i}", {"value": {}})
        flags.append(ticked["value"].get("choices"))
    return converters.extra(likert, flags)
