"""Verification sets are read whatever wrote them, and no code of a set is ever run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arcface_client.contract import Crops, Embeddings, no_progress
from arcface_client.errors import PairFileError
from arcface_client.evaluation.images import read_crop
from arcface_client.evaluation.pairs import PairFile, read_pair_file, score_pairs
from arcface_client.evaluation.systems import System
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from support.pair_files import PYTHON_2, PYTHON_2_TEXT, as_opencv, pairs
from support.tiny import tiny_serving_graph

IMAGES, SAME = pairs(6)


def written(folder: Path, content: Any, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path = folder / "set.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("images", "same"),
    [
        (IMAGES, SAME),
        (as_opencv(IMAGES), SAME),
        (list(IMAGES), [int(is_same) for is_same in SAME]),
        (tuple(IMAGES), [np.bool_(is_same) for is_same in SAME]),
        (IMAGES, np.array(SAME)),
        (IMAGES, np.array(SAME, np.int64)),
    ],
    ids=["bytes", "opencv", "0 and 1", "numpy booleans", "boolean array", "integer array"],
)
def test_a_set_is_read_in_every_protocol(tmp_path: Path, protocol: int, images: Any, same: Any) -> None:
    found = read_pair_file(written(tmp_path, (images, same), protocol))
    assert found.images == IMAGES
    assert found.same.tolist() == SAME


@pytest.mark.parametrize("path", [PYTHON_2, PYTHON_2_TEXT], ids=["protocol 2", "protocol 0"])
def test_a_set_that_python_2_wrote_is_read(path: Path) -> None:
    found = read_pair_file(path)
    assert found.same.tolist() == [True, False]
    colours = [read_crop(image)[0, 0].tolist() for image in found.images]
    assert colours == [[30, 30, 200], [30, 40, 190], [200, 30, 30], [30, 200, 30]]


def test_a_set_that_numpy_2_wrote_is_read(tmp_path: Path) -> None:
    content = pickle.dumps((as_opencv(IMAGES), SAME), 2).replace(b"numpy.core.", b"numpy._core.")
    assert read_pair_file(written(tmp_path, content)).images == IMAGES


def test_an_image_is_embedded_once_however_many_pairs_it_is_in(tmp_path: Path) -> None:
    seen: list[int] = []
    onnx.save(tiny_serving_graph(), tmp_path / "model.onnx")
    model = OnnxRuntime(tmp_path / "model.onnx")

    def embed(crops: Crops) -> Embeddings:
        seen.append(len(crops))
        return model.embed(crops)

    first, second, third = IMAGES[0], IMAGES[2], IMAGES[4]
    images = [first, second, first, third, second, third, third, first]
    pairs_of_three = PairFile(Path("three.bin"), images, np.array([True, False, False, True]))
    system = System(name="tiny", kind="in process", where="", run=embed)
    scores = score_pairs(
        [system],
        pairs_of_three,
        batch_size=2,
        threshold=0.3,
        mirrored=False,
        resize=False,
        progress=no_progress,
    )
    assert seen == [2, 1]
    each = model.embed(np.stack([read_crop(image) for image in images]))
    np.testing.assert_allclose(scores.similarities[0], (each[0::2] * each[1::2]).sum(axis=1), atol=1e-6)


class Command:
    """What a hostile pickle holds: a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("call", [os.system, eval])
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int, call: Any) -> None:
    mark = tmp_path / "run"
    hostile: Any = Command(call, f"open({str(mark)!r}, 'w')" if call is eval else f"touch {mark}")
    with pytest.raises(PairFileError, match="holds code: its pickle names") as caught:
        read_pair_file(written(tmp_path, ([hostile, *IMAGES[1:]], SAME), protocol))
    assert call.__name__ in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"cnumpy\ndtype\n(dS'a'\ncos\nsystem\nsb.",  # BUILD on a stand-in
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"ccollections\nOrderedDict\n)R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
    ],
)
def test_no_way_of_naming_code_gets_through(tmp_path: Path, opcodes: bytes) -> None:
    with pytest.raises(PairFileError):
        read_pair_file(written(tmp_path, opcodes))


@pytest.mark.parametrize("name", [b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"])
@pytest.mark.parametrize("state", [b"N}X\x01\x00\x00\x00aNs\x86", b"}X\x01\x00\x00\x00aNs"])
def test_a_pickle_cannot_change_what_it_calls(tmp_path: Path, name: bytes, state: bytes) -> None:
    with pytest.raises(PairFileError, match="has no attribute"):
        read_pair_file(written(tmp_path, b"\x80\x02" + name + state + b"b0]]\x86."))
    assert read_pair_file(written(tmp_path, (as_opencv(IMAGES), SAME), 2)).images == IMAGES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES[:-1], SAME), "11 images for 6 pairs; expected two images for each pair"),
        (([], []), "0 images for 0 pairs"),
        ({"images": IMAGES}, "a pickle of something else"),
        ((IMAGES, np.array(SAME, np.float64)), "the data type 'f8' is not one that such sets have"),
        (([1, *IMAGES[1:]], SAME), "image 0 is of type int; expected the bytes"),
        (([np.zeros(3, np.int64), *IMAGES[1:]], SAME), "image 0 is of type ndarray"),
        ((IMAGES, [*SAME[:-1], 2]), "the label of pair 5 is 2; expected true or false"),
        (b"", "cannot be read as a pickle"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a pickle"),
        (pickle.dumps((IMAGES, SAME), 4)[:-5000], r"cannot be read as a pickle .*expected a whole set"),
    ],
)
def test_a_file_that_is_not_a_set_is_one_clear_error(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PairFileError, match=message):
        read_pair_file(written(tmp_path, content))
