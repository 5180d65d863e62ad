"""What a kind of stage is: its settings, and the functions that do it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from instruct_jax.chain.programs import Program
from instruct_jax.chain.settings import RunConfig, StageSettings
from instruct_jax.runtime.loop import Training

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
class Kind:
    """One kind of stage.  chain/kinds.py has the table of them."""

    settings: type[StageSettings]
    run: "Callable[[Stage], dict[str, Any]]"  # does it; returns its output, for done.json
    # the same up to its first step, for `replay`; None where nothing is trained
    training: "Callable[[Stage], Training] | None" = None
    # its jitted functions on abstract arrays, for `plan`; None where it has none of its own
    programs: "Callable[[Stage], Iterable[Program]] | None" = None
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
