"""What is wrong with a source file, as ``inspect`` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WhenRun = Literal["sound", "may fail", "rounds"]


@dataclass(frozen=True)
class SourceFinding:
    """A fault of a source file, and what the build does about it.

    Attributes:
        problem: The fault.
        remedy: What the build does.
        when_run: What the fault does to the file when it is run as it is: nothing; it keeps runtimes
            from running it; or it rounds to float16 what the build computes in float32.
    """

    problem: str
    remedy: str
    when_run: WhenRun = "sound"

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"
