"""What is known of the images of a batch for free."""

from collections.abc import Hashable, Iterable

from nnunet_ssl.data.patients import groups_where_they_occur, patients_of
from nnunet_ssl.data.places import Place, position_bin


def meta_labels(
    places: Iterable[Place], position_bins: int, patient_pattern: str | None, phase_pattern: str | None
) -> dict[str, list[Hashable]]:
    """Return for each patch the bin of its position, its patient and, if there is a pattern of it, its phase.

    Args:
        places: where the patches lie.
        position_bins: of equal width, along the first axis.
        patient_pattern: of dataset.json; see `patients_of`. None means that each case is a patient.
        phase_pattern: a regular expression: cases in whose name it finds the same are of one phase, and so are those in
            which it finds nothing; None leaves the phase out.
    """
    places = list(places)
    cases = [place.case for place in places]
    patients = patients_of(cases, patient_pattern)
    labels = {
        "position": [position_bin(place.position, position_bins) for place in places],
        "patient": [patients[case] for case in cases],
    }
    if phase_pattern is not None:
        found = groups_where_they_occur(cases, phase_pattern)
        labels["phase"] = [found[case] for case in cases]
    return labels


def refuse_pattern_of_one_phase(phase_pattern: str | None, cases: Iterable[str]) -> None:
    """Raise a ValueError if a phase_pattern finds the same, or nothing, in all cases, so that it tells none apart."""
    found = groups_where_they_occur(cases, phase_pattern) if phase_pattern is not None else {}
    if len(found) > 1 and len(set(found.values())) == 1:
        what = next(iter(found.values()))
        raise ValueError(
            f"phase_pattern is a regular expression that finds something in the names of cases of one phase alone, and "
            f"{phase_pattern} finds {'nothing' if what is None else what} in all {len(found)}, {min(found)} for example"
        )
