"""Personal data in text: e-mail addresses, phone numbers, cards, IP addresses and keys.

They are found by regular expressions, and more with the extra `pii`.  Names and street addresses,
which have no format, are not found.
"""

import collections
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any

from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError

Span = tuple[int, int, str]  # start, stop, kind
Find = Callable[[str], list[Span]]

EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
PHONE = re.compile(
    r"(?<![\w+.-])\+\d(?:[ .\-/()]{0,2}\d){7,14}(?![\w-])"  # +49 30 901820
    r"|(?<![\w+.-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"  # (212) 555-0123
)
CARD = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}"
    r"|3\d{3}[ -]\d{6}[ -]\d{5}|[2-6]\d{12,18})(?![\w-])"
)
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}"
    r"|[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7})(?![\w:]|\.\d)"
)
KEYS = (
    re.compile(
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{1,10000}?-----END [A-Z ]{0,30}PRIVATE KEY-----",
        re.DOTALL,
    ),
    # OpenAI, Stripe, Anthropic
    re.compile(r"\b(?:sk|pk|rk)[-_](?:[A-Za-z]{2,10}[-_]){0,2}[A-Za-z0-9_-]{20,200}"),
    # GitHub, GitLab, Hugging Face, Slack
    re.compile(r"\b(?:gh[opsur]|github_pat|glpat|hf|xox[abeoprs])[-_][A-Za-z0-9_-]{20,250}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}"),  # Amazon, Google
    # JSON web tokens
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    # assignments, of which the value is the key
    re.compile(
        r"(?i)\b(?:api[_-]?key|access[_-]?token|secret[_-]?key|client[_-]?secret|password|passwd)"
        r"[\"']?\s?[:=]\s?[\"']?([^\s\"',;]{8,200})"
    ),
)
# of presidio, those that need no model and no network, and are right about most of what they find
RECOGNIZERS = (
    "IbanRecognizer",
    "CryptoRecognizer",
    "UsSsnRecognizer",
    "UsItinRecognizer",
    "UkNinoRecognizer",
    "EsNifRecognizer",
    "ItFiscalCodeRecognizer",
    "PlPeselRecognizer",
    "InAadhaarRecognizer",
    "MacAddressRecognizer",
)
MIN_SCORE = 0.5  # the least score of these that counts
# phonenumbers.Leniency.STRICT_GROUPING: digits are grouped as in their country, so that 1685-1753
# is no phone number
STRICT_GROUPING = 2
MIN_DIGITS = 7  # of a phone number that presidio finds


def find(text: str) -> list[Span]:
    """The personal data that the regular expressions find, in any order."""
    spans = []
    for pattern in KEYS:
        for match in pattern.finditer(text):
            # where the pattern has a group, it is the key: of `password: x` only x is masked
            spans.append((*match.span(pattern.groups), "KEY"))
    if "@" in text:
        for match in EMAIL.finditer(text):
            spans.append((*match.span(), "EMAIL"))
    for match in CARD.finditer(text):
        if _is_card(match[0]):
            spans.append((*match.span(), "CARD"))
    for match in IP.finditer(text):
        if _is_public(match[0]):
            spans.append((*match.span(), "IP"))
    for match in PHONE.finditer(text):
        spans.append((*match.span(), "PHONE"))
    return spans


def finder_with_presidio() -> Find:
    """`find`, and what presidio finds besides.

    These are phone numbers as eight countries write them, IBANs, crypto wallets, MAC addresses, and
    numbers that states give people.  DataError where presidio is not installed.
    """
    try:
        from presidio_analyzer import predefined_recognizers
    except ImportError as error:
        raise DataError(
            "pii.library=presidio needs the extra pii, and presidio-analyzer is not installed; pip"
            " install '.[pii]', or set pii.library to null"
        ) from error
    recognizers: list[Any] = [getattr(predefined_recognizers, name)() for name in RECOGNIZERS]
    phones = predefined_recognizers.PhoneRecognizer(leniency=STRICT_GROUPING)

    def find_more(text: str) -> list[Span]:
        spans = find(text)
        for recognizer in recognizers:
            for result in recognizer.analyze(text, recognizer.supported_entities, None) or ():
                if result.score >= MIN_SCORE:
                    kind = result.entity_type.removesuffix("_CODE")
                    spans.append((result.start, result.end, kind))
        for result in phones.analyze(text, phones.supported_entities):
            found = text[result.start : result.end]
            digits = sum(char.isdigit() for char in found)
            if digits >= MIN_DIGITS:
                spans.append((result.start, result.end, "PHONE"))
        return spans

    return find_more


def merged(spans: Sequence[Span]) -> list[Span]:
    """The spans in order and without overlaps.

    Spans that overlap become one, of the kind of the one that begins first or, of two that begin
    together, is longer.
    """

    def longest_first(span: Span) -> tuple[int, int, str]:
        start, stop, kind = span
        return start, -stop, kind

    result: list[Span] = []
    for start, stop, kind in sorted(spans, key=longest_first):
        if result and start < result[-1][1]:
            first_start, first_stop, first_kind = result[-1]
            result[-1] = (first_start, max(first_stop, stop), first_kind)
        else:
            result.append((start, stop, kind))
    return result


def mask(text: str, spans: Sequence[Span]) -> str:
    """The text with [EMAIL] and the like in the place of each of the `merged` spans."""
    for start, stop, kind in reversed(spans):
        text = f"{text[:start]}[{kind}]{text[stop:]}"
    return text


def masked(record: Record, finder: Find) -> tuple[Record, dict[str, int]]:
    """The record with masks in prompt and completions, and how many of each kind there are."""
    counts: collections.Counter[str] = collections.Counter()

    def clean(text: str) -> str:
        spans = merged(finder(text))
        counts.update(kind for _, _, kind in spans)
        return mask(text, spans)

    prompt = record["prompt"]
    changed: Record = {}
    if isinstance(prompt, str):
        changed["prompt"] = clean(prompt)
    else:
        changed["prompt"] = [turn | {"content": clean(turn["content"])} for turn in prompt]
    if "completion" in record:
        changed["completion"] = clean(record["completion"])
    if "completions" in record:
        changed["completions"] = [clean(text) for text in record["completions"]]
    return record | changed, dict(counts)


def _is_card(text: str) -> bool:
    """Whether the Luhn sum of 13 to 19 digits ends in 0."""
    digits = [int(char) for char in reversed(text) if char.isdigit()]
    total = sum(digits[::2])
    for digit in digits[1::2]:
        tens, ones = divmod(2 * digit, 10)
        total += tens + ones
    return total % 10 == 0


def _is_public(text: str) -> bool:
    """Whether it is an address of the internet; 127.0.0.1 and 192.168.0.1 belong to nobody."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
