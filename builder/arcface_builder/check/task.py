"""The gate by task: does a model recognise people as well as the ONNX model that it was made from?

Both embed verification sets. One may be right about a pair where the other is wrong; how often that happens
either way gives the loss and its interval. A model passes if the whole interval is within what is allowed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from arcface_client.contract import Progress, no_progress
from arcface_client.evaluation.pairs import PairFile, read_pair_file, score_pairs
from arcface_client.evaluation.scores import FOLDS, Same, accept, decide
from arcface_client.evaluation.systems import System
from arcface_client.models.plan_manifest import RecognitionLoss
from arcface_client.runtimes.base import Embed
from arcface_client.runtimes.onnxruntime import OnnxRuntime

from ..errors import OptionError, ParityError

FALSE_ACCEPT_RATE: Final = 1e-3

BY_TASK: Final = "Let verification sets judge int8 (--pairs), or use --precision mixed."
"""What to do where int8 is refused because it drifts."""

_Z: Final = 1.96  # of a 95 % interval
_BATCH: Final = 32
_GROWTH: Final = 1.01


@dataclass(frozen=True, eq=False)
class TaskGate:
    """Verification sets, and how much of its recognition a model may lose on them.

    Attributes:
        sets: The sets; their pairs count together.
        max_loss: Of verification accuracy, and of TAR at FAR 0.001.
    """

    sets: tuple[PairFile, ...]
    max_loss: float

    @classmethod
    def read(cls, paths: Sequence[Path], max_loss: float) -> TaskGate:
        """Read verification sets.

        Raises:
            PairFileError: A file is not a set of pairs.
            OptionError: There are too few pairs, whatever the model.
        """
        sets = tuple(map(read_pair_file, paths))
        for one in sets:
            impostors = int((~one.same).sum())
            if impostors * FALSE_ACCEPT_RATE < 1 or len(one.same) < FOLDS:
                raise OptionError(
                    f"{one.path} has {impostors:,} pairs of different people, and a TAR at FAR "
                    f"{FALSE_ACCEPT_RATE:g} needs {1 / FALSE_ACCEPT_RATE:,.0f}; give a larger set with "
                    "--pairs, for example lfw.bin."
                )
        genuine, least = sum(int(one.same.sum()) for one in sets), needed(0, 0, 1, max_loss)
        if genuine < least:
            raise OptionError(
                f"--pairs has {genuine:,} pairs of one person, and at least {least:,} are needed to show "
                f"that no more than {max_loss:g} is lost; repeat --pairs with more sets, or raise "
                "--max-accuracy-loss."
            )
        return cls(sets, max_loss)

    @property
    def settings(self) -> dict[str, str | float]:
        """What makes two gates the same, as a plan's key holds it."""
        digest = hashlib.sha256()
        for one in self.sets:
            for image in one.images:
                digest.update(hashlib.sha256(image).digest())
            digest.update(one.same.tobytes())
        return {"pairs_sha256": digest.hexdigest(), "max_accuracy_loss": self.max_loss}

    def check(
        self, onnx_path: Path, embed: Embed, report: Progress = no_progress
    ) -> tuple[RecognitionLoss, ...]:
        """Compare a model, which embeds by ``embed``, with the ONNX model that it was made from.

        Raises:
            ParityError: It loses more than is allowed, or there are too few pairs to tell.
            ImageFileError: An image of a set cannot be read.
        """
        right: list[tuple[Same, ...]] = []
        accepted: list[tuple[Same, ...]] = []
        with closing(OnnxRuntime(onnx_path)) as onnx:
            systems = [
                System(name=name, kind="in process", where="here", run=run)
                for name, run in (("the ONNX model", onnx.embed), ("the model", embed))
            ]
            for one in self.sets:
                scores = score_pairs(
                    systems,
                    one,
                    batch_size=_BATCH,
                    threshold=0,
                    mirrored=False,
                    resize=False,
                    progress=report,
                )
                decided = [decide(values, one.same) for values in scores.similarities]
                right.append(tuple(one_decided[0] for one_decided in decided if one_decided is not None))
                kept = [accept(values, one.same, FALSE_ACCEPT_RATE) for values in scores.similarities]
                accepted.append(tuple(one_kept for one_kept in kept if one_kept is not None))
        losses = (
            _loss("verification accuracy", right, self.max_loss),
            _loss(f"TAR at FAR {FALSE_ACCEPT_RATE:g}", accepted, self.max_loss),
        )
        for loss in losses:
            _check(loss)
        return losses


def interval(lost: float, gained: float, pairs: float) -> tuple[float, float]:
    """The 95 % confidence interval of a loss, by Bonett and Price 2012 for paired proportions.

    It holds for few differences, too: without any, it ends at about 2.8 / pairs.

    Args:
        lost: Pairs that only the reference is right about.
        gained: Pairs that only the model is right about.
        pairs: All pairs.
    """
    one, other, count = (lost + 1) / (pairs + 2), (gained + 1) / (pairs + 2), pairs + 2
    half = _Z * math.sqrt((one + other - (one - other) ** 2) / count)
    return one - other - half, one - other + half


def needed(lost: float, gained: float, pairs: float, max_loss: float) -> int:
    """How many pairs would show that no more than ``max_loss`` is lost, if as many differed in proportion."""
    factor = 1.0
    while interval(lost * factor, gained * factor, pairs * factor)[1] > max_loss:
        factor *= _GROWTH
    return math.ceil(pairs * factor)


def _loss(rate: str, of_sets: Sequence[tuple[Same, ...]], max_loss: float) -> RecognitionLoss:
    reference, model = (np.concatenate(values) for values in zip(*of_sets, strict=True))
    lost, gained = int((reference & ~model).sum()), int((model & ~reference).sum())
    return RecognitionLoss(
        rate=rate,
        reference=float(reference.mean()),
        model=float(model.mean()),
        loss=float(reference.mean() - model.mean()),
        lost=lost,
        gained=gained,
        pairs=len(model),
        interval=interval(lost, gained, len(model)),
        max_loss=max_loss,
    )


def _check(loss: RecognitionLoss) -> None:
    low, high = loss.interval
    if high <= loss.max_loss:
        return
    told = (
        f"The model's {loss.rate} is {loss.model:.4f}, and the ONNX model's {loss.reference:.4f}. That is a "
        f"loss of {loss.loss:.4f} over {loss.pairs:,} pairs (95 % interval {low:.4f} to {high:.4f}); "
        f"expected at most {loss.max_loss:g} (--max-accuracy-loss)."
    )
    if loss.loss >= loss.max_loss:
        raise ParityError(told)
    count = needed(loss.lost, loss.gained, loss.pairs, loss.max_loss)
    raise ParityError(f"{told} These are too few pairs to tell: about {count:,} are needed.")
