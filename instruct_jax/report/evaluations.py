"""One evaluation of a run: its numbers, and how its models are related to the baseline."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from instruct_jax.report.run_data import Run, Stage, slug
from instruct_jax.text import number

BASE = "base"  # the base of the run
PROMPTED = "_prompted"  # behind the name of a model: with examples before the prompt
BEST_OF_N = "best_of_n"  # of samples of the baseline, by the reward model
BEST_OF_N_SHOWN = "best of n"
Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Win:
    """Share of prompts on which a model is preferred, a tie counting one half."""

    mean: float
    low: float  # of the 95 % interval
    high: float
    n: int  # prompts

    @property
    def is_clear(self) -> bool:
        return self.low > 0.5

    @property
    def is_even(self) -> bool:
        """One half is in the interval."""
        return self.low <= 0.5 <= self.high

    def overlaps(self, other: "Win") -> bool:
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{number(self.mean)}, 95\u00a0% interval {self.interval}"

    @property
    def interval(self) -> str:
        return f"{number(self.low)} to {number(self.high)}"


Wins = dict[str, Win]  # by model


def _wins(by_model: Mapping[str, Numbers]) -> Wins:
    wins = {}
    for model, numbers in by_model.items():
        low, high = numbers["ci95"]
        wins[model] = Win(
            mean=numbers["mean"],
            low=low,
            high=high,
            n=numbers["n"],
        )
    return wins


@dataclasses.dataclass(frozen=True)
class Evaluation:
    run: Run
    stage: Stage
    suffix: str  # of the names of its pictures; empty for the first evaluation
    numbers: Numbers  # evaluation.json

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def baseline(self) -> str:
        """The model that wins are counted against."""
        return self.numbers.get("baseline", BASE)

    @property
    def control(self) -> str:
        """The baseline against other samples of itself."""
        return f"{self.baseline}_control"

    @property
    def judged_by_reward_model(self) -> bool:
        return self.numbers.get("judge") == "reward model"

    @property
    def score_name(self) -> str:
        return "reward-model score" if self.judged_by_reward_model else "gold score"

    @property
    def win_rates(self) -> dict[str, Wins]:
        """By temperature; empty where nothing judged."""
        rates = {}
        for temperature, by_model in self.table("win_rate").items():
            if by_model:
                rates[temperature] = _wins(by_model)
        return rates

    @property
    def wins(self) -> Wins:
        """At the first temperature."""
        return next(iter(self.win_rates.values()), {})

    @property
    def wins_against_others(self) -> dict[str, Wins]:
        """By the model from outside that they are against."""
        against = self.table("win_rate_vs")
        return {other: _wins(by_model) for other, by_model in against.items()}

    @property
    def scores(self) -> dict[str, float]:
        """Model -> mean of the judge's score at the first temperature."""
        return next(iter(self.table("gold_score").values()), {})

    @property
    def best_of_n(self) -> list[Numbers]:
        """n, gold, reward, kl and se; from the smallest n."""
        points = self.numbers.get("best_of_n") or []
        return sorted(points, key=lambda point: point["n"])

    @property
    def samples(self) -> list[Numbers]:
        """Prompts, each with the completions of all models."""
        return self.numbers.get("samples") or []

    def table(self, key: str) -> Numbers:
        """A part of evaluation.json, empty where it is missing or null."""
        return self.numbers.get(key) or {}

    def source(self, model: str) -> str:
        """The stage, or the model from outside the run, that a name stands for."""
        return self.stage.models.get(model, model)

    def stage_of(self, model: str) -> Stage:
        return self.run.stages[self.source(model)]

    def ordered(self, models: Iterable[str]) -> list[str]:
        """The base, then the stages as they run, then models from outside, then all others; a
        prompted model, the control and the best of n stand behind what they are samples of.
        """
        return sorted(set(models), key=self._place)

    def _place(self, model: str) -> tuple[float, str]:
        if model == BASE:
            return -1.0, model
        prompted = self.prompted(model)
        if prompted is not None:
            return self._place(prompted)[0] + 0.2, model
        if model in (self.control, BEST_OF_N):
            baseline, _ = self._place(self.baseline)
            after = 0.4 if model == self.control else 0.6
            return baseline + after, model
        places = [*self.run.stages, *self.stage.uses.values()]
        source = self.source(model)
        place = places.index(source) if source in places else len(places)
        return float(place), model

    def shown(self, model: str) -> str:
        """Its name on the page."""
        prompted = self.prompted(model)
        if prompted is not None:
            return f"{prompted}, prompted"
        if model == self.control:
            return f"{self.baseline} again (control)"
        return BEST_OF_N_SHOWN if model == BEST_OF_N else model

    def spoken(self, model: str) -> str:
        """Its name in a sentence."""
        prompted = self.prompted(model)
        if prompted is not None:
            return f"prompted {prompted}"
        return self.shown(model)

    def prompted(self, model: str) -> str | None:
        """The model that this is with examples before the prompt; None where it is without."""
        stem = model.removesuffix(PROMPTED)
        if stem == model or stem not in self.stage.models:
            return None
        return stem

    @property
    def untuned(self) -> list[str]:
        """The base and what else nothing was trained into, prompted or not."""
        return [model for model in self.ordered(self.wins) if self._is_untuned(model)]

    def _is_untuned(self, model: str) -> bool:
        if model == self.baseline:
            return False
        model = self.prompted(model) or model
        source = self.source(model)
        if model == BASE or source in self.run.bases:
            return True
        stage = self.run.stages.get(source)
        return stage is not None and "start" not in stage.uses

    @property
    def ours(self) -> list[str]:
        """The models of this run that the baseline is compared with: not the baseline, nor what it
        was made from.
        """
        baseline = self.source(self.baseline)
        before = {baseline, *self.run.starts(baseline)}
        models = []
        for model in self.ordered(self.stage.models):
            source = self.source(model)
            if source not in self.run.stages or source in before:
                continue
            if not self._is_untuned(model):
                models.append(model)
        return models


def evaluations(run: Run) -> list[Evaluation]:
    """In the order of the run."""
    measured: list[Evaluation] = []
    for stage in run.stages.values():
        if stage.evaluation:
            suffix = f"-{slug(stage.name)}" if measured else ""
            measured.append(Evaluation(run, stage, suffix, stage.evaluation))
    return measured


def baseline_of(run: Run) -> str | None:
    """The stage that the first evaluation counts wins against; before there is one, the first
    policy that started from another.
    """
    for stage in run.stages.values():
        if stage.leaves != "findings" or not stage.models:
            continue
        first = next(iter(stage.models))
        named = stage.settings.get("baseline") or first
        named = stage.evaluation.get("baseline", named)
        return stage.models.get(named, named)
    for stage in run.stages.values():
        if stage.leaves == "policy" and "start" in stage.uses:
            return stage.name
    return None
