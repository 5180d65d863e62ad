"""Tasks and answers as Argilla writes them, and what it writes as records.  All pure.

We write what records.to_json of Argilla 2 writes, with fields prompt and completion-1, ..., a
ranking question `ranks`, ratings `likert-1`, labels `flags-1`, a text `demonstration`.  files.py
reads and writes the file, which is one JSON list.
"""

import contextlib
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instruct_jax.data.schemas import Record
from instruct_jax.errors import FieldError, names
from instruct_jax.feedback import converters
from instruct_jax.feedback.converters import Import
from instruct_jax.feedback.store import Answer
from instruct_jax.feedback.tasks import LabelTask, dense

READ = (
    "responses to a ranking question whose values are fields, and to the text question"
    " demonstration, or the one that --rename QUESTION=demonstration names"
)
FORM = "give what records.to_json of Argilla writes"
OWN = re.compile(r"(likert|flags)-\d+")  # questions of our tasks that stand beside a ranking
Ranks = dict[str, int]  # field -> rank, in the order of the fields


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
        fields = {"prompt": converters.as_text(task.prompt)}
        for i, text in enumerate(task.completions, 1):
            fields[f"completion-{i}"] = text
        record = {
            "id": name,
            "fields": fields,
            "metadata": {"sample": converters.sample(task), "people": people},
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
            yield f"flags-{i}", converters.chosen_flags(flags)
    if answer.text is not None:
        yield "demonstration", answer.text


def _user(labeler: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, labeler))


def from_argilla(records: Sequence[tuple[str, Record]], into: Import) -> None:
    """Reads the rankings and demonstrations of records.to_json, of pairs (place, record)."""
    always_ranked = _always_ranked(records, into)
    for place, record in records:
        with into.answers(place):
            given = converters.part(record, "fields", FORM)
            fields = {into.name(name): value for name, value in given.items()}
            metadata = converters.ours(record, "metadata")
            answers = _answers(record, into)
            if not answers:
                into.left_out["records without a submitted response"] += 1
            for user, values in answers:
                base = {**converters.ours(metadata, "sample"), "labeler_id": None}
                if user is not None:
                    people = converters.ours(metadata, "people")
                    base["labeler_id"] = converters.nfc(people.get(user, user))
                with into.answers(f"{place}: user_id {user}"):
                    _read_answer(values, fields, base, always_ranked, into)


def _answers(record: Record, into: Import) -> list[tuple[Any, Record]]:
    """Pairs (user, question -> value) of the submitted responses to the questions that are read."""
    answers: dict[Any, tuple[Any, Record]] = {}
    for key, status, question, value in _responses_of(record):
        user, _ = key
        if status not in (None, "submitted"):
            into.left_out[f"responses with status {status}"] += 1
        elif into.reads(question):
            _, values = answers.setdefault(key, (user, {}))
            values[into.name(question)] = value
    return list(answers.values())


def _responses_of(record: Record) -> Iterator[tuple[tuple[Any, int], str | None, str, Any]]:
    """((user, which of this user's answers), status, question, value) of each response.

    Argilla 1 has a list of people, each with all values, and says which were submitted; Argilla 2
    has a list of people for each question.
    """
    if isinstance(record.get("responses"), list):
        for at, response in enumerate(converters.objects(record, "responses", FORM)):
            given = {"values": response.get("values") or {}}  # null in a draft
            values = converters.part(given, "values", FORM)
            for question in values:
                value = converters.part(values, question, FORM).get("value")
                yield (_user_id(response), at), response.get("status"), question, value
        return
    responses = converters.ours(record, "responses")
    for question in responses:
        count = Counter()
        for response in converters.objects(responses, question, FORM):
            user = _user_id(response)
            yield (user, count[user]), response.get("status"), question, response.get("value")
            count[user] += 1


def _user_id(response: Record) -> str | None:
    user = response.get("user_id")
    return None if user is None else str(user)


def _read_answer(
    values: Record,
    fields: Record,
    base: Record,
    always_ranked: set[str],
    into: Import,
) -> None:
    """Reads what one person answered to one record."""
    rankings = {}
    for question, value in values.items():
        order = _order(question, value, fields, always_ranked, into)
        if order is not None:
            rankings[question] = order
    ranking = converters.chosen(rankings, "ranks", "ranking")
    read = set()
    if ranking is not None:
        read = {ranking, *filter(OWN.fullmatch, values)}
        order = rankings[ranking]
        ranked = {
            "completions": [fields[name] for name in order],
            "ranks": dense(list(order.values())),
            **_argilla_extra(values, len(order)),
        }
        into.add_ranking({**_with_prompt(base, fields, order), **ranked})
    if "demonstration" in values:
        read.add("demonstration")
        whole = _with_prompt(base, fields, rankings.get(ranking, {}))
        into.add_demonstration({**whole, "completion": values["demonstration"]})
    for question in values.keys() - read:
        into.left_out[f"question {question!r}"] += 1


def _with_prompt(base: Record, fields: Record, ranked: Mapping[str, int]) -> Record:
    """`base` with the prompt and the other fields that are not ranked."""
    others = {name: value for name, value in fields.items() if name not in ranked}
    if "prompt" not in base:
        name = converters.prompt_field(others, "fields")
        others["prompt"] = others.pop(name)
    return {**others, **base}


def _argilla_extra(values: Record, k: int) -> Record:
    """Likert scores and flags of k completions, where they were given."""
    numbers = range(1, k + 1)
    likert = [values.get(f"likert-{i}") for i in numbers]
    flags = [values.get(f"flags-{i}") for i in numbers]
    return converters.extra(likert, flags)


def _named(value: Any) -> list[tuple[Any, Any]] | None:
    """Pairs (value, its rank or None) of the answer to a question; None where it is no list of
    values.

    A ranking is a list of values in order or of values with ranks; so is a choice of several
    labels, in no order.
    """
    if not isinstance(value, list):
        return None
    pairs = []
    for one in value:
        if isinstance(one, dict) and "value" in one:
            pairs.append((one["value"], one.get("rank")))
        elif isinstance(one, str | int):
            pairs.append((one, None))
        else:
            return None
    return pairs


def _always_ranked(records: Sequence[tuple[str, Record]], into: Import) -> set[str]:
    """The questions that every answer gives the same two or more values, as only a ranking does."""
    found = defaultdict(set)
    for _, record in records:
        with contextlib.suppress(FieldError):  # it is raised again by from_argilla
            for _, values in _answers(record, Import(only=into.only, rename=into.renamed)):
                for question, value in values.items():
                    pairs = _named(value) or []
                    found[question].add(frozenset(str(name) for name, _ in pairs))
    questions = set()
    for question, sets in found.items():
        if len(sets) == 1 and len(max(sets)) > 1:
            questions.add(question)
    return questions


def _order(
    question: str,
    value: Any,
    fields: Record,
    always_ranked: set[str],
    into: Import,
) -> Ranks | None:
    """Field -> rank, in the order of the fields; None where the question is no ranking.

    Values may have a hyphen where the name of the field has an underscore.
    """
    pairs = _named(value)
    if pairs is None or len(pairs) < 2 or OWN.fullmatch(question):
        return None
    has_ranks = any(rank is not None for _, rank in pairs)
    ranks: dict[str, Any] = {}
    for at, (name, rank) in enumerate(pairs, 1):
        ranks[_hyphenated(into.name(name))] = rank if has_ranks else at
    ranked = [field for field in fields if _hyphenated(field) in ranks]
    if len(ranked) < len(ranks):
        if not (ranked or has_ranks or question in always_ranked):
            return None  # labels
        raise FieldError(
            question,
            [name for name, _ in pairs],
            f"ranks values that are no fields; there are {names(fields)}",
            "say which each is by --rename VALUE=FIELD, or name the questions to read by --only",
        )
    order: Ranks = {}
    for field in ranked:
        order[field] = ranks[_hyphenated(field)]
        if not isinstance(order[field], int):
            fix = "give it a rank, or leave the answer out with --on_bad_record skip"
            raise FieldError(question, field, "is not ranked", fix)
    return order


def _hyphenated(name: str) -> str:
    return name.replace("_", "-")
