"""The splits on which the field publishes, and ours where there was none: lists in `protocols/*.json`.

Of a list that was bettered, the earlier version stays, as `NAME-v1.json`: its protocols are called `psfhs-10-v1`.
"""

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
        unit: what a unit is called in messages: "patients", "images".
        unit_pattern: regular expression whose first group is the unit in a case id.
        labeled: for each protocol how many units, from the beginning of `train`, are labeled.
        train: in the published order.
        validation: empty where the benchmark has none.
        test: what is scored in the end; empty where nothing is kept aside.
        left_out: cases and units that stand in none of the lists on purpose, each with the reason.
    """

    source: str
    unit: str
    unit_pattern: str
    labeled: dict[str, int]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    left_out: dict[str, str]

    def unit_of(self, case: str) -> str | None:
        """Return the unit that a case id belongs to; None if it is none of this benchmark's, or left out."""
        match = re.search(self.unit_pattern, case)
        return match[1] if match and self.reason_left_out(case) is None else None

    def reason_left_out(self, case: str) -> str | None:
        """Return why a case is left out, by itself or with its unit; None if it is not."""
        match = re.search(self.unit_pattern, case)
        return self.left_out.get(case) or (self.left_out.get(match[1]) if match else None)


@cache
def load_benchmark(name: str) -> Benchmark:
    """Return the lists of a benchmark, for example "acdc", or "psfhs-v1" in an earlier version."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    current, _, version = name.partition("-")
    lists = {key: tuple(content[key]) for key in ("train", "validation", "test")}
    return Benchmark(
        source=content["source"],
        unit=content["unit"] if not version else load_benchmark(current).unit,
        unit_pattern=content["unit_pattern"],
        labeled={f"{protocol}-{version}" if version else protocol: n for protocol, n in content["labeled"].items()},
        left_out={case: reason for reason, cases in content.get("left_out", {}).items() for case in cases},
        **lists,
    )


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks, earlier versions last."""
    return sorted((file.stem for file in FOLDER.glob("*.json")), key=lambda name: ("-" in name, name))


def protocol_names() -> list[str]:
    """Return the names of all protocols, for example "acdc-7"; those of earlier versions last."""
    return [protocol for name in benchmark_names() for protocol in load_benchmark(name).labeled]


def benchmark_of(protocol: str) -> Benchmark:
    """Return the benchmark that a protocol belongs to.

    Raises:
        ValueError: there is no such protocol.
    """
    for name in benchmark_names():
        if protocol in load_benchmark(name).labeled:
            return load_benchmark(name)
    raise ValueError(f"no protocol {protocol!r}, there are {', '.join(protocol_names())}")
