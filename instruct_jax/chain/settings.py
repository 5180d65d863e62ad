"""The config of a run: one frozen tree, checked as a whole before anything is computed.

Settings of a kind of stage stand in its own file of this folder.
"""

import dataclasses
from typing import ClassVar, Literal

from instruct_jax.config import LoraConfig, MeshConfig, ModelConfig
from instruct_jax.data.encode import TextFormat
from instruct_jax.errors import require

Leaves = Literal["policy", "scalar", "records", "findings"]
BASE = "base"  # what stages start from where they do not say


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The embedded world (instruct_jax/world): how much of each kind of data it writes."""

    demonstrations: int = 800
    careless: float = 0.2  # share of demonstrations with a plain flaw
    lazy: float = 0.45  # share that skips a constraint or guesses
    held_out_tokens: int = 20_000  # of corpus, for the alignment tax
    # least share of copy probes that a pretrained model must pass before the chain continues;
    # 0 = no gate
    copy_probe: float = 0.5

    def __post_init__(self):
        require(
            self.demonstrations >= 1,
            f"world.demonstrations={self.demonstrations} must be at least 1",
        )
        require(
            self.careless >= 0 and self.lazy >= 0 and self.careless + self.lazy <= 1,
            "world.careless + world.lazy must lie in [0, 1]",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Records of one's own: files, or folders of data sets (docs/records.md).

    A tuple of several files is read as one.
    """

    # a Hugging Face tokenizer folder or OWNER/NAME of the hub, or a GPT-2 BPE folder; null = that
    # of the run's `base`
    tokenizer: str | None = None
    # of its vocabulary, or a new one; null = its own, which must not be its EOS
    pad_token: str | None = None
    eos_token: str | None = None  # of its vocabulary; null = its own
    texts: tuple[str, ...] = ()  # pretraining
    demonstrations: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()  # to sample replies to
    # field of a record -> the column of your files that holds it; null leaves the field out
    columns: dict[str, str | None] = dataclasses.field(default_factory=dict)
    # share of all records set apart for measuring, by a hash of the conversation
    held_out: float = 0.05
    held_out_tokens: int = 50_000  # of held-out text that are measured, at most
    on_bad_record: str = "error"  # or skip: count and list what was dropped

    def __post_init__(self):
        require(0 < self.held_out < 1, f"data.held_out={self.held_out} must lie in (0, 1)")
        require(
            self.held_out_tokens >= 1,
            f"data.held_out_tokens={self.held_out_tokens} must be at least 1",
        )
        require(
            self.on_bad_record in ("error", "skip"),
            f"data.on_bad_record={self.on_bad_record!r} must be error or skip",
        )


@dataclasses.dataclass(frozen=True)
class StageData:
    """Records that one stage reads in place of the run's, by kind."""

    texts: tuple[str, ...] = ()
    demonstrations: tuple[str, ...] = ()
    rankings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What every stage has.  Each kind adds its own settings."""

    leaves: ClassVar[Leaves]  # what a stage of this kind leaves
    whole: ClassVar[bool] = False  # it leaves all weights of a model, whatever lora says

    kind: str
    seed: int | None = None  # null = the run's
    data: StageData | None = None  # null = the run's

    def uses(self) -> dict[str, str]:
        """Key of these settings -> the stage or model that it names."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartedSettings(StageSettings):
    """A stage that starts from a model: a stage of the run, RUN:STAGE, a folder, OWNER/NAME."""

    start: str = BASE

    def uses(self) -> dict[str, str]:
        return {"start": self.start}


@dataclasses.dataclass(frozen=True)
class PeopleConfig:
    """People who rank the samples on the labeling page (docs/labeling.md).  The run waits."""

    # the database of the page, such as runs/mine/labels.db; it is made where it is not there
    store: str
    # share of the prompts of each kind (learned from, held out) that must have a ranking before the
    # run continues
    min_ranked_share: float = 0.95
    # the run serves the page itself while it waits; false: it is served elsewhere, on this store
    serve: bool = True
    port: int = 8000

    def __post_init__(self):
        share = self.min_ranked_share
        require(0 < share <= 1, f"people.min_ranked_share={share} must lie in (0, 1]")
        require(0 < self.port < 65536, f"people.port={self.port} must lie in [1, 65535]")


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """The loop of feedback (paper 3.1 and 3.4): in each round samples of the newest policies are
    ranked, a reward model learns from the rankings of all rounds, and PPO starts from the SFT model
    again.  Round r > 1 is a run of its own in the folder OUT/round_r.
    """

    count: int = 2
    # policy of the round before: its share of the completions of this round
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    # who ranks in the rounds after the first, as in the stage of kind compare; null, both of them:
    # as in the first round
    ranker: str | None = None
    people: PeopleConfig | None = None

    def __post_init__(self):
        require(self.count >= 1, f"rounds.count={self.count} must be at least 1")
        require(
            self.ranker is None or self.people is None,
            "rounds.ranker and rounds.people both rank; remove one of them",
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: its data, what its models have in common, and its stages."""

    out: str  # the run folder
    seed: int = 0
    rounds: RoundsConfig | None = None  # null = one
    round: int = 1  # which one this run is: it draws prompts, and random numbers, of its own
    # where stages start unless they say otherwise: a stage of this run, RUN:STAGE, a Hugging Face
    # folder, OWNER/NAME[@REVISION]; null = the stage called pretrain
    base: str | None = None
    world: WorldConfig | None = None
    data: DataConfig | None = None
    text: TextFormat = TextFormat()
    model: ModelConfig = ModelConfig()  # of stages that make a model, and of `base`
    # adapters on frozen weights are all that the stages after pretraining train; null = all weights
    lora: LoraConfig | None = None
    # so many of the first layers stay as pretrained: all stages that start from one model share
    # them
    frozen_layers: int = 0
    mesh: MeshConfig = MeshConfig()
    sample_batch: int = 256  # prompts per call of the sampler outside PPO
    stages: dict[str, StageSettings] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require(self.round >= 1, f"round={self.round} must be at least 1")
        layers = self.model.layers
        require(
            0 <= self.frozen_layers < layers,
            f"frozen_layers={self.frozen_layers} must be at least 0 and less than"
            f" model.layers={layers}",
        )
        require(
            not (self.frozen_layers and self.lora),
            "lora freezes all layers already; remove frozen_layers, or lora",
        )
        require(self.sample_batch >= 1, f"sample_batch={self.sample_batch} must be at least 1")
        require(
            (self.world is None) != (self.data is None),
            "give exactly one of world (the embedded task) and data (your own records)",
        )
        require(
            len(self.stages) > 0, "stages={} must name at least one, such as `sft: {epochs: 2}`"
        )
        prompt, completion = self.text.max_prompt, self.text.max_completion
        require(
            prompt + completion <= self.model.context,
            f"text.max_prompt={prompt} + text.max_completion={completion} exceeds"
            f" model.context={self.model.context}; lower one of them or raise model.context",
        )

    def of_kind(self, *kinds: str) -> dict[str, StageSettings]:
        """The stages of these kinds, in the order of the config."""
        return {name: stage for name, stage in self.stages.items() if stage.kind in kinds}
