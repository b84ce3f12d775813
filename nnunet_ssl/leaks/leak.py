"""One way in which a training sees what it must not see."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Leak:
    """What was found.

    Attributes:
        name: of the kind, in a few words.
        state: what is so, with the cases.
        remedy: the words that fix it.
        is_note: whether it may be meant, so that it is only said.
        stops_training: whether a training refuses to start with it, as with an unlabeled image that validates it.
    """

    name: str
    state: str
    remedy: str
    is_note: bool = False
    stops_training: bool = False
