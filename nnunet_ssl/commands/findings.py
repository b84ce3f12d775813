"""What the doctor finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its state, and the words that fix it if it keeps a training from starting.

    With a remedy that is not needed for a start it is a note.
    """

    name: str
    state: str
    remedy: str | None = None
    is_problem: bool = False

    def lines(self) -> str:
        """Return what is printed."""
        mark = "PROBLEM" if self.is_problem else "note" if self.remedy else "ok"
        text = f"[{mark:^7}] {self.name}: {self.state}"
        if self.remedy:
            text += f"\n          {'fix it' if self.is_problem else 'advice'}: {self.remedy}"
        return text
