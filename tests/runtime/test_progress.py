import io

from rich.console import Console

from instruct_jax.runtime import progress
from instruct_jax.runtime.progress import StageProgress


def shown(monkeypatch, *, terminal, seconds_per_step):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with StageProgress(
        "sft",
        step=0,
        total=100,
        keys=["sft/loss"],
        console=Console(file=out, force_terminal=terminal, width=120),
    ) as bar:
        for step in range(1, 101):
            clock[0] += seconds_per_step
            bar.update(step, {"sft/loss": 1 / step, "sft/other": 0.0})
    return out.getvalue()


def test_logs_get_a_line_every_ten_seconds(monkeypatch):
    lines = shown(monkeypatch, terminal=False, seconds_per_step=1.0).splitlines()
    assert len(lines) == 10
    assert lines[1] == "sft 20/100  0:01:20 left  loss 0.05"
    assert shown(monkeypatch, terminal=False, seconds_per_step=0.001).splitlines() == [
        "sft 100/100  0:00:00 left  loss 0.01"
    ]


def test_terminals_get_a_bar(monkeypatch):
    text = shown(monkeypatch, terminal=True, seconds_per_step=1.0)
    assert "100/100" in text
    assert "loss 0.01" in text
