"""How often the audit misses a copy of a scan, and how often it takes neighbours for copies, on real data sets.

  python benchmarks/copies.py $nnUNet_raw/Dataset004_Hippocampus ... --planted 20

All pairs of scans of a data set are compared as `nnunet_ssl audit` does it; pairs of one patient, as patient_pattern in
dataset.json says, are counted for themselves. Then copies of some scans are planted, kind by kind, and looked for.
Prints two tables in Markdown.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from nnunet_ssl.data.dataset_reader import DatasetReader
from nnunet_ssl.data.patients import patients_of
from nnunet_ssl.data.raw_files import RawDataset
from nnunet_ssl.leaks.candidates import candidates
from nnunet_ssl.leaks.confirmation import COPY, likeness
from nnunet_ssl.leaks.copies import compare_all, is_copy, scans_of
from nnunet_ssl.leaks.index import Index, read_small_images
from nnunet_ssl.leaks.signatures import one_channel, small_image
from planted_copies import kinds_of_copies


def main() -> None:
    """Measure each data set and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, metavar="FOLDER", help="raw data sets of nnU-Net's")
    parser.add_argument("--planted", type=int, default=20, metavar="N", help="copies of each kind (default: 20)")
    options = parser.parse_args()
    columns, neighbors = {}, []
    for folder in options.datasets:
        raw = RawDataset.open(folder)
        with tempfile.TemporaryDirectory() as place:
            index = compare_all(raw, Path(place))
            small = read_small_images(Path(place), index.scans)
        neighbors.append(line_of_neighbors(raw, index))
        columns[folder.name] = missed(raw, index, small, options.planted)
        print(f"{folder.name}: {columns[folder.name]}", file=sys.stderr)
    print("| data set | scans | pairs | looked at | highest of two patients | false | of one patient | called copies |")
    print("|---|---|---|---|---|---|---|---|", *neighbors, sep="\n")
    print(f"\n| missed of planted | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for kind in next(iter(columns.values())):
        print(f"| {kind} | {' | '.join(column[kind] for column in columns.values())} |")


def line_of_neighbors(raw: RawDataset, index: Index) -> str:
    """Return what became of all pairs of real scans."""
    case_of = {name: name.partition("/")[2] for name in index.scans}
    case_of = {name: name.partition("/")[2] for name in index.scans}
    patients = patients_of(case_of.values(), raw.dataset_json.get("patient_pattern"))
    of_two, of_one = [], []
    for names, pair in index.pairs.items():
        first, second = (patients[case_of[name]] for name in names)
        (of_one if first == second else of_two).append(pair)
    count = len(index.scans)
    cells = [raw.folder.name, count, count * (count - 1) // 2, len(index.pairs)]
    cells += [f"{max((pair.likeness for pair in of_two), default=0):.3f}", sum(map(is_copy, of_two))]
    cells += [len(of_one), sum(map(is_copy, of_one))]
    return f"| {' | '.join(map(str, cells))} |"


def missed(raw: RawDataset, index: Index, small: dict[str, np.ndarray], planted: int) -> dict[str, str]:
    """Return of each kind how many copies were missed, and the lowest likeness of a planted one."""
    rng, files, reader = np.random.default_rng(0), scans_of(raw), DatasetReader.of_raw(raw)
    names = list(small)
    stack, sizes = np.stack([small[name] for name in names]), [tuple(index.scans[name].size) for name in names]
    chosen = rng.permutation(len(names))[:planted]
    found = {}
    for kind, change in kinds_of_copies(rng).items():
        copies, copied_sizes, pairs = [], [], []
        for number in chosen:
            voxels = reader.read_channels(files[names[number]])[0]
            copy = np.ascontiguousarray(change(voxels), dtype=np.float32)
            pairs.append((one_channel(voxels), one_channel(copy)))
            copies.append(small_image(copy))
            copied_sizes.append(pairs[-1][1].shape)
        flips = {
            (one.first, one.second - len(names)): one.flipped
            for one in candidates(np.concatenate([stack, copies]), sizes + copied_sizes)
        }
        alike = [
            likeness(*pair, flips[number, place]) if (number, place) in flips else 0
            for place, (number, pair) in enumerate(zip(chosen, pairs, strict=True))
        ]
        found[kind] = f"{sum(one < COPY for one in alike)} of {len(alike)} ({min(alike):.2f})"
    return found


if __name__ == "__main__":
    main()
