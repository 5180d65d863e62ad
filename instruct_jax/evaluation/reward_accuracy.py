"""How well a reward model orders rankings: accuracy on pairs, calibration, score by length.

All pure numpy on scored rankings.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Record = Mapping[str, Any]
Scored = tuple[Any, np.ndarray, list[int]]  # ranking, score and tokens of each completion
Pair = tuple[float, str]  # score of the better minus score of the worse, labeler or data set

BINS = 8


def measure(groups: Mapping[str, list[Scored]]) -> dict[str, Any]:
    """Accuracy by group and labeler, calibration, mean score by length, and as a trivial baseline
    the accuracy of "the longer reply is better".

    groups: train, held_out_prompts, held_out_labelers; those without rankings are left out.
    """
    pairs = {name: pairs_of(rows) for name, rows in groups.items()}
    measured: dict[str, Any] = {}
    for name, found in pairs.items():
        name = name.replace("held_out", "heldout")
        measured[f"accuracy_{name}"] = accuracy(found)
    unseen = pairs.get("held_out_prompts") or pairs["train"]
    rows = groups.get("held_out_prompts") or groups["train"]
    by_length = [_scored_by_length(row) for row in rows]
    measured["accuracy_longer"] = accuracy(pairs_of(by_length))
    measured["per_labeler"] = _per_labeler(pairs)
    by_round = _by_round(groups.get("held_out_prompts", []))
    if len(by_round) > 1:
        measured["accuracy_by_round"] = by_round
    margins = np.array([margin for margin, _ in unseen])
    measured["calibration"] = _calibration(margins)
    measured["score_by_length"] = _score_by_length(rows)
    return measured


def pairs_of(rows: list[Scored]) -> list[Pair]:
    """Every pair that is no tie."""
    pairs = []
    for record, scores, _ in rows:
        who = _source(record)
        ranks = record["ranks"]
        for i, better in enumerate(ranks):
            for j, worse in enumerate(ranks):
                if better < worse:
                    margin = float(scores[i] - scores[j])
                    pairs.append((margin, who))
    return pairs


def _source(record: Record) -> str:
    """The labeler, else the data set."""
    for key in ("labeler_id", "source"):
        if record.get(key) is not None:
            return str(record[key])
    return "unknown"


def accuracy(pairs: list[Pair]) -> float:
    """Share of pairs in the right order; equal scores count one half."""
    margins = np.array([margin for margin, _ in pairs])
    right = (margins > 0).mean()
    equal = (margins == 0).mean()
    return float(right + 0.5 * equal)


def pair_accuracy(rows: list[Scored]) -> dict[str, Any]:
    """Accuracy and number of pairs; null where there are no pairs."""
    pairs = pairs_of(rows)
    share = accuracy(pairs) if pairs else None
    return {"accuracy": share, "pairs": len(pairs)}


def _per_labeler(pairs: Mapping[str, list[Pair]]) -> dict[str, float]:
    """Of the held-out groups."""
    by_labeler: dict[str, list[Pair]] = {}
    for name, found in pairs.items():
        if name == "train":
            continue
        for pair in found:
            _, who = pair
            by_labeler.setdefault(who, []).append(pair)
    return {who: accuracy(found) for who, found in sorted(by_labeler.items())}


def _by_round(rows: list[Scored]) -> dict[str, float]:
    rounds: dict[int, list[Scored]] = {}
    for row in rows:
        record, _, _ = row
        number = record.get("round", 1)
        rounds.setdefault(number, []).append(row)
    measured = {}
    for number in sorted(rounds):
        pairs = pairs_of(rounds[number])
        measured[str(number)] = accuracy(pairs)
    return measured


def _scored_by_length(row: Scored) -> Scored:
    """The same ranking, where the score of a completion is its length in characters, uncut."""
    record, _, sizes = row
    characters = [len(text) for text in record["completions"]]
    return record, np.array(characters), sizes


def _calibration(margins: np.ndarray) -> list[dict[str, float]]:
    """Predicted probability that the higher score wins, against how often it did."""
    predicted = 1 / (1 + np.exp(-np.abs(margins)))
    won = margins > 0
    shares = np.linspace(0, 1, BINS + 1)
    edges = np.quantile(predicted, shares)
    place = np.searchsorted(edges, predicted, side="right") - 1
    place = np.clip(place, 0, BINS - 1)
    bins = []
    for b in range(BINS):
        here = place == b
        if not here.any():
            continue
        bins.append(
            {
                "predicted": float(predicted[here].mean()),
                "observed": float(won[here].mean()),
                "n": int(here.sum()),
            }
        )
    return bins


def _score_by_length(rows: list[Scored]) -> list[dict[str, float]]:
    scores = np.concatenate([s for _, s, _ in rows])
    lengths = np.concatenate([sizes for _, _, sizes in rows])
    shares = np.linspace(0, 1, BINS + 1)
    edges = np.unique(np.quantile(lengths, shares))
    last = max(len(edges) - 2, 0)
    place = np.searchsorted(edges, lengths, side="right") - 1
    place = np.clip(place, 0, last)
    bins = []
    for b in np.unique(place):
        here = place == b
        bins.append(
            {
                "length": float(lengths[here].mean()),
                "score": float(scores[here].mean()),
                "n": int(here.sum()),
            }
        )
    return bins
