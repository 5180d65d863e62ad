"""Kind evaluate: every model on the report prompts: preference over the baseline, gold score, KL,
loss on plain text, best-of-n, samples side by side.

The judge is the task's gold scorer where it has one (the embedded world); else the reward model
that `reward` names, and the report says so.  Without either there are no win rates.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from instruct_jax.chain import networks, parameters, texts
from instruct_jax.chain.context import Stage, prompts_there, require_room, sample_tokens
from instruct_jax.chain.graph import Place
from instruct_jax.chain.kind import Kind, Line
from instruct_jax.chain.networks import Completion, Network
from instruct_jax.chain.parameters import Model
from instruct_jax.chain.settings import BASE, Leaves, RunConfig, StageSettings
from instruct_jax.chain.spec import NAME, read_spec
from instruct_jax.data.packing import Ids
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.data.tokenize import bos_ids
from instruct_jax.errors import require
from instruct_jax.evaluation.preference import (
    best_of_n,
    best_of_n_kl,
    by_use_case,
    in_turns,
    use_case,
    win_rate,
)
from instruct_jax.runtime.checkpoints import kept_steps
from instruct_jax.runtime.folders import read_note, write_atomic
from instruct_jax.runtime.hosts import is_main
from instruct_jax.stages.rollout import SamplerConfig
from instruct_jax.text import plural

# answers of the baseline to each prompt that every model, a fresh sample of the baseline among
# them, is compared with
N_BASELINE_SAMPLES = 4
# answers of a model to each prompt that its scores by use case are means of: some use cases have
# few prompts
N_SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class EvaluateStage(StageSettings):
    """Settings of a stage of kind evaluate."""

    leaves: ClassVar[Leaves] = "findings"

    # policies: stages, base, RUN:STAGE, model folders; or NAME: policy, where they get other names
    models: tuple[str, ...] | dict[str, str] = ()
    baseline: str | None = None  # one of models, that wins are counted against; null = the first
    reward: str | None = None  # a reward model, as judge or beside the gold scorer
    prompts: int = 512
    temperatures: tuple[float, ...] = (1.0, 0.7, 0.0)  # the first one is the headline
    max_tokens: int | None = None  # of a reply; null = text.max_completion
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)  # of the baseline, by the reward model
    best_of_prompts: int = 256
    chosen_best_of: int = 4  # the n of `best_of_n` among the models
    shots: int = 4  # examples in the prompt of `base_prompted`
    samples_shown: int = 24  # rows of the side-by-side table

    def __post_init__(self):
        for key, least in {
            "prompts": 1,
            "best_of_prompts": 1,
            "shots": 0,
            "samples_shown": 0,
        }.items():
            value = getattr(self, key)
            require(value >= least, f"{key}={value} must be at least {least}")
        temperatures = list(self.temperatures)
        require(len(temperatures) >= 1, "temperatures=[] must name at least one")
        require(
            min(temperatures) >= 0,
            f"temperatures={temperatures} must not be negative; 0 is greedy decoding",
        )
        require(
            min(self.best_of, default=1) >= 1,
            f"best_of={list(self.best_of)} must be at least 1",
        )
        require(
            self.chosen_best_of in self.best_of,
            f"chosen_best_of={self.chosen_best_of} must be one of {self.best_of}",
        )
        names = list(self.models)
        require(len(names) >= 1, "models=[] must name at least one policy, such as [base, sft]")
        require(len(set(names)) == len(names), f"models={names} names one twice")
        require(
            self.baseline is None or self.baseline in names,
            f"baseline={self.baseline} must be one of models, {', '.join(names)}",
        )

    @property
    def named(self) -> dict[str, str]:
        """Name in the tables -> the policy."""
        if isinstance(self.models, dict):
            return self.models
        return {name: name for name in self.models}

    @property
    def base_line(self) -> str:
        """The model that wins are counted against."""
        if self.baseline is None:
            return next(iter(self.named))
        return self.baseline

    def uses(self) -> dict[str, str]:
        found = {f"models.{name}": place for name, place in self.named.items()}
        if self.reward is not None:
            found["reward"] = self.reward
        return found


@dataclasses.dataclass(frozen=True)
class ScoredSamples:
    """One completion of every report prompt, with all that is known of them; [n] each."""

    completions: list[Completion]
    judged: np.ndarray | None  # the judge's score
    reward: np.ndarray | None  # the reward model's
    parts: list[dict[str, Any]]  # what the gold scorer says besides

    def chosen(self, rows: Sequence[int]) -> "ScoredSamples":
        return ScoredSamples(
            [self.completions[i] for i in rows],
            None if self.judged is None else self.judged[rows],
            None if self.reward is None else self.reward[rows],
            [self.parts[i] for i in rows],
        )


class Contestant(NamedTuple):
    """A policy under evaluation."""

    name: str
    place: Place
    key: str  # of its random numbers: a policy that `select` chose has that of its SFT stage
    kind: str | None  # of the stage that made it; None of a model of Hugging Face


class Evaluator:
    """The report prompts, the judge, and one policy after the other."""

    def __init__(self, stage: Stage, net: Network):
        self.stage = stage
        self.cfg = stage.settings
        self.net = net
        prompts = stage.task.prompts("report", self.cfg.prompts)
        self.records, self.ids = networks.encode(net, prompts)
        reward = stage.uses.get("reward")
        self.reward = None
        if reward is not None:
            self.reward = parameters.scalar(stage.run, reward)

    def sample_and_score(
        self, model: Model, temperature: float, purpose: str, *, prefix: str = ""
    ) -> ScoredSamples:
        """One completion of every prompt; `prefix` is text before the prompt."""
        ids = networks.ids_for(model.net, self.net, self.records, self.ids)
        if prefix:
            ids = [_prefixed(model.net, prefix, prompt) for prompt in ids]
        sampler = SamplerConfig(max_tokens=sample_tokens(self.stage), temperature=temperature)
        key = self.stage.key(f"evaluate {purpose} {temperature}")
        replies = networks.generate(model.net, model.params, ids, sampler, key)
        rows = list(range(len(self.records)))
        completions = [replies[i][0] for i in rows]
        return self.score(model.net, completions, rows)

    def score(
        self, net: Network, completions: Sequence[Completion], rows: Sequence[int]
    ) -> ScoredSamples:
        """Scores of completions by a policy of this network; rows: the prompt of each."""
        records = [self.records[i] for i in rows]
        reward = self._rewards(net, completions, rows)
        gold_scorer = self.stage.task.gold_scorer
        if gold_scorer is None:
            no_parts: list[dict[str, Any]] = [{} for _ in completions]
            return ScoredSamples(list(completions), reward, reward, no_parts)
        parts = []
        for record, completion in zip(records, completions, strict=True):
            parts.append(gold_scorer(record, completion.text, completion.ended))
        gold = np.array([part["score"] for part in parts])
        return ScoredSamples(list(completions), gold, reward, parts)

    def _rewards(
        self, net: Network, completions: Sequence[Completion], rows: Sequence[int]
    ) -> np.ndarray | None:
        if self.reward is None:
            return None
        records = [self.records[i] for i in rows]
        ids = networks.ids_for(net, self.net, self.records, self.ids)
        own = [ids[i] for i in rows]
        whole = networks.whole_ids(self.reward.net, net, records, own, completions)
        return networks.rewards(self.reward.net, self.reward.params, whole)

    def kl(self, model: Model, samples: ScoredSamples, reference: Model) -> float | None:
        """Mean log p(response) - log p_reference(response) in nats over a model's own samples; None
        where the two do not read the same ids.
        """
        if not networks.same_ids(model.net, reference.net):
            return None
        responses = [c.ids for c in samples.completions]
        ids = networks.ids_for(reference.net, self.net, self.records, self.ids)
        longest = sample_tokens(self.stage)
        theirs = networks.response_logp(reference.net, reference.params, ids, responses, longest)
        own = [c.logp for c in samples.completions]
        return float(np.mean(own) - theirs.mean())


def _prefixed(net: Network, prefix: str, prompt: Ids) -> list[int]:
    """bos + examples + prompt, with one bos."""
    bos = bos_ids(net.tokenizer)
    examples = net.tokenizer.encode(prefix, add_special_tokens=False)
    return [*bos, *examples, *prompt[len(bos) :]]


def contestants(stage: Stage) -> list[Contestant]:
    """The models of the settings, in their order."""
    found = []
    for name, value in stage.settings.named.items():
        place = stage.uses[f"models.{name}"]
        key = name
        kind = None
        if place.run is not None:
            note = stage.run.stage_folder(place) / "done.json"
            if note.exists():
                kind = read_note(note).get("kind")
        if place.own:
            kind = stage.run.config.stages[str(place.stage)].kind
            spec_file = stage.run.folder / str(place.stage) / NAME
            if spec_file.exists() and value != BASE:
                _, left = read_spec(stage.run.folder, str(place.stage))
                if left.stage != place.stage:
                    key = left.stage
        found.append(Contestant(name, place, key, kind))
    return found


def run(stage: Stage) -> dict[str, Any]:
    """Writes evaluation.json into the stage's folder; returns the headline of it."""
    cfg = stage.settings
    models = contestants(stage)
    by_name = {model.name: model for model in models}
    baseline = by_name[cfg.base_line]
    reference = parameters.policy(stage.run, baseline.place)
    evaluator = Evaluator(stage, reference.net)
    _require_room_for_examples(stage, reference.net)
    head = cfg.temperatures[0]
    sampled = _sample_all(evaluator, models, reference)
    if evaluator.reward is not None:
        bar, curve = _best_of_n(evaluator, reference)
        sampled.by_temperature[head]["best_of_n"] = bar
    else:
        curve = []
    rivals = {}
    if sampled.by_temperature[head][baseline.name].judged is not None:
        for temperature in cfg.temperatures:
            count = N_BASELINE_SAMPLES if temperature else 1
            rivals[temperature] = _rivals(evaluator, reference, temperature, count)
    found = _findings(evaluator, sampled, rivals, models, baseline)
    found["best_of_n"] = curve
    found["over_optimization"] = _over_optimization(evaluator, models, reference)
    _write(stage, evaluator, sampled, found)
    wins = found["win_rate"].get(str(head), {})
    gold = found["gold_score"].get(str(head), {})
    headline = {key: found[key] for key in ("judge", "baseline", "kl", "pretrain_nll")}
    return headline | {"win_rate": wins, "gold_score": gold}


class Sampled(NamedTuple):
    """All samples of all models."""

    by_temperature: dict[float, dict[str, ScoredSamples]]
    more: dict[str, list[np.ndarray]]  # further scores at the first temperature
    nll: dict[str, float]  # on held-out text, nats per token
    kl: dict[str, float]  # to the baseline, nats per reply


def _sample_all(evaluator: Evaluator, models: list[Contestant], reference: Model) -> Sampled:
    cfg = evaluator.cfg
    stage = evaluator.stage
    head = cfg.temperatures[0]
    held_out = texts.held_out(stage, evaluator.net)
    _, batch = texts.row_shape(stage, evaluator.net)
    by_temperature: dict[float, dict[str, ScoredSamples]] = {t: {} for t in cfg.temperatures}
    sampled = Sampled(by_temperature, more={}, nll={}, kl={})
    for contestant in models:
        name = contestant.name
        key = contestant.key
        model = parameters.policy(stage.run, contestant.place)
        draws = N_SAMPLES if head else 1
        sampled.more[name] = []
        for i in range(1, draws):
            scores = evaluator.sample_and_score(model, head, f"{key} draw {i}").judged
            if scores is not None:
                sampled.more[name].append(scores)
        for temperature in cfg.temperatures:
            samples = evaluator.sample_and_score(model, temperature, key)
            sampled.by_temperature[temperature][name] = samples
            prompted = _prompted(evaluator, contestant, model, temperature)
            if prompted is not None:
                shown = f"{name}_prompted"
                sampled.by_temperature[temperature][shown] = prompted
                if temperature == head == 1.0:
                    _note_kl(sampled, shown, evaluator, model, prompted, reference)
        if head == 1.0:
            first = sampled.by_temperature[head][name]
            _note_kl(sampled, name, evaluator, model, first, reference)
        if held_out and networks.same_ids(model.net, evaluator.net):
            sampled.nll[name] = networks.nll(model.net, model.params, held_out, batch)
    return sampled


def _note_kl(
    sampled: Sampled,
    name: str,
    evaluator: Evaluator,
    model: Model,
    samples: ScoredSamples,
    reference: Model,
) -> None:
    kl = evaluator.kl(model, samples, reference)
    if kl is not None:
        sampled.kl[name] = kl


def _prompted(
    evaluator: Evaluator, contestant: Contestant, model: Model, temperature: float
) -> ScoredSamples | None:
    """A base model with examples before the prompt."""
    examples = evaluator.stage.task.examples(evaluator.cfg.shots)
    if contestant.kind != "pretrain" or not examples:
        return None
    purpose = f"{contestant.key} prompted"
    return evaluator.sample_and_score(model, temperature, purpose, prefix=examples)


def _require_room_for_examples(stage: Stage, net: Network) -> None:
    examples = stage.task.examples(stage.settings.shots)
    if not examples:
        return
    shots = len(net.tokenizer.encode(examples, add_special_tokens=False))
    longest = shots + net.text.max_prompt + sample_tokens(stage)
    context = net.spec.model.context
    require(
        longest <= context,
        f"stages.{stage.name}.shots={stage.settings.shots}: with its {shots} tokens of examples a"
        f" prompt and its reply take up to {longest}, more than model.context={context}; lower"
        " shots or raise model.context",
    )


def _rivals(evaluator: Evaluator, model: Model, temperature: float, count: int) -> np.ndarray:
    """The judge's scores [prompts, count] of further answers by the baseline."""
    columns = []
    for i in range(count):
        samples = evaluator.sample_and_score(model, temperature, f"rival {i}")
        assert samples.judged is not None
        columns.append(samples.judged)
    return np.stack(columns, axis=1)


def _findings(
    evaluator: Evaluator,
    sampled: Sampled,
    rivals: Mapping[float, np.ndarray],
    models: list[Contestant],
    baseline: Contestant,
) -> dict[str, Any]:
    cfg = evaluator.cfg
    head = cfg.temperatures[0]
    judge = None
    if evaluator.stage.task.gold_scorer:
        judge = "gold"
    elif evaluator.reward:
        judge = "reward model"
    wins = {}
    gold = {}
    for temperature, theirs in rivals.items():
        key = str(temperature)
        wins[key] = {}
        gold[key] = {}
        for name, one in sampled.by_temperature[temperature].items():
            assert one.judged is not None
            # the fresh sample of the baseline against its others is the control: it must be 0.5
            shown = f"{name}_control" if name == baseline.name else name
            wins[key][shown] = win_rate(one.judged, theirs)
            gold[key][name] = float(one.judged.mean())
    first = sampled.by_temperature[head]
    means = {}
    for name, one in first.items():
        if one.judged is not None:
            draws = [one.judged, *sampled.more.get(name, [])]
            means[name] = np.mean(draws, axis=0)
    wins_over_others = {}
    if judge:
        wins_over_others = _against_others(models, first)
    kl = dict(sampled.kl)
    if "best_of_n" in first:
        kl["best_of_n"] = best_of_n_kl(cfg.chosen_best_of)
    return {
        "judge": judge,
        "reward": cfg.reward,
        "baseline": baseline.name,
        "temperatures": list(cfg.temperatures),
        "win_rate": wins,
        "win_rate_vs": wins_over_others,
        "gold_score": gold,
        "by_use_case": by_use_case(evaluator.records, means),
        "style": {name: _style(one) for name, one in first.items()},
        "kl": kl,
        "pretrain_nll": sampled.nll,
        "samples": _shown(evaluator.records, first, cfg.samples_shown, gold=judge == "gold"),
    }


def _against_others(
    models: list[Contestant], samples: Mapping[str, ScoredSamples]
) -> dict[str, dict[str, Any]]:
    """Model from outside the run -> how often each of ours beats it, one answer of each to every
    prompt.
    """
    outside = {model.name for model in models if not model.place.own}
    theirs = {name for name in samples if name.removesuffix("_prompted") in outside}
    found: dict[str, dict[str, Any]] = {}
    for other in sorted(theirs):
        scores = samples[other].judged
        assert scores is not None
        found[other] = {}
        for name, one in samples.items():
            if name not in theirs and one.judged is not None:
                found[other][name] = win_rate(one.judged, scores[:, None])
    return found


def _style(samples: ScoredSamples) -> dict[str, float]:
    lengths = [len(c.ids) for c in samples.completions]
    ended = [c.ended for c in samples.completions]
    style = {
        "length": float(np.mean(lengths)),
        "ended": float(np.mean(ended)),
    }
    for key in ("rude", "fluff"):
        if key in samples.parts[0]:
            found = [part[key] for part in samples.parts]
            style[key] = float(np.mean(found))
    return style


def _best_of_n(evaluator: Evaluator, model: Model) -> tuple[ScoredSamples, list[dict[str, float]]]:
    """The best of `chosen_best_of` samples of every report prompt, and the curve over n."""
    cfg = evaluator.cfg
    most = max(cfg.best_of)
    count = min(cfg.best_of_prompts, len(evaluator.ids))
    many = _several(evaluator, model, count, most, "best of n curve")
    assert many.reward is not None and many.judged is not None
    proxy = many.reward.reshape(count, most)
    gold = many.judged.reshape(count, most)
    curve = []
    for k in cfg.best_of:
        by_prompt = []
        for i in range(count):
            row = slice(i, i + 1)
            by_prompt.append(best_of_n(proxy[row], gold[row], k))
        curve.append(
            {
                "n": k,
                "gold": best_of_n(proxy, gold, k),
                "reward": best_of_n(proxy, proxy, k),
                "kl": best_of_n_kl(k),
                "se": float(np.std(by_prompt) / count**0.5),
            }
        )
    n = cfg.chosen_best_of
    prompts = len(evaluator.ids)
    few = _several(evaluator, model, prompts, n, "best of n bar")
    assert few.reward is not None
    best = few.reward.reshape(prompts, n).argmax(axis=1)
    first = np.arange(prompts) * n
    rows = first + best
    return few.chosen(rows.tolist()), curve


def _several(
    evaluator: Evaluator, model: Model, count: int, samples: int, purpose: str
) -> ScoredSamples:
    """`samples` completions of each of the first `count` prompts, below each other."""
    cfg = evaluator.cfg
    sampler = SamplerConfig(
        max_tokens=sample_tokens(evaluator.stage), temperature=cfg.temperatures[0]
    )
    replies = networks.generate(
        model.net,
        model.params,
        evaluator.ids[:count],
        sampler,
        evaluator.stage.key(purpose),
        samples=samples,
    )
    flat = []
    rows = []
    for i, completions in enumerate(replies):
        flat += completions
        rows += [i] * samples
    return evaluator.score(model.net, flat, rows)


def _over_optimization(
    evaluator: Evaluator, models: list[Contestant], reference: Model
) -> dict[str, list[dict[str, float]]]:
    """Of each policy whose stage kept checkpoints on its way: KL to the baseline, reward and the
    judge's score at temperature 1 from the baseline (step 0) on, each with its standard error over
    prompts.  Where the reward keeps rising and the score falls, the run over-optimizes (Gao et al.
    2022).
    """
    stage = evaluator.stage
    found = {}
    for contestant in models:
        settings = stage.run.config.stages.get(str(contestant.place.stage))
        every = getattr(settings, "keep_every", None)
        if not contestant.place.own or not every or evaluator.reward is None:
            continue
        rows = []
        folder = stage.run.stage_folder(contestant.place)
        saved = kept_steps(folder / "checkpoints")
        # the one before the last is only there for safety
        kept = [step for step in saved if step % every == 0 or step == saved[-1]]
        for step in (0, *kept):
            model = reference
            if step:
                model = parameters.policy(stage.run, contestant.place, step)
            samples = evaluator.sample_and_score(model, 1.0, f"{contestant.name} at {step}")
            kl = evaluator.kl(model, samples, reference) if step else 0.0
            row = {"step": step, "kl": kl}
            rows.append(row | _mean_scores(samples))
        found[contestant.name] = rows
    return found


def _mean_scores(samples: ScoredSamples) -> dict[str, float]:
    means = {}
    for name, scores in (("reward", samples.reward), ("gold", samples.judged)):
        assert scores is not None
        means[name] = float(scores.mean())
        standard_error = scores.std() / len(scores) ** 0.5
        means[f"{name}_se"] = float(standard_error)
    return means


def _shown(
    records: Sequence[Record], samples: Mapping[str, ScoredSamples], count: int, *, gold: bool
) -> list[dict[str, Any]]:
    """The first prompts of each use case in turn: chosen by position, not by how well any model
    did.  gold: the judge's score is more than the reward.
    """
    rows = []
    cases = [use_case(record) for record in records]
    for i in in_turns(cases)[:count]:
        replies = {}
        for name, one in samples.items():
            reply: dict[str, Any] = {"text": one.completions[i].text}
            if one.reward is not None:
                reply["reward"] = float(one.reward[i])
            if gold and one.judged is not None:
                reply["gold"] = float(one.judged[i])
            replies[name] = reply
        rows.append(
            {
                "prompt": records[i]["prompt"],
                "use_case": cases[i],
                "completions": replies,
            }
        )
    return rows


def _write(stage: Stage, evaluator: Evaluator, sampled: Sampled, found: dict[str, Any]) -> None:
    rows = []
    for temperature, models in sampled.by_temperature.items():
        for name, samples in models.items():
            for i, completion in enumerate(samples.completions):
                row = {
                    "model": name,
                    "temperature": temperature,
                    "prompt": evaluator.records[i]["prompt"],
                    "completion": completion.text,
                    "ended": completion.ended,
                }
                if samples.judged is not None:
                    row["gold"] = float(samples.judged[i])
                if samples.reward is not None:
                    row["reward"] = float(samples.reward[i])
                rows.append(row)
    if is_main():
        write_jsonl(stage.folder / "completions.jsonl", rows)
    write_atomic(stage.folder / "evaluation.json", json.dumps(found, indent=1) + "\n")


def check(stage: Stage) -> None:
    for contestant in stage.settings.named:
        place = stage.uses[f"models.{contestant}"]
        if place.run is None or (stage.run.stage_folder(place) / NAME).exists():
            require_room(stage, stage.run.spec(place))


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("prompts",)


def records(stage: Stage) -> dict[str, Any]:
    return {
        "prompts": stage.task.prompts("report", stage.settings.prompts),
        "held_out_texts": stage.task.held_out_texts,
    }


def line(stage: Stage, facts: Any) -> Line:
    count = prompts_there(stage, "report", stage.settings.prompts, facts)
    return Line(batch=plural(count, "prompt"))


KIND = Kind(
    settings=EvaluateStage,
    run=run,
    reads=reads,
    records=records,
    run_keys=("text",),
    check=check,
    line=line,
)
