"""Samples of the models of a run, for people to rank."""

import json

import jax
import pytest
import userfiles

from instruct_jax.chain import networks
from instruct_jax.chain.identity import stage_hash
from instruct_jax.cli import main
from instruct_jax.commands import sample
from instruct_jax.commands.open_model import open_policy
from instruct_jax.data.readers import read_samples
from instruct_jax.stages.rollout import SamplerConfig

SAMPLE = ["sample", "runs/a:sft", "runs/a:ppo", "--prompts", "short.jsonl", "--max_tokens", "5"]
LONG = "a b c d e f g h i j a b c d"  # more than is left of a context of 16


@pytest.fixture
def folder(finished, monkeypatch):
    folder = finished.parents[1]
    monkeypatch.chdir(folder)
    userfiles.write(
        folder / "short.jsonl",
        [{"prompt": prompt, "id": prompt} for prompt in ("a b", "c d e", "f")],
    )
    for old in folder.glob("samples*.jsonl"):
        old.unlink()
    return folder


def test_samples_of_two_models(folder, capsys):
    """Each record says whose every completion is, and what both models were; the same seed draws
    the same.
    """
    assert main([*SAMPLE, "--out", "samples.jsonl", "--completions", "2"]) == 0
    assert "done: 3 prompts in samples.jsonl" in capsys.readouterr().out
    found = read_samples("samples.jsonl")
    assert [record["prompt"] for record in found] == ["a b", "c d e", "f"]
    for record in found:
        assert record["models"] == ["runs/a:sft"] * 2 + ["runs/a:ppo"] * 2
        assert (
            len(record["completions"]) == len(record["ended"]) == 4
            and record["id"] == record["prompt"]
        )
        for stage in ("sft", "ppo"):
            assert record["sampler"]["models"][f"runs/a:{stage}"]["checkpoint"] == stage_hash(
                folder / "runs/a" / stage
            )
    for seed, same in (("0", True), ("1", False)):
        assert (
            main([*SAMPLE, "--out", f"samples{seed}.jsonl", "--completions", "2", "--seed", seed])
            == 0
        )
        again = [record["completions"] for record in read_samples(f"samples{seed}.jsonl")]
        assert (again == [record["completions"] for record in found]) == same


def test_batches_of_prompts_are_one_program(folder, monkeypatch):
    """More prompts than a batch has, of different lengths: every prompt keeps its own completions,
    and all full batches are one program.
    """
    model = open_policy("runs/a:sft", ["--sample_batch", "2"])
    records = [{"prompt": " ".join("abcdefg"[:n])} for n in (1, 5, 2, 6, 3)]
    shapes = []
    put = networks.put

    def noted(net, batch):
        shapes.append(batch.tokens.shape)
        return put(net, batch)

    monkeypatch.setattr(networks, "put", noted)
    found = sample._draw(model, records, SamplerConfig(max_tokens=4), jax.random.key(0), 2)
    assert sorted(found) == [0, 1, 2, 3, 4] and all(len(made) == 2 for made in found.values())
    assert shapes == [(2, 7), (2, 7), (1, 7)]


BAD = {
    "a file that is there": (["--out", "short.jsonl"], "short.jsonl is there already"),
    "no completions": (["--out", "samples.jsonl", "--completions", "0"], "must be at least 1"),
    "no room": (
        ["--out", "samples.jsonl", "--max_tokens", "16"],
        "--max_tokens 16 fills the context of runs/a:sft, 16",
    ),
    "a model twice": (["--out", "samples.jsonl", "runs/a:sft"], "named twice"),
}


@pytest.mark.parametrize("args, says", BAD.values(), ids=BAD)
def test_what_cannot_be_sampled(folder, capsys, args, says):
    before = (folder / "short.jsonl").read_text()
    argv = [
        *SAMPLE[:3],
        *[a for a in args if a.startswith("runs/")],
        *SAMPLE[3:],
        *[a for a in args if not a.startswith("runs/")],
    ]
    assert main(argv) == 2
    assert says in capsys.readouterr().err
    assert (folder / "short.jsonl").read_text() == before and not (
        folder / "samples.jsonl"
    ).exists()


def test_a_prompt_that_is_too_long_is_cut_or_left_out_as_the_run_says(folder):
    """The run of these tests cuts (text.on_long truncate_left)."""
    userfiles.write(folder / "short.jsonl", [{"prompt": LONG}, {"prompt": "f"}])
    assert main([*SAMPLE, "--out", "samples.jsonl", "--text.on_long", "drop"]) == 0
    assert [
        json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()
    ] == ["f"]
    assert main([*SAMPLE, "--out", "samples2.jsonl"]) == 0
    assert len(read_samples("samples2.jsonl")) == 2
