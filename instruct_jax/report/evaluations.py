"""One evaluation of a run: its numbers, and how its models are related to the baseline."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from instruct_jax.report.run_data import Run, Stage, slug

BASE = "base"  # the base of the run
PROMPTED = "base_prompted"  # with examples before the prompt
BEST_OF_N = "best_of_n"  # of samples of the baseline, by the reward model
SHOWN = {PROMPTED: "base, prompted", BEST_OF_N: "best of n"}
SPOKEN = {PROMPTED: "prompted base", BEST_OF_N: "best of n"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    run: Run
    stage: Stage
    suffix: str  # of the names of its pictures; empty for the first evaluation
    numbers: dict[str, Any]  # evaluation.json

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def baseline(self) -> str:
        """The model that wins are counted against."""
        return str(self.numbers.get("baseline", BASE))

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
    def win_rates(self) -> dict[str, dict[str, Any]]:
        """Temperature -> model -> mean, ci95 and n; empty where nothing judged."""
        return {t: wins for t, wins in self.table("win_rate").items() if wins}

    @property
    def wins(self) -> dict[str, Any]:
        """Model -> mean, ci95 and n at the first temperature."""
        return next(iter(self.win_rates.values()), {})

    @property
    def scores(self) -> dict[str, float]:
        """Model -> mean of the judge's score at the first temperature."""
        return next(iter(self.table("gold_score").values()), {})

    def table(self, key: str) -> dict[str, Any]:
        """A part of evaluation.json, empty where it is missing or null."""
        return self.numbers.get(key) or {}

    def source(self, model: str) -> str:
        """The stage, or the model from outside the run, that a name stands for."""
        return self.stage.models.get(model, model)

    def ordered(self, models: Iterable[str]) -> list[str]:
        """The base, then the stages as they run, then models from outside, then all others; the
        control and the best of n follow the baseline.
        """
        return sorted(set(models), key=self._place)

    def _place(self, model: str) -> tuple[float, str]:
        first = {BASE: -2.0, PROMPTED: -1.0}
        if model in first:
            return first[model], model
        if model in (self.control, BEST_OF_N):
            after = 0.3 if model == self.control else 0.6
            return self._place(self.baseline)[0] + after, model
        places = [*self.run.stages, *self.stage.uses.values()]
        source = self.source(model)
        return float(places.index(source) if source in places else len(places)), model

    def shown(self, model: str) -> str:
        """Its name on the page."""
        if model == self.control:
            return f"{self.baseline} again (control)"
        return SHOWN.get(model, model)

    def spoken(self, model: str) -> str:
        """Its name in a sentence."""
        return SPOKEN.get(model, model)

    @property
    def untuned(self) -> list[str]:
        """Models that nothing was trained on top of: the base, and stages without a start."""
        return [model for model in self.ordered(self.wins) if self._is_untuned(model)]

    def _is_untuned(self, model: str) -> bool:
        if model == self.baseline:
            return False
        stage = self.run.stages.get(self.source(model))
        return model in (BASE, PROMPTED) or (stage is not None and "start" not in stage.uses)

    @property
    def ours(self) -> list[str]:
        """The models of this run that the baseline is compared with: not the baseline, nor what it
        was made from.
        """
        baseline = self.source(self.baseline)
        before = {baseline, *self.run.starts(baseline)}
        return [
            model
            for model in self.ordered(self.stage.models)
            if self.source(model) in self.run.stages
            and self.source(model) not in before
            and not self._is_untuned(model)
        ]

    def stage_of(self, model: str) -> Stage:
        return self.run.stages[self.source(model)]


def evaluations(run: Run) -> list[Evaluation]:
    """In the order of the run."""
    found: list[Evaluation] = []
    for stage in run.stages.values():
        if stage.evaluation:
            suffix = f"-{slug(stage.name)}" if found else ""
            found.append(Evaluation(run, stage, suffix, stage.evaluation))
    return found


def baseline_of(run: Run) -> str | None:
    """The stage that the first evaluation counts wins against; before there is one, the first
    policy that started from another.
    """
    for stage in run.stages.values():
        named = stage.evaluation.get("baseline", stage.settings.get("baseline"))
        if named is not None:
            return stage.models.get(named, str(named))
    tuned = [s.name for s in run.stages.values() if s.leaves == "policy" and "start" in s.uses]
    return tuned[0] if tuned else None
