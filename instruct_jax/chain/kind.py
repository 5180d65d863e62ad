"""What a kind of stage is: its settings, and the functions that do it."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from instruct_jax.chain.settings import RunConfig, StageSettings
from instruct_jax.records import Metrics, TrainState
from instruct_jax.runtime.checkpoints import Checkpoints
from instruct_jax.runtime.loop import train

if TYPE_CHECKING:
    from instruct_jax.chain.context import Stage

# settings that only say how a stage is computed, and not what: they may change at any time
HOW = ("micro_batches", "save_every", "keep_every")


class Curve(NamedTuple):
    """A metric that the report draws over the steps."""

    metric: str
    title: str
    label: str  # of the y axis
    main: bool = True  # false: it is folded away


class Line(NamedTuple):
    """What `check` prints of a stage; - where nothing is known or counted."""

    steps: str = "-"
    batch: str = "-"
    tokens: str = "-"


@dataclasses.dataclass(frozen=True)
class Training:
    """A training stage before its first step: what the loop takes, and what a replay takes one step
    of.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    state: TrainState
    batch_at: Callable[[int], Any]
    total_steps: int
    fingerprints: dict[str, str]
    save_every: int
    keep_every: int | None = None
    stop_when: Callable[[dict[str, float]], str | None] | None = None
    show: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the data, for done.json

    def run(self, folder: Path) -> TrainState:
        """Trains to the end; leaves checkpoints and metrics in the folder.  Uses up the state."""
        with Checkpoints(
            folder / "checkpoints", fingerprints=self.fingerprints, keep_every=self.keep_every
        ) as checkpoints:
            return train(
                self.step,
                self.state,
                self.batch_at,
                total_steps=self.total_steps,
                folder=folder,
                checkpoints=checkpoints,
                save_every=self.save_every,
                stop_when=self.stop_when,
                show=self.show,
            )


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of stage.  chain/kinds.py has the table of them."""

    settings: type[StageSettings]
    run: "Callable[[Stage], dict[str, Any]]"  # does it; returns its output, for done.json
    # the same up to its first step, for `replay`; None where nothing is trained
    training: "Callable[[Stage], Training] | None" = None
    # its jitted functions on abstract arrays, for `plan`; None where it has none of its own
    programs: "Callable[..., Any] | None" = None
    # kinds of records that it reads, of texts, demonstrations, rankings and prompts
    reads: Callable[[RunConfig, Any], Sequence[str]] = lambda config, settings: ()
    # content of those records as the stage sees them: name -> records, for its identity
    records: "Callable[[Stage], dict[str, Any]]" = lambda stage: {}
    # keys of the run's config that change what it computes
    run_keys: tuple[str, ...] = ()
    # raises ConfigError for settings that cannot run together; needs neither data nor devices
    check: "Callable[[Stage], None]" = lambda stage: None
    # rows that one step computes at a time, by key: the mesh must divide them
    rows: Callable[[str, Any], dict[str, float]] = lambda name, settings: {}
    line: "Callable[[Stage, Any], Line]" = lambda stage, facts: Line()
    curves: tuple[Curve, ...] = ()
    # further keys of its settings that only say how, beside HOW
    how: tuple[str, ...] = ()
