"""What the forms of Label Studio and Argilla have in common; label_studio.py and argilla.py have
the rest.  All pure.
"""

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from instruct_jax.data import schemas
from instruct_jax.data.schemas import Prompt, Record
from instruct_jax.errors import ConfigError, DataError, FieldError, names, require
from instruct_jax.feedback.tasks import FLAGS, LabelTask


class Import:
    """The records that an export becomes, and what of it becomes none.

    `only`: the questions (controls) that are read, () = all; `rename`: their name -> ours, of
    questions, fields, buckets and values; `skip`: bad answers are dropped, not raised.
    """

    def __init__(
        self,
        *,
        only: Iterable[str] = (),
        rename: Mapping[str, str] | None = None,
        skip: bool = False,
    ):
        self.only = {nfc(name) for name in only}
        self.renamed = {nfc(theirs): nfc(ours) for theirs, ours in (rename or {}).items()}
        self.skip = skip
        self.rankings: list[Record] = []
        self.demonstrations: list[Record] = []
        self.dropped: list[str] = []  # bad answers: where, and why
        self.left_out: Counter[str] = Counter()  # what is no record -> how often it is there
        self.met: set[str] = set()  # names in the export

    def name(self, theirs: Any) -> str:
        """Our name of a question, field, bucket or value, in Unicode NFC."""
        name = nfc(theirs)
        self.met.add(name)
        return self.renamed.get(name, name)

    def reads(self, question: Any) -> bool:
        """Whether the answers to a question are read."""
        return not self.only or bool(self.only & {nfc(question), self.name(question)})

    @contextlib.contextmanager
    def answers(self, place: str) -> Iterator[None]:
        """A bad answer inside is dropped, or a DataError that says its place."""
        try:
            yield
        except FieldError as error:
            message = f"{place}: {error}"
            if not self.skip:
                raise DataError(message) from error
            self.dropped.append(message)

    def add_ranking(self, record: Record) -> None:
        """Adds a ranking; one single tie is left out, as no pair is left to learn from."""
        if len(set(record["ranks"])) == 1:
            self.left_out["rankings that are one tie"] += 1
        else:
            self.rankings.append(schemas.ranking(record))

    def add_demonstration(self, record: Record) -> None:
        """Adds a demonstration; `models` were asked for a ranking."""
        demonstration = {key: record[key] for key in record if key != "models"}
        self.demonstrations.append(schemas.demonstration(demonstration))

    def left_out_lines(self) -> list[str]:
        """What is no record, the most frequent first."""
        return [f"{count} x {what}" for what, count in self.left_out.most_common()]

    def check_options(self) -> None:
        """ConfigError where an option names nothing of the export that was read."""
        for option, given in (("--only", self.only), ("--rename", self.renamed)):
            unknown = sorted(set(given) - self.met - set(self.renamed.values()))
            require(
                not unknown,
                f"{option} {', '.join(unknown)}: nothing in the export has this name; there are"
                f" {names(self.met, 500)}",
            )


def parse_renames(words: Sequence[str]) -> dict[str, str]:
    """Their name -> ours, of words THEIRS=OURS."""
    renamed = {}
    for word in words:
        theirs, equals, ours = word.rpartition("=")
        if not (theirs and equals and ours):
            raise ConfigError(f"--rename {word}: write THEIRS=OURS, such as answer=demonstration")
        require(theirs not in renamed, f"--rename {theirs} is given twice; remove one of them")
        renamed[theirs] = ours
    return renamed


def nfc(name: Any) -> str:
    """A name in Unicode NFC, as two that look the same are the same."""
    return unicodedata.normalize("NFC", str(name))


def as_text(prompt: Prompt) -> str:
    """A prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def sample(task: LabelTask) -> Record:
    """The fields that both tools carry along unread, so that they come back."""
    return {"prompt": task.prompt, "models": task.models, **task.extra}


def chosen_flags(flags: Mapping[str, bool]) -> list[str]:
    """The names of the flags that are set."""
    return [name for name, value in flags.items() if value]


def extra(likert: Sequence[Any], chosen: Sequence[list[str] | None]) -> Record:
    """Likert scores and flags of completions, where they were given.

    `chosen`: the names of the flags that are set, or None, for each completion.
    """
    fields: Record = {}
    if any(score is not None for score in likert):
        fields["likert"] = list(likert)
    if any(flags is not None for flags in chosen):
        fields["flags"] = []
        for flags in chosen:
            names_set = flags or []
            fields["flags"].append({name: name in names_set for name in FLAGS})
    return fields


def ours(record: Record, key: str) -> Record:
    """record[key], which we wrote; {} where it is something else, of somebody else."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def part(record: Record, key: str, fix: str) -> Record:
    """record[key]; FieldError where there is no such object."""
    if not isinstance(record.get(key), dict):
        raise FieldError(key, record.get(key), f"is no object; there are {names(record)}", fix)
    return record[key]


def objects(record: Record, key: str, fix: str) -> list[Record]:
    """record[key], [] where it is absent; FieldError where it is no list of objects."""
    value = record.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise FieldError(key, value, "is no list of objects", fix)
    return value


def prompt_field(found: Mapping[str, Any], kind: str) -> str:
    """The prompt among the fields that are no completions: the one of this name, or the only text.

    FieldError where none is, or several may be.  `kind`: what the tool calls the fields.
    """
    if "prompt" in found:
        return "prompt"
    texts = [name for name, value in found.items() if isinstance(value, str | list)]
    if len(texts) == 1:
        return texts[0]
    reason = "could each be the prompt" if texts else "hold no prompt"
    fix = "say which it is by --rename FIELD=prompt"
    raise FieldError(kind, texts or sorted(found), reason, fix)


def chosen(found: Collection[str], ours: str, what: str) -> str | None:
    """The one question that is meant: the one of our name, or the only one; None where none is."""
    if ours in found:
        return ours
    if len(found) > 1:
        raise FieldError(
            "questions",
            sorted(found),
            f"could each be the {what}",
            f"name those to read, such as --only {min(found)!r}, or --rename {min(found)!r}={ours}",
        )
    return next(iter(found), None)
