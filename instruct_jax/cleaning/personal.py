"""Personal data in text: e-mail addresses, phone numbers, cards, IP addresses and keys, by regular
expressions; more with the extra `pii`.

Formats are found, names and street addresses are not.
"""

import collections
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any

from instruct_jax.data.schemas import Record
from instruct_jax.errors import DataError

Span = tuple[int, int, str]  # where it begins, where it ends, what it is
Find = Callable[[str], list[Span]]

EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
PHONE = re.compile(
    r"(?<![\w+.-])\+\d(?:[ .\-/()]{0,2}\d){7,14}(?![\w-])"  # +49 30 901820
    r"|(?<![\w+.-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"  # (212) 555-0123
)
CARD = re.compile(
    r"(?<![\w.-])(?:[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|3\d{3}[ -]\d{6}["
    r" -]\d{5}|[2-6]\d{12,18})(?![\w-])"
)
IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4}(?:::?[0-9A-Fa-f]{1,4}){3,7})(?![\w:]|\.\d)"
)
KEYS = (
    re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{1,10000}?-----END [A-Z ]{0,30}PRIVATE KEY-----", re.DOTALL),
    # OpenAI, Stripe, Anthropic
    re.compile(r"\b(?:sk|pk|rk)[-_](?:[A-Za-z]{2,10}[-_]){0,2}[A-Za-z0-9_-]{20,200}"),
    # GitHub, GitLab, Hugging Face, Slack
    re.compile(r"\b(?:gh[opsur]|github_pat|glpat|hf|xox[abeoprs])[-_][A-Za-z0-9_-]{20,250}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}"),  # Amazon, Google
    # JSON web tokens
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    re.compile(r"(?i)\b(?:api[_-]?key|access[_-]?token|secret[_-]?key|client[_-]?secret|password|passwd)[\"']?\s?[:=]\s?[\"']?([^\s\"',;]{8,200})"),
)  # fmt: skip
# of presidio, those that need no model and no network, and are right about most of what they find
RECOGNIZERS = (
    "IbanRecognizer", "CryptoRecognizer", "UsSsnRecognizer", "UsItinRecognizer", "UkNinoRecognizer",
    "EsNifRecognizer", "ItFiscalCodeRecognizer", "PlPeselRecognizer", "InAadhaarRecognizer", "MacAddressRecognizer",
)  # fmt: skip
SCORE = 0.5  # the least score of these that counts
STRICT = 2  # of phone numbers: digits are grouped as in their country, so 1685-1753 is none


def find(text: str) -> list[Span]:
    """What the regular expressions find."""
    found = [(*_span(match), "KEY") for pattern in KEYS for match in pattern.finditer(text)]
    if "@" in text:
        found += [(*match.span(), "EMAIL") for match in EMAIL.finditer(text)]
    found += [(*match.span(), "CARD") for match in CARD.finditer(text) if _is_card(match[0])]
    found += [(*match.span(), "IP") for match in IP.finditer(text) if _is_public(match[0])]
    return found + [(*match.span(), "PHONE") for match in PHONE.finditer(text)]


def finder_with_presidio() -> Find:
    """Those, and what presidio finds: phone numbers as they are written in eight countries, IBANs,
    wallets, numbers of states.
    """
    try:
        from presidio_analyzer import predefined_recognizers
    except ImportError as error:
        repair = "pip install '.[pii]', or set pii.library to null"
        raise DataError(
            "pii.library=presidio needs the extra pii, and presidio-analyzer is not installed;"
            f" {repair}"
        ) from error
    recognizers: list[Any] = [getattr(predefined_recognizers, name)() for name in RECOGNIZERS]
    phones = predefined_recognizers.PhoneRecognizer(leniency=STRICT)

    def find_more(text: str) -> list[Span]:
        more = [
            found
            for one in recognizers
            for found in one.analyze(text, one.supported_entities, None) or ()
        ]
        called = [
            (found.start, found.end, "PHONE")
            for found in phones.analyze(text, phones.supported_entities)
        ]
        return [
            *find(text),
            *(
                (found.start, found.end, found.entity_type.removesuffix("_CODE"))
                for found in more
                if found.score >= SCORE
            ),
            *(span for span in called if sum(map(str.isdigit, text[span[0] : span[1]])) >= 7),
        ]

    return find_more


def apart(spans: Sequence[Span]) -> list[Span]:
    """In order and without overlaps: what overlaps becomes one span, of the kind that begins first,
    or is longer.
    """
    found: list[Span] = []
    for start, stop, kind in sorted(spans, key=lambda span: (span[0], -span[1], span[2])):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop), found[-1][2])
        else:
            found.append((start, stop, kind))
    return found


def mask(text: str, spans: Sequence[Span]) -> str:
    """The text with [EMAIL] and the like in the place of each span; the spans are apart."""
    for start, stop, kind in reversed(spans):
        text = f"{text[:start]}[{kind}]{text[stop:]}"
    return text


def masked(record: Record, finder: Find) -> tuple[Record, dict[str, int]]:
    """The record with its prompt and completions masked, and how many pieces of each kind that
    took.
    """
    counts: collections.Counter[str] = collections.Counter()

    def clean(text: str) -> str:
        spans = apart(finder(text))
        counts.update(kind for _, _, kind in spans)
        return mask(text, spans)

    prompt = record["prompt"]
    changed: Record = {
        "prompt": (
            clean(prompt)
            if isinstance(prompt, str)
            else [turn | {"content": clean(turn["content"])} for turn in prompt]
        )
    }
    if "completion" in record:
        changed["completion"] = clean(record["completion"])
    if "completions" in record:
        changed["completions"] = [clean(text) for text in record["completions"]]
    return record | changed, dict(counts)


def _span(match: re.Match[str]) -> tuple[int, int]:
    """That of the group, where the pattern has one: of `password: x` only x goes."""
    return match.span(match.re.groups)


def _is_card(text: str) -> bool:
    """13 to 19 digits whose Luhn sum ends in 0."""
    digits = [int(char) for char in reversed(text) if char.isdigit()]
    return sum(digits[::2]) % 10 == -sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) % 10


def _is_public(text: str) -> bool:
    """An address of the internet: 127.0.0.1 and 192.168.0.1 are nobody's."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
