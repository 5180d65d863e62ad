"""The config of a run: one frozen tree, checked as a whole before anything is computed."""

import dataclasses

from instruct_jax.config import LoraConfig, MeshConfig, ModelConfig
from instruct_jax.data.encode import TextFormat
from instruct_jax.errors import require
from instruct_jax.stages.ppo import PpoConfig
from instruct_jax.stages.pretrain import PretrainConfig
from instruct_jax.stages.reward_model import RewardConfig
from instruct_jax.stages.sft import SftConfig

STAGES = (
    "pretrain",
    "sft",
    "compare",
    "reward",
    "cross_validation",
    "select",
    "ppo_start",
    "ppo",
    "ppo_ptx",
    "evaluate",
    "report",
)
ON_REQUEST = ("cross_validation",)  # run only where --stages names them


def named_place(place: str) -> bool:
    """FOLDER:STAGE, a model of another run."""
    folder, _, stage = place.rpartition(":")
    return bool(folder and stage)


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The embedded world (instruct_jax/world): how much of each kind of data it writes."""

    demonstrations: int = 800
    careless: float = 0.2  # share of demonstrations with a plain flaw
    lazy: float = 0.45  # share that skips a constraint or guesses
    held_out_tokens: int = 20_000  # of corpus, for the alignment tax
    # least share of copy probes that the base model must pass before the chain goes on; 0 = no gate
    copy_probe: float = 0.5

    def __post_init__(self):
        require(
            self.demonstrations >= 1,
            f"world.demonstrations={self.demonstrations} must be at least 1",
        )
        require(
            0 <= self.careless and 0 <= self.lazy and self.careless + self.lazy <= 1,
            "world.careless + world.lazy must lie in [0, 1]",
        )


@dataclasses.dataclass(frozen=True)
class FilesConfig:
    """Records of one's own: files, or folders of data sets (docs/records.md).

    A tuple of several files is read as one.
    """

    tokenizer: (
        str  # a Hugging Face tokenizer folder or OWNER/NAME of the hub, or a GPT-2 BPE folder
    )
    # of its vocabulary, or a new one; None = its own, which must not be its EOS
    pad_token: str | None = None
    eos_token: str | None = None  # of its vocabulary; None = its own
    texts: tuple[str, ...] = ()  # pretraining
    demonstrations: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()  # for PPO
    # share of texts, rankings and prompts set apart for measuring; demonstrations of such prompts
    # are left out
    held_out: float = 0.05
    held_out_tokens: int = 50_000  # of held-out text that are measured, at most
    on_bad_record: str = "error"  # or skip: count and list what was dropped

    def __post_init__(self):
        require(0 < self.held_out < 1, f"files.held_out={self.held_out} must lie in (0, 1)")
        require(
            self.held_out_tokens >= 1,
            f"files.held_out_tokens={self.held_out_tokens} must be at least 1",
        )
        require(
            self.on_bad_record in ("error", "skip"),
            f"files.on_bad_record={self.on_bad_record!r} must be error or skip",
        )


@dataclasses.dataclass(frozen=True)
class PeopleConfig:
    """People who rank the samples on the labeling page (docs/labeling.md); the run waits for them."""

    # the database of the page, such as runs/mine/labels.db; it is made where it is not there
    store: str
    # share of the prompts of each kind (learned from, held out) that must have a ranking before the
    # run goes on
    enough: float = 0.95
    # the run serves the page itself while it waits; false: it is served elsewhere, on this store
    serve: bool = True
    port: int = 8000

    def __post_init__(self):
        require(0 < self.enough <= 1, f"compare.people.enough={self.enough} must lie in (0, 1]")
        require(0 < self.port < 65536, f"compare.people.port={self.port} must lie in [1, 65535]")


def check_rankers(section: str, judge: str | None, people: PeopleConfig | None) -> None:
    require(
        judge is None or named_place(judge),
        f"{section}.judge={judge!r} must be FOLDER:reward, such as runs/other_seed:reward",
    )
    require(
        judge is None or people is None,
        f"{section}.judge and {section}.people both rank; remove one of them",
    )


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Samples of the policies, ranked: K completions per prompt, K drawn from [min, max].
    Simulated labelers rank those of the embedded world; the rankings of files are given, so nothing
    is sampled there, unless a reward model or people rank more.
    """

    prompts: int = 3000
    held_out_prompts: int = 300  # more prompts, to measure the reward model
    min_completions: int = 4
    max_completions: int = 9
    temperature: float = 1.0
    # share of the SFT model's completions that are by its first epoch, which still makes other
    # mistakes
    early: float = 0.0
    # FOLDER:STAGE of other runs: share of the completions
    models: dict[str, float] = dataclasses.field(default_factory=dict)
    # the run of the round before: its rankings, and those of the rounds before it, are learned
    # from too
    earlier: str | None = None
    # FOLDER:reward of another run, of another seed say: its reward model ranks
    judge: str | None = None
    people: PeopleConfig | None = None  # people rank

    def __post_init__(self):
        for place, share in self.models.items():
            require(
                named_place(place),
                f"compare.models.{place} must be FOLDER:STAGE, such as runs/first:ppo",
            )
            require(0 < share <= 1, f"compare.models.{place}={share} must lie in (0, 1]")
        require(
            sum(self.models.values()) <= 1,
            f"compare.models has shares of {sum(self.models.values()):g} in all; at most 1 can be"
            " shared",
        )
        check_rankers("compare", self.judge, self.people)
        require(
            self.temperature >= 0,
            f"compare.temperature={self.temperature} must not be negative; 0 is greedy decoding",
        )
        require(0 <= self.early < 1, f"compare.early={self.early} must lie in [0, 1)")
        require(
            self.prompts >= 1 and self.held_out_prompts >= 1,
            "compare.prompts and compare.held_out_prompts must be at least 1",
        )
        require(
            2 <= self.min_completions <= self.max_completions <= 9,
            f"compare: 2 <= min_completions={self.min_completions} <="
            f" max_completions={self.max_completions} <= 9 must hold",
        )


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """The loop of feedback (paper 3.1 and 3.4): in each round samples of the newest policies are
    ranked, a reward model learns from the rankings of all rounds, and PPO starts from the SFT model
    again.  Round r > 1 is a run of its own in the folder OUT/round_r.
    """

    count: int = 2
    # stage of the round before: share of completions
    shares: dict[str, float] = dataclasses.field(default_factory=lambda: {"ppo": 0.5})
    judge: str | None = None  # who ranks in the rounds after the first, as compare.judge
    # as compare.people; null, both of them: as in the first round
    people: PeopleConfig | None = None

    def __post_init__(self):
        require(self.count >= 1, f"rounds.count={self.count} must be at least 1")
        check_rankers("rounds", self.judge, self.people)


@dataclasses.dataclass(frozen=True)
class CrossValidationConfig:
    """Reward models that never saw a group of labelers (paper 4.1): how much worse are they on its
    rankings?
    """

    groups: int = 5  # of labelers, with about as many rankings each

    def __post_init__(self):
        require(self.groups >= 2, f"cross_validation.groups={self.groups} must be at least 2")


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Finished stages of another run that this run begins with; they are linked into its folder and
    not run again.
    """

    folder: str
    stages: tuple[str, ...] = ("pretrain",)

    def __post_init__(self):
        require(
            len(self.stages) >= 1,
            "start.stages=[] must name at least one stage; remove `start` to begin with none",
        )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    prompts: int = 512
    temperatures: tuple[float, ...] = (1.0, 0.7, 0.0)  # the first one is the headline
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)
    best_of_prompts: int = 256
    chosen_best_of: int = 4  # the n of the `best_of_n` bar
    shots: int = 4  # examples in the prompt of `base_prompted`
    samples_shown: int = 24  # rows of the side-by-side table
    # the moving average of the PPO policies (paper C.4) is what is measured and shipped; false: the
    # last weights
    averaged: bool = True
    # NAME: FOLDER:STAGE, models of other runs, measured beside ours
    others: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for key, least in {
            "prompts": 1,
            "best_of_prompts": 1,
            "shots": 0,
            "samples_shown": 0,
        }.items():
            require(
                getattr(self, key) >= least,
                f"evaluation.{key}={getattr(self, key)} must be at least {least}",
            )
        require(len(self.temperatures) >= 1, "evaluation.temperatures=[] must name at least one")
        require(
            min(self.temperatures) >= 0,
            f"evaluation.temperatures={list(self.temperatures)} must not be negative; 0 is greedy"
            " decoding",
        )
        require(
            min(self.best_of, default=1) >= 1,
            f"evaluation.best_of={list(self.best_of)} must be at least 1",
        )
        require(
            self.chosen_best_of in self.best_of,
            f"evaluation.chosen_best_of={self.chosen_best_of} must be one of {self.best_of}",
        )
        for name, place in self.others.items():
            require(
                named_place(place),
                f"evaluation.others.{name}={place!r} must be FOLDER:STAGE, such as runs/large:sft",
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    out: str  # the run folder
    seed: int = 0
    rounds: RoundsConfig | None = None  # None = one
    round: int = 1  # which one this run is: it draws prompts, and random numbers, of its own
    start: StartConfig | None = None
    # a Hugging Face folder, or OWNER/NAME of the hub, that the stage pretrain imports instead
    # of training
    base: str | None = None
    world: WorldConfig | None = None
    files: FilesConfig | None = None
    text: TextFormat = TextFormat()
    model: ModelConfig = ModelConfig()  # policy and reference
    reward_model: ModelConfig | None = None  # reward model and value function; None = as the policy
    # adapters on the base model are all that SFT, reward model and PPO train; None = all
    # weights
    lora: LoraConfig | None = None
    # so many of the first layers stay as pretrained: policy, reference, value function and reward
    # model share them
    frozen_layers: int = 0
    mesh: MeshConfig = MeshConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig()
    compare: CompareConfig = CompareConfig()
    reward: RewardConfig = RewardConfig()
    cross_validation: CrossValidationConfig = CrossValidationConfig()
    # where PPO starts and what its KL is taken to (paper C.3); None = the SFT model
    ppo_start: SftConfig | None = None
    ppo: PpoConfig = PpoConfig()
    ppo_ptx: PpoConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    sample_batch: int = 256  # prompts per call of the sampler outside PPO

    def __post_init__(self):
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require(self.round >= 1, f"round={self.round} must be at least 1")
        for stage in self.rounds.shares if self.rounds else ():
            require(
                stage in self.rl,
                f"rounds.shares.{stage} is no policy of this config; use {', '.join(self.rl)}",
            )
        require(
            0 <= self.frozen_layers < self.model.layers,
            f"frozen_layers={self.frozen_layers} must be at least 0 and less than"
            f" model.layers={self.model.layers}",
        )
        require(
            not (self.frozen_layers and self.lora),
            "lora freezes all layers already; remove frozen_layers, or lora",
        )
        require(self.sample_batch >= 1, f"sample_batch={self.sample_batch} must be at least 1")
        require(
            (self.world is None) != (self.files is None),
            "give exactly one of world (the embedded task) and files (your own records)",
        )
        context, prompt = self.model.context, self.text.max_prompt
        for name, ppo in self.rl.items():
            response = ppo.sampler.max_tokens
            require(
                prompt + response <= context,
                f"text.max_prompt={prompt} + {name}.sampler.max_tokens={response} exceeds"
                f" model.context={context}; lower one of them or raise model.context",
            )
        require(
            prompt + self.text.max_completion <= context,
            f"text.max_prompt={prompt} + text.max_completion={self.text.max_completion} exceeds"
            f" model.context={context}",
        )
        for stage, length in {
            "pretrain": self.pretrain.length,
            **{name: sft.length for name, sft in self.sfts.items()},
        }.items():
            require(
                length <= context,
                f"{stage}.length={length} exceeds model.context={context}; lower it or raise"
                " model.context",
            )

    @property
    def samples_ranked(self) -> bool:
        """True where the run draws samples and has them ranked; false: the rankings are those of
        files.
        """
        return (
            self.world is not None
            or self.compare.judge is not None
            or self.compare.people is not None
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """What this config runs, in order: all stages but those whose section it lacks."""
        without = (
            *ON_REQUEST,
            *(name for name in ("ppo_start", "ppo_ptx") if getattr(self, name) is None),
        )
        return tuple(name for name in STAGES if name not in without)

    @property
    def sfts(self) -> dict[str, SftConfig]:
        """The supervised fine-tunings by the name of their stage."""
        return {"sft": self.sft} | ({} if self.ppo_start is None else {"ppo_start": self.ppo_start})

    @property
    def rl(self) -> dict[str, PpoConfig]:
        """The PPO runs by the name of their stage."""
        return {"ppo": self.ppo} | ({} if self.ppo_ptx is None else {"ppo_ptx": self.ppo_ptx})
