"""Kind compare: samples of policies, ranked; its rankings go on to reward models and DPO."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from instruct_jax.chain import networks, parameters, rankings
from instruct_jax.chain.context import Stage, prompts_there, require_room, sample_tokens
from instruct_jax.chain.graph import Place
from instruct_jax.chain.kind import Kind, Line
from instruct_jax.chain.networks import Completion, Network
from instruct_jax.chain.settings import Leaves, PeopleConfig, RunConfig, StartedSettings
from instruct_jax.chain.task import GROUPS, Rankings
from instruct_jax.data.packing import Ids
from instruct_jax.data.readers import write_jsonl
from instruct_jax.data.schemas import Record
from instruct_jax.errors import ConfigError, require
from instruct_jax.runtime.folders import read_note
from instruct_jax.runtime.hosts import is_main
from instruct_jax.stages.rollout import SamplerConfig


@dataclasses.dataclass(frozen=True)
class CompareStage(StartedSettings):
    """Settings of a stage of kind compare: K completions per prompt, K drawn from [min, max].

    Simulated labelers rank those of the embedded world; else a reward model or people do.
    """

    leaves: ClassVar[Leaves] = "records"

    prompts: int = 3000
    held_out_prompts: int = 300  # more prompts, to measure the reward model
    min_completions: int = 4
    max_completions: int = 9
    temperature: float = 1.0
    max_tokens: int | None = None  # of a completion; null = text.max_completion
    # share of the completions of `start` that are by its first epoch, which still makes other
    # mistakes
    first_epoch_share: float = 0.0
    # further policies (stages, RUN:STAGE, models): their shares of the completions
    models: dict[str, float] = dataclasses.field(default_factory=dict)
    # the same stage of the round before, as RUN:STAGE: its rankings are passed on too
    previous: str | None = None
    ranker: str | None = None  # a reward model that ranks
    people: PeopleConfig | None = None  # people rank

    def __post_init__(self):
        total = sum(self.models.values())
        for place, share in self.models.items():
            require(0 < share <= 1, f"models.{place}={share} must lie in (0, 1]")
        require(total <= 1, f"models has shares of {total:g} in all; at most 1 can be shared")
        require(
            self.ranker is None or self.people is None,
            "ranker and people both rank; remove one of them",
        )
        require(
            self.temperature >= 0,
            f"temperature={self.temperature} must not be negative; 0 is greedy decoding",
        )
        share = self.first_epoch_share
        require(0 <= share < 1, f"first_epoch_share={share} must lie in [0, 1)")
        require(
            self.prompts >= 1 and self.held_out_prompts >= 1,
            "prompts and held_out_prompts must be at least 1",
        )
        require(
            2 <= self.min_completions <= self.max_completions <= 9,
            f"2 <= min_completions={self.min_completions} <="
            f" max_completions={self.max_completions} <= 9 must hold",
        )

    def uses(self) -> dict[str, str]:
        found = {"start": self.start}
        for number, name in enumerate(self.models, 1):
            found[f"models.{number}"] = name
        for key in ("ranker", "previous"):
            place = getattr(self, key)
            if place is not None:
                found[key] = place
        return found


def run(stage: Stage) -> dict[str, Any]:
    """K completions per prompt, ranked; K is drawn per prompt.

    What is written are the rankings of this round before those of earlier ones; each has its round,
    and the model of each completion.
    """
    cfg = stage.settings
    task = stage.task
    previous = _previous(stage)
    seen = {}
    for group in ("train", "held_out_prompts"):
        seen[group] = {_text(record) for record in previous[group]}
    held_out = task.prompts("compare_held_out", cfg.held_out_prompts)
    apart = {_text(record) for record in held_out} | seen["held_out_prompts"]
    prompts = task.prompts("compare", cfg.prompts)
    prompts = [r for r in prompts if _text(r) not in apart]
    held_out = [r for r in held_out if _text(r) not in seen["train"]]
    samples = _sampled(stage, "samples", prompts, "compare")
    held_out_samples = _sampled(stage, "held_out_samples", held_out, "compare held out")
    ranked = _rank(stage, samples, held_out_samples)
    groups = {}
    number = stage.run.config.round
    for group in GROUPS:
        own = [{**record, "round": number} for record in getattr(ranked, group)]
        groups[group] = own + previous[group]
        _write(stage, group, groups[group])
    return {
        "rankings": {name: len(records) for name, records in groups.items()},
        "labeler_agreement": ranked.agreement,
        "labeler_noise": ranked.noise,
        "lineage": lineage(groups["train"]),
    }


def _rank(stage: Stage, samples: list[Record], held_out: list[Record]) -> Rankings:
    cfg = stage.settings
    if cfg.people is not None:
        from instruct_jax.chain.people import ranked_by_people  # with the extra `label`

        return ranked_by_people(cfg.people, samples, held_out)
    if cfg.ranker is not None:
        place = stage.used("ranker")
        train = _ranked_by_model(stage, place, samples)
        held_out = _ranked_by_model(stage, place, held_out)
        return Rankings(train, held_out, [])
    if stage.task.rank is None:
        raise ConfigError(_nobody(stage))
    return stage.task.rank(samples, held_out, _noise_of_previous(stage))


def _ranked_by_model(stage: Stage, place: Place, samples: list[Record]) -> list[Record]:
    """Ranked by a reward model: a tie is the same text twice."""
    model = parameters.scalar(stage.run, place)
    numbered = []
    for sample in samples:
        record = {key: value for key, value in sample.items() if key != "task"}
        count = len(sample["completions"])
        record["ranks"] = list(range(1, count + 1))
        numbered.append(record)
    rows = rankings.scored(model.net, model.params, numbered)
    who = str(stage.settings.ranker)
    ranked = []
    for record, scores, _ in rows:
        ranked.append({**record, "ranks": _ranks(scores), "labeler_id": who})
    return ranked


def _ranks(scores: np.ndarray) -> list[int]:
    """1 = the highest score; without gaps."""
    _, from_zero = np.unique(-scores, return_inverse=True)
    return (from_zero + 1).tolist()


def _previous(stage: Stage) -> dict[str, list[Record]]:
    """The rankings of all rounds before this one, by group."""
    if stage.settings.previous is None:
        return {group: [] for group in GROUPS}
    folder = stage.run.stage_folder(stage.used("previous"))
    return {group: rankings.read_jsonl(folder, group) for group in GROUPS}


def _noise_of_previous(stage: Stage) -> float | None:
    if stage.settings.previous is None:
        return None
    folder = stage.run.stage_folder(stage.used("previous"))
    output = read_note(folder / "done.json")["output"]
    return output.get("labeler_noise")


def lineage(records: list[Record]) -> list[dict[str, Any]]:
    """Of each round and each model whose samples were ranked in it: completions, and how often one
    of them was ranked first.
    """
    completions: collections.Counter[tuple[int, str]] = collections.Counter()
    first: collections.Counter[tuple[int, str]] = collections.Counter()
    for record in records:
        ranks = record["ranks"]
        models = record.get("models") or ["unknown"] * len(ranks)
        for model, rank in zip(models, ranks, strict=True):
            key = (record["round"], model)
            completions[key] += 1
            first[key] += rank == 1
    rows = []
    for (number, model), count in sorted(completions.items()):
        rows.append(
            {
                "round": number,
                "model": model,
                "completions": count,
                "first": first[number, model],
            }
        )
    return rows


def _text(record: Record) -> str:
    return str(record["prompt"])


def _write(stage: Stage, name: str, records: list[Record]) -> None:
    if is_main():
        write_jsonl(stage.folder / f"{name}.jsonl", records)


def _sampled(stage: Stage, name: str, prompts: list[Record], purpose: str) -> list[Record]:
    """The samples, also as a file.  People are asked about the same ones after a restart, on other
    devices too: their answers are to these.
    """
    if stage.settings.people and (stage.folder / f"{name}.jsonl").exists():
        return rankings.read_jsonl(stage.folder, name)
    samples = _draw(stage, prompts, purpose)
    _write(stage, name, samples)
    return samples


def _draw(stage: Stage, prompts: list[Record], purpose: str) -> list[Record]:
    """K completions of each prompt, those of all models shuffled together; `models` says whose each
    one is.
    """
    cfg = stage.settings
    spec = stage.run.spec(stage.used("start"))
    net = stage.run.network(spec)
    prompts, ids = networks.encode(net, prompts)
    replies = _of_start(stage, ids, purpose)
    replies |= _of_others(stage, net, prompts, ids, purpose)
    rng = np.random.default_rng((stage.seed, len(prompts)))
    rows = []
    for number, record in enumerate(prompts):
        found = []
        for model, completions in replies.items():
            found += [(model, one) for one in completions[number]]
        size = rng.integers(cfg.min_completions, cfg.max_completions + 1)
        shuffled = rng.permutation(len(found))
        chosen = [found[i] for i in shuffled[:size]]
        rows.append(
            {
                **record,
                "completions": [one.text for _, one in chosen],
                "ended": [one.ended for _, one in chosen],
                "models": [model for model, _ in chosen],
            }
        )
    return rows


Replies = dict[str, list[list[Completion]]]  # model -> completions of each prompt


def _of_start(stage: Stage, ids: Sequence[Ids], purpose: str) -> Replies:
    """By the policy that the stage starts from, and by its first epoch."""
    cfg = stage.settings
    place = stage.used("start")
    count = cfg.max_completions - sum(_counts(cfg).values())
    early = round(count * cfg.first_epoch_share)
    late = count - early
    found: Replies = {}
    if late:
        policy = parameters.policy(stage.run, place)
        found[str(place)] = _replies(stage, policy, ids, f"{purpose} last", late)
    if early:
        first = stage.run.output(place)["steps_per_epoch"]
        policy = parameters.policy(stage.run, place, first)
        found[f"{place}, first epoch"] = _replies(stage, policy, ids, f"{purpose} first", early)
    return found


def _of_others(
    stage: Stage, net: Network, prompts: list[Record], ids: Sequence[Ids], purpose: str
) -> Replies:
    found: Replies = {}
    counts = _counts(stage.settings)
    for number, (name, samples) in enumerate(counts.items(), 1):
        if not samples:
            continue
        policy = parameters.policy(stage.run, stage.used(f"models.{number}"))
        own_ids = networks.ids_for(policy.net, net, prompts, ids)
        found[name] = _replies(stage, policy, own_ids, f"{purpose} {name}", samples)
    return found


def _replies(
    stage: Stage, policy: parameters.Model, ids: Sequence[Ids], purpose: str, samples: int
) -> list[list[Completion]]:
    sampler = SamplerConfig(max_tokens=sample_tokens(stage), temperature=stage.settings.temperature)
    key = stage.key(purpose)
    return networks.generate(policy.net, policy.params, ids, sampler, key, samples=samples)


def _counts(cfg: CompareStage) -> dict[str, int]:
    """Completions of each further policy."""
    return {name: round(cfg.max_completions * share) for name, share in cfg.models.items()}


def _nobody(stage: Stage) -> str:
    return (
        f"stages.{stage.name} samples, and nobody ranks; set ranker (a reward model) or people (the"
        " labeling page).  Rankings that the data brings need no such stage"
    )


def check(stage: Stage) -> None:
    cfg = stage.settings
    config = stage.run.config
    require(
        config.world is not None or cfg.ranker is not None or cfg.people is not None,
        _nobody(stage),
    )
    start = stage.used("start")
    require_room(stage, stage.run.spec(start))
    epochs = start.own and config.stages[str(start.stage)].kind == "sft"
    require(
        cfg.first_epoch_share == 0 or bool(epochs),
        f"stages.{stage.name}.first_epoch_share={cfg.first_epoch_share} needs a start of kind sft"
        f" in this run, and {start} is none; set it to 0",
    )


def records(stage: Stage) -> dict[str, Any]:
    cfg = stage.settings
    held_out = stage.task.prompts("compare_held_out", cfg.held_out_prompts)
    prompts = stage.task.prompts("compare", cfg.prompts)
    return {"prompts": [prompts, held_out]}


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    return ("prompts",)


def line(stage: Stage, facts: Any) -> Line:
    cfg = stage.settings
    prompts = prompts_there(stage, "compare", cfg.prompts, facts)
    prompts += prompts_there(stage, "compare_held_out", cfg.held_out_prompts, facts)
    tokens = prompts * cfg.max_completions * sample_tokens(stage)
    ranker = cfg.ranker or "simulated labelers"
    if cfg.people:
        ranker = f"people ({cfg.people.store})"
    return Line(
        "-",
        f"{prompts:,} prompts x {cfg.max_completions}",
        f"at most {tokens:,} sampled; ranked by {ranker}",
    )


KIND = Kind(
    settings=CompareStage,
    run=run,
    reads=reads,
    records=records,
    run_keys=("text", "round"),
    check=check,
    line=line,
)
