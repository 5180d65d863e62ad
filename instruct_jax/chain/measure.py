"""Measurements of trained models: copy probes, and the reward model against rankings that it has
not seen.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from instruct_jax.chain.workspace import Workspace
from instruct_jax.data import encode
from instruct_jax.data.packing import Rows
from instruct_jax.data.schemas import Record, named
from instruct_jax.data.tokenize import bos_ids
from instruct_jax.records import Params
from instruct_jax.stages.rollout import SamplerConfig

GROUPS = ("train", "held_out_prompts", "held_out_labelers")
MEASURED = 500  # rankings of each group, at most
BINS = 8


def copy_probes(ws: Workspace, params: Params) -> dict[str, float]:
    """Share of probes of each kind that greedy decoding answers, word for word."""
    tok, probes = ws.task.tokenizer, ws.task.probes
    prompts = [bos_ids(tok) + tok.encode(p["prompt"], add_special_tokens=False) for p in probes]
    drawn = ws.generate(
        params, prompts, SamplerConfig(max_tokens=12, temperature=0.0), ws.key("copy probes")
    )
    right: dict[str, list[bool]] = {}
    for probe, completions in zip(probes, drawn, strict=True):
        answer = probe["answer"].split()
        right.setdefault(probe["kind"], []).append(
            completions[0].text.split()[: len(answer)] == answer
        )
    return {kind: float(np.mean(hits)) for kind, hits in right.items()}


def nll_unigram(train: Rows, held_out: Rows, vocabulary: int) -> float:
    """The trivial baseline of a language model: NLL per token, in nats, of held-out rows under the
    frequencies (plus one) of tokens in the training rows."""
    counts = np.bincount(train.tokens[train.mask], minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[held_out.tokens[held_out.mask]].mean())


def reward_model(ws: Workspace, params: Params, groups: dict[str, list[Record]]) -> dict[str, Any]:
    """Pairwise accuracy by group and labeler and of "the longer reply is better", calibration, and
    mean score by length.
    """
    scored = {
        name: rows
        for name, records in groups.items()
        if (rows := scored_rankings(ws, params, records[:MEASURED]))
    }
    pairs = {name: _pairs(rows) for name, rows in scored.items()}
    found: dict[str, Any] = {
        "accuracy_" + name.replace("held_out", "heldout"): _accuracy(p) for name, p in pairs.items()
    }
    unseen = pairs.get("held_out_prompts") or pairs["train"]
    found["accuracy_longer"] = _accuracy(
        _pairs([_by_its_length(row) for row in scored.get("held_out_prompts") or scored["train"]])
    )
    by_labeler: dict[str, list[tuple[float, str]]] = {}
    for name in GROUPS[1:]:
        for pair in pairs.get(name, []):
            by_labeler.setdefault(pair[1], []).append(pair)
    found["per_labeler"] = {who: _accuracy(p) for who, p in sorted(by_labeler.items())}
    if len(rounds := {r.get("round", 1) for r, _, _ in scored.get("held_out_prompts", [])}) > 1:
        by_round = {
            n: [row for row in scored["held_out_prompts"] if row[0].get("round", 1) == n]
            for n in sorted(rounds)
        }
        found["accuracy_by_round"] = {
            str(n): _accuracy(_pairs(rows)) for n, rows in by_round.items()
        }
    found["calibration"] = _calibration(np.array([margin for margin, _ in unseen]))
    found["score_by_length"] = _by_length(scored.get("held_out_prompts") or scored["train"])
    if ws.task.judge is not None:
        found["accuracy_gold"] = _gold_accuracy(ws, scored["held_out_prompts"])
    return found


def read_compared(folder: Path, name: str) -> list[Record]:
    """Rankings of a group, or samples, that the stage `compare` wrote into its folder; a file
    without lines holds none.
    """
    text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


# record, score of each completion, tokens of each completion
Scored = tuple[Record, np.ndarray, list[int]]


def scored_rankings(ws: Workspace, params: Params, records: list[Record]) -> list[Scored]:
    encoded = encode.encode_rankings(ws.task.tokenizer, records, ws.config.text)
    sequences = [ids for completions, _ in encoded.items for ids in completions]
    flat, rows, start = ws.rewards(params, sequences), [], 0
    for number, (completions, _) in zip(encoded.kept, encoded.items, strict=True):
        end = start + len(completions)
        rows.append((records[number], flat[start:end], [len(ids) for ids in completions]))
        start = end
    return rows


def _pairs(rows: list[Scored]) -> list[tuple[float, str]]:
    """(score of the better minus score of the worse, labeler or data set) of every pair that is no
    tie.
    """
    return [
        (float(scores[i] - scores[j]), named(record, "labeler_id", "source", default="unknown"))
        for record, scores, _ in rows
        for i, better in enumerate(record["ranks"])
        for j, worse in enumerate(record["ranks"])
        if better < worse
    ]


def pair_accuracy(ws: Workspace, params: Params, records: list[Record]) -> dict[str, Any]:
    """Of a reward model on rankings; null where they have no pairs."""
    pairs = _pairs(scored_rankings(ws, params, records)) if records else []
    return {"accuracy": _accuracy(pairs) if pairs else None, "pairs": len(pairs)}


def _by_its_length(row: Scored) -> Scored:
    """The same ranking, where the score of a completion is its length in characters, uncut."""
    record, _, sizes = row
    return record, np.array([len(text) for text in record["completions"]]), sizes


def _accuracy(pairs: list[tuple[float, str]]) -> float:
    """Share of pairs in the right order; equal scores count one half."""
    margins = np.array([margin for margin, _ in pairs])
    return float((margins > 0).mean() + 0.5 * (margins == 0).mean())


def _calibration(margins: np.ndarray) -> list[dict[str, float]]:
    """Predicted probability that the higher score wins, against how often it did."""
    predicted, won = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1))
    place = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, BINS - 1)
    return [
        {
            "predicted": float(predicted[place == b].mean()),
            "observed": float(won[place == b].mean()),
            "n": int((place == b).sum()),
        }
        for b in range(BINS)
        if (place == b).any()
    ]


def _by_length(rows: list[Scored]) -> list[dict[str, float]]:
    scores = np.concatenate([s for _, s, _ in rows])
    lengths = np.array([n for _, _, ns in rows for n in ns])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)))
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(len(edges) - 2, 0))
    return [
        {
            "length": float(lengths[place == b].mean()),
            "score": float(scores[place == b].mean()),
            "n": int((place == b).sum()),
        }
        for b in np.unique(place)
    ]


def _gold_accuracy(ws: Workspace, rows: list[Scored]) -> float:
    """Share of pairs with different gold scores that the reward model puts in the right order."""
    judge = ws.task.judge
    assert judge is not None
    prompts = {r["prompt"]: r for r in ws.task.prompts["compare_held_out"]}
    pairs = []
    for record, scores, _ in rows:
        if (task := prompts.get(record["prompt"])) is None:  # of an earlier round
            continue
        gold = [
            judge(task, text, ended)["score"]
            for text, ended in zip(record["completions"], record["ended"], strict=True)
        ]
        pairs += [
            (float(scores[i] - scores[j]), "")
            for i in range(len(gold))
            for j in range(len(gold))
            if gold[i] > gold[j] + 0.01
        ]
    return _accuracy(pairs)
