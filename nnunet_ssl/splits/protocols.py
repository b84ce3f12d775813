"""The splits on which the field publishes, and ours where there was none: lists in `protocols/*.json`."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("protocols")


@dataclass(frozen=True)
class Benchmark:
    """One data set's lists of units: patients or cases.

    Attributes:
        source: where the lists come from.
        unit_pattern: regular expression whose first group is the unit in a case id.
        labeled: for each protocol how many units, from the beginning of `train`, are labeled.
        train: in the published order.
        validation: empty where the benchmark has none.
        test: what is scored in the end; empty where nothing is kept aside.
    """

    source: str
    unit_pattern: str
    labeled: dict[str, int]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def unit_of(self, case: str) -> str | None:
        """Return the unit that a case id belongs to; None if it is none of this benchmark's."""
        match = re.search(self.unit_pattern, case)
        return match[1] if match else None


@cache
def load_benchmark(name: str) -> Benchmark:
    """Return the lists of a benchmark, for example "acdc"."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    lists = {key: tuple(content[key]) for key in ("train", "validation", "test")}
    return Benchmark(content["source"], content["unit_pattern"], content["labeled"], **lists)


def protocol_names() -> list[str]:
    """Return the names of all protocols, for example "acdc-7"."""
    files = sorted(FOLDER.glob("*.json"))
    return [protocol for file in files for protocol in load_benchmark(file.stem).labeled]


def benchmark_of(protocol: str) -> Benchmark:
    """Return the benchmark that a protocol belongs to.

    Raises:
        ValueError: there is no such protocol.
    """
    if protocol not in protocol_names():
        raise ValueError(f"no protocol {protocol!r}, there are {', '.join(protocol_names())}")
    return load_benchmark(protocol.rpartition("-")[0])
