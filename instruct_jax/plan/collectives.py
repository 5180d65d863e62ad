"""What a compiled program sends between devices, read off its text."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# 4 for what is not here
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}

_CALL = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
# as TPUs write a reduce-scatter
_FUSION = re.compile(r"= (?P<type>.*?) fusion\(.*calls=%?(?P<name>all-reduce-scatter[\w.\-]*)")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%?(?P<name>[\w.\-]+) = [su]32\[\]\S* constant\((?P<value>\d+)\)")
_BELOW = re.compile(r" compare\((?:\S+ )?%?[\w.\-]+, (?:\S+ )?%?(?P<name>[\w.\-]+)\), direction=LT")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_GROUP = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<first>[\d,]+)\}|mesh\[(?P<mesh>[^\]]*)\]"
    r" \{(?P<axes>[^}]*)\})"
)

Computations = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction; a loop runs it several times."""

    kind: str  # one of KINDS
    bytes: int  # of its result on one device, each time
    parties: int  # devices that take part together
    # in one run of the program; a loop that may end early counts whole, one of unknown length once
    times: int
    source: str  # the jax operation that it comes from

    @property
    def total(self) -> int:
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that one device sends in one run of the program, where the devices form a ring."""
        others = (self.parties - 1) / self.parties
        return self.total * {
            "all-reduce": 2 * others,
            "reduce-scatter": self.parties - 1,
            "collective-permute": 1,
        }.get(self.kind, others)


def collectives(text: str) -> list[Collective]:
    """All collectives of compiled.as_text(), loops counted as often as they run."""
    computations: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            name = begin["name"]
            entry = name if begin["entry"] else entry
        computations.setdefault(name, []).append(line)
    return _within(computations, entry, 1)


def _within(computations: Computations, name: str, times: int) -> list[Collective]:
    found = []
    for line in computations.get(name, ()):
        source = _SOURCE.search(line)
        if call := _CALL.search(line):
            # -start names its operand too
            size = _size(call["type"]) // (
                2 if call["start"] and call["kind"] != "all-reduce" else 1
            )
            found.append(
                Collective(call["kind"], size, _parties(line), times, source[1] if source else "")
            )
        elif fusion := _FUSION.search(line):
            inside = next(one for one in computations[fusion["name"]] if _CALL.search(one))
            found.append(
                Collective(
                    "reduce-scatter",
                    _size(fusion["type"]),
                    _parties(inside),
                    times,
                    source[1] if source else "",
                )
            )
        elif " while(" in line:
            found += _within(computations, _named(line, "body"), times * _trips(computations, line))
        elif " call(" in line or " async-start(" in line:
            found += _within(computations, _named(line, "to_apply") or _named(line, "calls"), times)
        elif " conditional(" in line:
            branches = re.findall(
                r"%?([\w.\-]+)", (re.search(r"branch_computations=\{([^}]*)\}", line) or [""])[-1]
            )
            found += max(
                (_within(computations, branch, times) for branch in branches),
                key=lambda c: sum(x.total for x in c),
                default=[],
            )
    return found


def _trips(computations: Computations, line: str) -> int:
    """How often a loop runs at most: as its line says, or where its condition compares the counter
    with a constant.
    """
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = computations.get(_named(line, "condition"), [])
    parts = [
        condition,
        *(computations.get(_named(one, "calls"), []) for one in condition if " fusion(" in one),
    ]
    constants = {
        match["name"]: int(match["value"])
        for part in parts
        for one in part
        if (match := _CONSTANT.search(one))
    }
    limits = [
        constants.get(match["name"], 1)
        for part in parts
        for one in part
        if (match := _BELOW.search(one))
    ]
    return max(limits, default=1)


def _parties(line: str) -> int:
    group = _GROUP.search(line)
    if group is None:  # a permutation, or all devices in a form that names none
        return 1
    if group["mesh"] is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", group["mesh"]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", group["axes"]))
    return int(group["size"]) if group["size"] else len(group["first"].split(","))


def _named(line: str, role: str) -> str:
    found = re.search(rf"{role}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _size(types: str) -> int:
    """Bytes of "f32[4,8]{1,0}" or of a tuple of such types."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(
        BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in arrays
    )
