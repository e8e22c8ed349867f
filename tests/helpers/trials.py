"""What came of trials in which commands are disturbed: killed, or given a failing disk."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How many trials there were, counted by fault, by stage hit and by ending, and what was wrong.

    Of kills the faults are signals; their endings are not counted.
    """

    trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
