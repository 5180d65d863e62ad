"""What a compiled program sends between devices, read off its text."""

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}  # 4 for what is not here

_CALL = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction; a loop runs it several times."""

    kind: str  # one of KINDS
    bytes: int  # of its result on one device, each time
    times: int  # in one run of the program; a loop whose length the program does not say counts once
    source: str  # the jax operation that it comes from

    @property
    def total(self) -> int:
        return self.bytes * self.times


def collectives(text: str) -> list[Collective]:
    """All collectives of compiled.as_text(), loops counted as often as they run."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if begin := _COMPUTATION.match(line):
            name = begin["name"]
            entry = name if begin["entry"] else entry
        computations.setdefault(name, []).append(line)
    return _within(computations, entry, 1)


def _within(computations: dict[str, list[str]], name: str, times: int) -> list[Collective]:
    found = []
    for line in computations.get(name, ()):
        if call := _CALL.search(line):
            source = _SOURCE.search(line)
            size = _size(call["type"]) // (2 if call["start"] and call["kind"] != "all-reduce" else 1)  # -start names its operand too
            found.append(Collective(call["kind"], size, times, source[1] if source else ""))
        elif " while(" in line:
            trips = _TRIPS.search(line)
            found += _within(computations, _named(line, "body"), times * (int(trips[1]) if trips else 1))
        elif " call(" in line or " async-start(" in line:
            found += _within(computations, _named(line, "to_apply") or _named(line, "calls"), times)
        elif " conditional(" in line:
            branches = re.findall(r"%?([\w.\-]+)", (re.search(r"branch_computations=\{([^}]*)\}", line) or [""])[-1])
            found += max((_within(computations, branch, times) for branch in branches), key=lambda c: sum(x.total for x in c), default=[])
    return found


def _named(line: str, role: str) -> str:
    found = re.search(rf"{role}=%?([\w.\-]+)", line)
    return found[1] if found else ""


def _size(types: str) -> int:
    """Bytes of "f32[4,8]{1,0}" or of a tuple of such types."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in arrays)
