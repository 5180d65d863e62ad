"""What a compiled program sends between devices, read off its text."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# bytes of a number; 4 for what is not here
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
        shares = {
            "all-reduce": 2 * others,
            "reduce-scatter": self.parties - 1,
            "collective-permute": 1,
        }
        share = shares.get(self.kind, others)
        return self.total * share


def collectives(text: str) -> list[Collective]:
    """All collectives of compiled.as_text(), loops counted as often as they run."""
    computations: Computations = {}
    entry = name = ""
    for line in text.splitlines():
        begin = _COMPUTATION.match(line)
        if begin is not None:
            name = begin["name"]
            entry = name if begin["entry"] else entry
        computations.setdefault(name, []).append(line)
    return _within(computations, entry, 1)


def _within(computations: Computations, name: str, times: int) -> list[Collective]:
    """The collectives of one computation and of those that it calls, when it runs `times` times."""
    found: list[Collective] = []
    for line in computations.get(name, ()):
        own = _collective(computations, line, times)
        if own is not None:
            found.append(own)
        elif " while(" in line:
            trips = _trips(computations, line)
            found += _within(computations, _named(line, "body"), times * trips)
        elif " call(" in line or " async-start(" in line:
            called = _named(line, "to_apply") or _named(line, "calls")
            found += _within(computations, called, times)
        elif " conditional(" in line:
            branches = [_within(computations, branch, times) for branch in _branches(line)]
            found += max(branches, key=_total, default=[])
    return found


def _collective(computations: Computations, line: str, times: int) -> Collective | None:
    """The collective of a line, if it is one."""
    match = _SOURCE.search(line)
    source = match[1] if match else ""
    call = _CALL.search(line)
    if call is not None:
        kind = call["kind"]
        size = _size(call["type"])
        if call["start"] and kind != "all-reduce":
            size //= 2  # -start names its operand too
        return Collective(kind, size, _parties(line), times, source)
    fusion = _FUSION.search(line)
    if fusion is None:
        return None
    lines = computations[fusion["name"]]
    inside = next(one for one in lines if _CALL.search(one))
    size = _size(fusion["type"])
    return Collective("reduce-scatter", size, _parties(inside), times, source)


def _branches(line: str) -> list[str]:
    """The computations that a conditional chooses from."""
    names = re.search(r"branch_computations=\{([^}]*)\}", line)
    if names is None:
        return []
    return re.findall(r"%?([\w.\-]+)", names[1])


def _total(found: list[Collective]) -> int:
    return sum(one.total for one in found)


def _trips(computations: Computations, line: str) -> int:
    """How often a loop runs at most: as its line says, or where its condition compares the counter
    with a constant.
    """
    known = _TRIPS.search(line)
    if known is not None:
        return int(known[1])
    condition = computations.get(_named(line, "condition"), [])
    lines = list(condition)
    for one in condition:
        if " fusion(" in one:
            lines += computations.get(_named(one, "calls"), [])

    constants = {}
    for line in lines:
        constant = _CONSTANT.search(line)
        if constant is not None:
            constants[constant["name"]] = int(constant["value"])
    limits = []
    for line in lines:
        below = _BELOW.search(line)
        if below is not None:
            limits.append(constants.get(below["name"], 1))
    return max(limits, default=1)


def _parties(line: str) -> int:
    """How many devices take part together."""
    group = _GROUP.search(line)
    if group is None:  # a permutation, or all devices in a form that names none
        return 1
    if group["mesh"] is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", group["mesh"]))
        axes = re.findall(r"'(\w+)'", group["axes"])
        return math.prod(int(sizes[axis]) for axis in axes)
    if group["size"]:
        return int(group["size"])
    members = group["first"].split(",")
    return len(members)


def _named(line: str, role: str) -> str:
    """The computation that a line names in a role, such as body; "" where it names none."""
    match = re.search(rf"{role}=%?([\w.\-]+)", line)
    return match[1] if match else ""


def _size(types: str) -> int:
    """Bytes of "f32[4,8]{1,0}" or of a tuple of such types."""
    size = 0
    for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
        numbers = [int(n) for n in shape.split(",") if n]
        size += BYTES.get(kind, 4) * math.prod(numbers)
    return size
