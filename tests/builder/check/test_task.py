from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from arcface_builder.check.task import TaskGate, interval, needed
from arcface_builder.errors import OptionError, ParityError
from arcface_client.contract import Crops, Embeddings
from arcface_client.evaluation.pairs import PairFile
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.pair_files import many_pairs


@pytest.fixture(scope="module")
def pairs() -> PairFile:
    images, same = many_pairs(48)
    return PairFile(Path("set.bin"), images, np.array(same))


@pytest.fixture(scope="module")
def served(built: Path) -> Path:
    return built / "models/small_onnx/1/model.onnx"


def test_a_model_that_decides_alike_passes(pairs: PairFile, served: Path) -> None:
    accuracy, tar = TaskGate((pairs, pairs), 0.1).check(served, OnnxRuntime(served).embed)

    assert (accuracy.loss, accuracy.lost, accuracy.gained) == (0, 0, 0)
    assert (accuracy.pairs, tar.pairs) == (2 * len(pairs.same), 2 * pairs.same.sum())
    assert tar.rate == "TAR at FAR 0.001"
    low, high = tar.interval
    assert -0.1 < low < 0 < high < 0.1


def test_a_model_that_recognises_less_is_refused(pairs: PairFile, served: Path) -> None:
    runtime = OnnxRuntime(served)

    def blurred(crops: Crops) -> Embeddings:
        noise = np.random.RandomState(int(crops.sum()) % 2**31).standard_normal((len(crops), 512)) / 20
        wrong = runtime.embed(crops) + noise
        return np.asarray(wrong / np.linalg.norm(wrong, axis=1, keepdims=True), np.float32)

    with pytest.raises(ParityError, match=r"^The model's .* 0\.\d+, and the ONNX model's .* loss of 0\.\d+ "):
        TaskGate((pairs,), 0.02).check(served, blurred)


def test_too_few_pairs_to_tell_say_how_many_are_needed(pairs: PairFile, served: Path) -> None:
    with pytest.raises(ParityError, match=r"These are too few pairs to tell: about [\d,]+ are needed\.$"):
        TaskGate((pairs,), 0.001).check(served, OnnxRuntime(served).embed)


@pytest.mark.parametrize(
    ("lost", "gained", "pairs", "low", "high"),
    [(0, 0, 6000, -4.6e-4, 4.6e-4), (3, 3, 6000, -9.2e-4, 9.2e-4), (10, 2, 6000, 1.115e-4, 2.554e-3)],
)
def test_the_interval_is_that_of_paired_proportions(
    lost: int, gained: int, pairs: int, low: float, high: float
) -> None:
    np.testing.assert_allclose(interval(lost, gained, pairs), (low, high), rtol=0.02)


def test_as_many_pairs_as_are_needed_are_enough() -> None:
    assert 2700 < needed(0, 0, 1, 0.001) < 2900
    count = needed(4, 2, 1000, 0.005)
    assert interval(4 * count / 1000, 2 * count / 1000, count)[1] <= 0.005


@pytest.mark.parametrize(
    ("genuine", "impostors", "message"),
    [
        (4000, 999, "has 999 pairs of different people, and a TAR at FAR 0.001 needs 1,000"),
        (2000, 2000, r"has 2,000 pairs of one person, and at least 2,\d+ are needed"),
    ],
)
def test_a_set_that_no_model_could_pass_with_is_refused_at_once(
    genuine: int, impostors: int, message: str, tmp_path: Path
) -> None:
    same = [True] * genuine + [False] * impostors
    (tmp_path / "set.bin").write_bytes(pickle.dumps(([b"image"] * 2 * len(same), same)))

    with pytest.raises(OptionError, match=message):
        TaskGate.read([tmp_path / "set.bin"], 0.001)
