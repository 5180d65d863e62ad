"""Kind reward: a reward model from rankings, from the policy that it starts from."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from instruct_jax.chain import networks, parameters, programs, rankings, supervised
from instruct_jax.chain.context import Stage, require_room, sample_tokens
from instruct_jax.chain.graph import Place
from instruct_jax.chain.kind import Curve, Kind, Line
from instruct_jax.chain.networks import Network
from instruct_jax.chain.programs import Learns, Program
from instruct_jax.chain.settings import Leaves, RunConfig, StartedSettings
from instruct_jax.chain.spec import Checkpoint, model_leaves, write_spec
from instruct_jax.chain.task import GROUPS, N_TUNING_PROMPTS, Rankings
from instruct_jax.data import batches, encode
from instruct_jax.data.schemas import Record
from instruct_jax.errors import require
from instruct_jax.evaluation import reward_accuracy
from instruct_jax.evaluation.reward_accuracy import Scored
from instruct_jax.models.heads import recentred
from instruct_jax.models.lora import backbone_of, merge, scalar_base
from instruct_jax.records import Params, RankingBatch
from instruct_jax.runtime.loop import Training, train
from instruct_jax.stages.reward_model import RewardConfig, make_loss
from instruct_jax.stages.rollout import SamplerConfig
from instruct_jax.text import plural

MEASURED = 500  # rankings of each group, at most


@dataclasses.dataclass(frozen=True)
class RewardStage(RewardConfig, StartedSettings):
    """Settings of a stage of kind reward."""

    leaves: ClassVar[Leaves] = "scalar"

    # stages of kind compare, RUN:STAGE, or data: the rankings of the data
    rankings: str | tuple[str, ...] = "data"
    # of the samples whose scores mean_and_std brings to a spread of 1; null = text.max_completion
    max_tokens: int | None = None

    def uses(self) -> dict[str, str]:
        return {"start": self.start} | rankings.source_uses(self.rankings)


def set_up(stage: Stage, steps: int, name: str | None = None) -> supervised.Supervised:
    """`name` gives the random keys: the folds of a cross-validation have their own."""
    cfg = stage.settings
    net = stage.network
    name = name or stage.name
    return supervised.set_up(
        stage,
        net,
        net.boxed_scalar,
        _start(stage, net, name),
        make_loss(net.scalar),
        cfg.optimizer,
        steps,
        micro_batches=cfg.micro_batches,
        name=name,
    )


def _start(stage: Stage, net: Network, name: str) -> Params:
    """The backbone of a policy with a new head, or a reward model as it is."""
    place = stage.used("start")
    if _is_reward_model(stage, place):
        return parameters.scalar(stage.run, place).params
    key = stage.key(f"{name} adapters")
    backbone = parameters.start_params(stage.run, net, place, key)
    head_key = stage.key(f"{name} head")
    head = stage.run.born(net.scalar.init_head, net.layout, head_key)
    return {"backbone": backbone_of(backbone), "head": head}


def _is_reward_model(stage: Stage, place: Place) -> bool:
    """Is it a reward model: a stage of this run or of another, or a folder of Hugging Face?"""
    if place.model is not None:
        return model_leaves(place.model) == "scalar"
    if place.own:
        return stage.run.config.stages[str(place.stage)].leaves == "scalar"
    return "normalisation" in stage.run.output(place)


def training(stage: Stage) -> Training:
    return training_on(stage, rankings.gathered(stage).train)


def training_on(stage: Stage, records: list[Record], name: str | None = None) -> Training:
    """The training of a reward model with the settings of a stage, on some rankings."""
    cfg = stage.settings
    net = stage.network
    examples = encode.encode_rankings(net.tokenizer, records, net.text).items
    if cfg.pairs_shuffled:
        pairs = []
        for completions, ranks in examples:
            pairs += _pairs(completions, ranks)
        examples = pairs
    source = ranking_source(stage, net, examples)
    steps = cfg.epochs * source.steps_per_epoch
    batch_at = networks.batches_on_mesh(net, source, cfg.batch)
    return supervised.training(
        set_up(stage, steps, name),
        batch_at,
        steps,
        examples=(batch_at(i) for i in range(steps)),
        save_every=cfg.save_every,
        show=("reward/accuracy", "reward/loss"),
        facts={"rankings": len(examples)},
    )


def ranking_source(stage: Stage, net: Network, examples: list[Any]) -> batches.Batches:
    """Batches of rankings in a few widths and numbers of completions."""
    lengths = []
    for completions, _ in examples:
        lengths += [len(ids) for ids in completions]
    longest = max(lengths)
    sizes = set()
    for quarters in (2, 3, 4):
        size = -(-longest * quarters // 32) * 8  # rounded up to a multiple of 8
        sizes.add(min(size, longest))
    most = max(len(ranks) for _, ranks in examples)
    return batches.ranking_batches(
        examples,
        batch=stage.settings.batch,
        seed=stage.seed,
        pad=net.pad,
        sizes=sorted(sizes),
        counts=sorted({2, most}),  # pairs are not padded to K = 9
    )


def _pairs(completions, ranks) -> Iterator[batches.Ranking]:
    """Every pair of a ranking as a ranking of its own."""
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield [completions[i], completions[j]], [1, 2]


def abstract_programs(stage: Stage) -> list[Program]:
    cfg = stage.settings
    ready = set_up(stage, steps=1)
    most = 2 if cfg.pairs_shuffled else 9
    batch = abstract_rankings(stage, most)
    rows, k, length = batch.tokens.shape
    learns = Learns(ready.net.policy, rows * k, length, parts=cfg.micro_batches)
    return [supervised.program(stage, ready, batch, learns)]


def abstract_rankings(stage: Stage, most: int = 9) -> RankingBatch:
    """The largest batch of rankings that the settings allow, of at most so many completions."""
    text = stage.run.config.text
    _, k = number_of_rankings(stage, None)
    k = min(k, most)
    length = text.max_prompt + text.max_completion
    return programs.rankings(stage.network.layout, stage.settings.batch, k, length)


def run(stage: Stage) -> dict[str, Any]:
    """The reward model; recentred after its training, and measured on held-out rankings."""
    net = stage.network
    given = rankings.gathered(stage)
    ready = training_on(stage, given.train)
    base = scalar_base(parameters.base(stage.run, net))
    trained = train(ready, stage.folder).params
    params = merge(base, trained)
    shift = _normalisation(stage, net, params)
    params = recentred(params, shift["mean"], shift["scale"])
    write_spec(stage.run.folder, stage.name, stage.spec, Checkpoint(stage.name))
    measured = _measure(stage, net, params, given)
    agreement = {"labeler_agreement": given.agreement}
    return {"normalisation": shift} | ready.facts | measured | agreement


def _normalisation(stage: Stage, net: Network, params: Params) -> dict[str, float]:
    """What to subtract so that demonstrations score 0 on average (paper C.2), and the spread of
    samples of the policy where asked for.  Without demonstrations nothing is subtracted.
    """
    demonstrations = encode.encode_demonstrations(
        net.tokenizer, stage.task.demonstrations, net.text
    ).items
    mean = 0.0
    if demonstrations:
        scores = networks.rewards(net, params, [ids for ids, _ in demonstrations])
        mean = float(scores.mean())
    if stage.settings.normalize == "mean":
        return {"mean": mean, "scale": 1.0}
    records = stage.task.prompts("normalisation", N_TUNING_PROMPTS)
    _, prompts = networks.encode(net, records)
    sampler = SamplerConfig(max_tokens=sample_tokens(stage))
    policy = parameters.policy(stage.run, stage.used("start"))
    key = stage.key("normalisation")
    replies = networks.generate(policy.net, policy.params, prompts, sampler, key)
    sequences = []
    for prompt, completions in zip(prompts, replies, strict=True):
        sequences.append([*prompt, *completions[0].ids])
    scores = networks.rewards(net, params, sequences)
    return {"mean": mean, "scale": float(scores.std())}


def _measure(stage: Stage, net: Network, params: Params, given: Rankings) -> dict[str, Any]:
    groups: dict[str, list[Scored]] = {}
    for name in GROUPS:
        records = getattr(given, name)[:MEASURED]
        rows = rankings.scored(net, params, records)
        if rows:
            groups[name] = rows
    measured = reward_accuracy.measure(groups)
    if stage.task.gold_scorer is not None and "held_out_prompts" in groups:
        measured["accuracy_gold"] = _gold_accuracy(stage, groups["held_out_prompts"])
    return measured


def _gold_accuracy(stage: Stage, rows: list[Scored]) -> float | None:
    """Share of pairs with different gold scores that the reward model puts in the right order; null
    where there are none.
    """
    gold_scorer = stage.task.gold_scorer
    assert gold_scorer is not None
    prompts = {record["prompt"]: record for record in rankings.held_out_samples(stage)}
    pairs = []
    for record, scores, _ in rows:
        prompt = prompts.get(record["prompt"])
        if prompt is None:  # of an earlier round
            continue
        gold = []
        for text, ended in zip(record["completions"], record["ended"], strict=True):
            parts = gold_scorer(prompt, text, ended)
            gold.append(parts["score"])
        for i, better in enumerate(gold):
            for j, worse in enumerate(gold):
                if better > worse + 0.01:
                    margin = float(scores[i] - scores[j])
                    pairs.append((margin, ""))
    if not pairs:
        return None
    return reward_accuracy.accuracy(pairs)


def check(stage: Stage) -> None:
    rankings.check(stage)
    text = stage.run.config.text
    spec = stage.spec
    longest = text.max_prompt + text.max_completion
    require(
        longest <= spec.model.context,
        f"text.max_prompt + text.max_completion = {longest} exceeds the context"
        f" {spec.model.context} of stages.{stage.name}; raise it, or lower these",
    )
    if stage.settings.normalize == "mean_and_std":
        require_room(stage, spec)


def reads(config: RunConfig, cfg: Any) -> tuple[str, ...]:
    kinds = []
    if "data" in rankings.sources(cfg.rankings):
        kinds.append("rankings")
    if cfg.normalize == "mean_and_std":
        kinds.append("prompts")
    return tuple(kinds)


def records(stage: Stage) -> dict[str, Any]:
    found = rankings.content(stage) | {"demonstrations": stage.task.demonstrations}
    if stage.settings.normalize == "mean_and_std":
        found["prompts"] = stage.task.prompts("normalisation", N_TUNING_PROMPTS)
    return found


def line(stage: Stage, facts: Any) -> Line:
    cfg = stage.settings
    text = stage.run.config.text
    count, most = number_of_rankings(stage, facts)
    width = text.max_prompt + text.max_completion
    batch = f"{cfg.batch} prompts x {most} x {width}"
    epochs = plural(cfg.epochs, "epoch")
    if count is None:
        return Line(epochs, batch)
    steps_per_epoch = -(-count // cfg.batch)
    steps = cfg.epochs * steps_per_epoch
    return Line(f"about {steps:,} ({epochs})", batch)


def number_of_rankings(stage: Stage, facts: Any) -> tuple[int | None, int]:
    """(rankings to learn from, where they can be counted; most completions of one)"""
    counts: list[int | None] = []
    sizes = [2]
    for name in rankings.sources(stage.settings.rankings):
        if name == "data":
            counts.append(facts.rankings if facts else None)
            sizes.append(facts.most_completions if facts else 9)
            continue
        place = stage.run.place(name, f"stages.{stage.name}.rankings")
        if place.own:
            compare = stage.run.config.stages[str(place.stage)]
            counts.append(getattr(compare, "prompts", 0))
            sizes.append(getattr(compare, "max_completions", 9))
        else:
            counts.append(None)
            sizes.append(9)
    most = max(sizes)
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None, most
    return sum(known), most


KIND = Kind(
    settings=RewardStage,
    run=run,
    training=training,
    programs=abstract_programs,
    reads=reads,
    records=records,
    run_keys=("text",),
    check=check,
    rows=lambda name, s: {f"{name}.batch / {name}.micro_batches": s.batch / s.micro_batches},
    line=line,
    curves=(
        Curve("reward/loss", "Reward-model loss", "nats per prompt"),
        Curve("reward/accuracy", "Reward-model accuracy on its training batches", "share of pairs"),
    ),
)
