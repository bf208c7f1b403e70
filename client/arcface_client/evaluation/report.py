"""A comparison with all that belongs to it: for a person to read, for a program, and to make it again."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from .comparison import Comparison
from .labelled_pairs import LabelledPairs
from .samples import Samples

_PACKAGES: Final = ("arcface-triton", "numpy", "tritonclient", "onnxruntime", "insightface")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that ``arcface-client compare`` found.

    Attributes:
        comparison: What was measured on the samples.
        samples: The crops.
        verification: What was measured on a verification set; None without one.
        batch_size: Crops in a batch.
        max_drift_cosine: The largest drift that passes.
        threshold: Cosine similarity from which two crops count as one person.
        command: What was typed.
        created: When, UTC, ISO 8601.
        versions: Of what took part.
    """

    comparison: Comparison
    samples: Samples
    verification: LabelledPairs | None
    batch_size: int
    max_drift_cosine: float
    threshold: float
    command: str
    created: str
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the verdict is "passed"."""
        return self.comparison.verdict.outcome == "passed"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; docs/compare.md describes the fields."""
        comparison = self.comparison
        return {
            "verdict": asdict(comparison.verdict),
            "max_drift_cosine": self.max_drift_cosine,
            "samples": {
                "count": len(self.samples.crops),
                "origin": self.samples.origin,
                "skipped": list(self.samples.skipped),
                "batch_size": self.batch_size,
            },
            "backends": [asdict(embedder) for embedder in comparison.embedders],
            "pairs": [
                {
                    "baseline": pair.baseline,
                    "other": pair.other,
                    **asdict(pair.agreement),
                    "flips": asdict(pair.flips),
                }
                for pair in comparison.pairs
            ],
            "controls": [asdict(control) for control in comparison.controls],
            "verification": None if self.verification is None else self._verification(self.verification),
            "versions": self.versions,
            "command": self.command,
            "created": self.created,
        }

    def _verification(self, found: LabelledPairs) -> dict[str, Any]:
        names = [embedder.name for embedder in self.comparison.embedders]
        return {
            "path": str(found.path),
            "pairs": found.pairs,
            "same": found.same,
            "mirrored": found.mirrored,
            "backends": [
                {"name": name, **asdict(own)} for name, own in zip(names, found.verification, strict=True)
            ],
            "flips": [
                {"baseline": names[0], "other": name, **asdict(own)}
                for name, own in zip(names[1:], found.flips, strict=True)
            ],
        }


def versions(server: str | None) -> dict[str, str]:
    """Versions of what takes part in a comparison.

    Args:
        server: Triton's version; None where no server takes part.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # not installed, so it took no part
    return found if server is None else found | {"triton": server}
