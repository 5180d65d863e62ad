"""Personal data: what must be found, and what must not."""

import pytest

from instruct_jax.cleaning.personal import find, finder_with_presidio, mask, masked, merged

LONG = "0123456789abcdefghijABCDEFGHIJ"
FOUND = {
    "write to ann.b+c@mail.example.co.uk.": "write to [EMAIL].",
    "call +49 30 901820 or (212) 555-0123, 212-555-0123": "call [PHONE] or [PHONE], [PHONE]",
    "tel:+15551234567 1-800-555-0199; +1 (555) 123-4567": "tel:[PHONE] [PHONE]; [PHONE]",
    "card 4111 1111 1111 1111, 5500-0055-5555-5559": "card [CARD], [CARD]",
    "from 8.8.8.8 [2001:4860:4860::8888]:80": "from [IP] [[IP]]:80",
    f"key sk-{LONG} and ghp_{LONG}": "key [KEY] and [KEY]",
    "AKIAIOSFODNN7EXAMPLE password: hunter2222, ok": "[KEY] password: [KEY], ok",
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----": "[KEY]",
}
LEFT = [
    "on 2021-03-15 at 12:30:45, 3.14159265358979 and 1,234,567",
    "card 4111 1111 1111 1112",  # Luhn
    "localhost 127.0.0.1, 192.168.0.1, 999.1.1.1, version 1.2.3.4.5",
    "std::vector a::b 12:30:45:50 @home me@home call 911, 10000 20000",
    "the password is secret, sk-short, token",
]


@pytest.mark.parametrize("text", FOUND)
def test_found(text):
    assert mask(text, merged(find(text))) == FOUND[text]


@pytest.mark.parametrize("text", LEFT)
def test_left_alone(text):
    assert not find(text)


def test_spans_that_overlap_become_one():
    assert merged([(5, 9, "B"), (0, 6, "A"), (0, 3, "C"), (9, 10, "D")]) == [
        (0, 9, "A"),
        (9, 10, "D"),
    ]


def test_all_that_is_learned_from_is_masked():
    turns = [
        {"role": "user", "content": "a@b.org"},
        {"role": "assistant", "content": "8.8.8.8"},
        {"role": "user", "content": "c"},
    ]
    record, counts = masked(
        {"prompt": turns, "completions": ["d@e.org", "f"], "ranks": [1, 2], "user_id": "a@b.org"},
        find,
    )
    assert [turn["content"] for turn in record["prompt"]] == ["[EMAIL]", "[IP]", "c"]
    assert (
        record["completions"] == ["[EMAIL]", "f"]
        and record["user_id"] == "a@b.org"
        and turns[0]["content"] == "a@b.org"
    )
    assert counts == {"EMAIL": 2, "IP": 1}
    assert masked({"prompt": "p", "completion": "a@b.org"}, find) == (
        {"prompt": "p", "completion": "[EMAIL]"},
        {"EMAIL": 1},
    )


def test_presidio_finds_more():
    pytest.importorskip("presidio_analyzer", reason="needs the extra pii")
    finder = finder_with_presidio()
    text = "a@b.org, IBAN DE89370400440532013000, 020 7946 0958, SSN 536-90-4399, from 1999 to 2003"
    assert (
        mask(text, merged(finder(text)))
        == "[EMAIL], IBAN [IBAN], [PHONE], SSN [US_SSN], from 1999 to 2003"
    )
    assert mask(text, merged(find(text))) == text.replace("a@b.org", "[EMAIL]")


def test_time_is_linear():
    """Seconds here would be minutes where an expression goes back and forth."""
    for text in (
        "a." * 50_000,
        "1 " * 50_000,
        "a@" * 50_000,
        "eyJ" + "a" * 100_000,
        "password:" * 20_000,
        "f:" * 50_000,
        "+1" * 50_000,
    ):
        find(text)
