"""A run while it runs: its config, its folder, and what its stages share."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instruct_jax import sharding
from instruct_jax.chain import graph
from instruct_jax.chain.graph import Place
from instruct_jax.chain.networks import Network
from instruct_jax.chain.settings import RunConfig, StageData
from instruct_jax.chain.spec import ModelSpec, spec_of
from instruct_jax.chain.task import Task, open_task, save_world_tokenizer
from instruct_jax.errors import require
from instruct_jax.records import Params
from instruct_jax.runtime.folders import read_note
from instruct_jax.sharding import Layout


class Run:
    """Config and folder of a run, with the networks, tasks and frozen weights that its stages
    share.  With `abstract`, parameters are shapes and no folder is read: what `plan` compiles.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        devices: Sequence[Any] | None = None,
        abstract: bool = False,
    ):
        self.config = config
        self.folder = folder
        self.abstract = abstract
        self.bases: dict[ModelSpec, Params] = {}
        self._devices = devices
        self._networks: dict[ModelSpec, Network] = {}
        self._tasks: dict[StageData | None, Task] = {}

    def stage(self, name: str) -> "Stage":
        return Stage(self, name)

    def place(self, name: str, key: str) -> Place:
        """What a name in the config stands for."""
        return graph.resolve(self.config, name, key)

    def spec(self, place: Place) -> ModelSpec:
        return spec_of(self.config, self.folder, place)

    def network(self, spec: ModelSpec) -> Network:
        """One for each spec: what it compiles is compiled once."""
        if spec not in self._networks:
            self._networks[spec] = Network(
                spec,
                self.config.mesh,
                self.config.sample_batch,
                self._devices,
                abstract=self.abstract,
            )
        return self._networks[spec]

    def task(self, override: StageData | None = None) -> Task:
        """The records of the run, or of a stage that names its own."""
        if override not in self._tasks:
            self._tasks[override] = open_task(self.config, override)
        return self._tasks[override]

    def begin(self) -> None:
        """Makes what must be there before any stage."""
        from instruct_jax.chain.spec import WORLD_TOKENIZER

        if self.config.world is not None:
            save_world_tokenizer(self.config.seed, self.folder / WORLD_TOKENIZER)

    def key(self, purpose: str, seed: int | None = None) -> jax.Array:
        """The root key of one purpose; a name gives one key in a run, so no two purposes share
        theirs.
        """
        if seed is None:
            seed = self.config.seed
        if self.config.round > 1:
            purpose = f"round {self.config.round} {purpose}"
        digest = hashlib.sha256(purpose.encode()).digest()
        number = int.from_bytes(digest[:4], "big")
        return jax.random.fold_in(jax.random.key(seed), number)

    def stage_folder(self, place: Place) -> Path:
        """The folder of a stage of this run or of another one."""
        folder = self.folder if place.run is None else Path(place.run)
        return folder / str(place.stage)

    def output(self, place: Place) -> dict[str, Any]:
        """What a finished stage found."""
        return read_note(self.stage_folder(place) / "done.json")["output"]

    def born(self, create: Callable[..., Params], layout: Layout, *args: Any) -> Params:
        """create(*args) on the mesh; of an abstract run, its shapes."""
        if self.abstract:
            return sharding.abstract(jax.eval_shape(create, *args), layout)
        return sharding.create_sharded(create, layout, *args)


def sample_tokens(stage: "Stage") -> int:
    """The longest sample that a stage draws, in tokens."""
    own = stage.settings.max_tokens
    return stage.run.config.text.max_completion if own is None else own


def prompts_there(stage: "Stage", purpose: str, most: int, facts: Any) -> int:
    """How many prompts a purpose gets of those it asks for; facts: None where no file was read."""
    return len(stage.task.prompts(purpose, most)) if facts else most


def require_room(stage: "Stage", spec: ModelSpec) -> None:
    """ConfigError where a prompt and a sample do not fit into the context."""
    prompt = stage.run.config.text.max_prompt
    sample = sample_tokens(stage)
    require(
        prompt + sample <= spec.model.context,
        f"text.max_prompt={prompt} + stages.{stage.name}.max_tokens={sample} exceeds"
        f" model.context={spec.model.context}; lower one of them or raise model.context",
    )


class Stage(NamedTuple):
    """A stage of a run."""

    run: Run
    name: str

    @property
    def settings(self) -> Any:
        return self.run.config.stages[self.name]

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    @property
    def seed(self) -> int:
        own = self.settings.seed
        return self.run.config.seed if own is None else own

    @property
    def task(self) -> Task:
        return self.run.task(self.settings.data)

    @property
    def place(self) -> Place:
        return Place(None, self.name)

    @property
    def spec(self) -> ModelSpec:
        return self.run.spec(self.place)

    @property
    def network(self) -> Network:
        return self.run.network(self.spec)

    def key(self, purpose: str) -> jax.Array:
        return self.run.key(purpose, self.seed)

    def used(self, key: str) -> Place:
        """What the stage names in `key`."""
        return self.uses[key]

    @property
    def uses(self) -> dict[str, Place]:
        return graph.uses(self.run.config, self.name)
