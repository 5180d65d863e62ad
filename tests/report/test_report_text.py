from instruct_jax.report.text import duration, listed, moment
from instruct_jax.text import number, percent


def test_numbers_are_written_for_people():
    values = (-0.001, -1.5, 1234.5, None, float("nan"), "x")
    assert [number(x) for x in values] == ["0.00", "−1.50", "1,234.50", "–", "–", "–"]
    assert percent(0.724, 1) == "72.4\u00a0%" and percent(None) == "–"


def test_times_are_written_for_people():
    assert [duration(x) for x in (2.34, 61, 599.8, 3599, 3600, 7260)] == [
        "2.3 s",
        "1 min 01 s",
        "10 min 00 s",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 01 min",
    ]
    assert moment("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04"


def test_lists_are_written_for_people():
    lists = ([], ["a"], ["a", "b"], ["a", "b", "c"])
    assert [listed(x) for x in lists] == ["", "a", "a and b", "a, b and c"]
