"""Sets of pairs are read whatever wrote them, and nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
import pickletools
import subprocess
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcface_client.errors import PairFileError
from arcface_client.evaluation.images import decode_crop
from arcface_client.evaluation.pair_file import read_pair_file
from arcface_client.evaluation.pair_pickle import Array, Dtype, Encoded
from support.pair_files import PYTHON_2, PYTHON_2_TEXT, as_opencv, pairs

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
    colours = [decode_crop(image, "image")[0, 0].tolist() for image in found.images]
    assert colours == [[30, 30, 200], [30, 40, 190], [200, 30, 30], [30, 200, 30]]


def test_a_set_by_numpy_2_is_read(tmp_path: Path) -> None:
    content = pickle.dumps((as_opencv(IMAGES), SAME), 2).replace(b"numpy.core.", b"numpy._core.")
    assert read_pair_file(written(tmp_path, content)).images == IMAGES


class Command:
    """What a hostile pickle holds: a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, "posix.system"), (eval, ".eval"), (subprocess.Popen, ".Popen")],
)
@pytest.mark.parametrize("where", ["alone", "image", "truth"])
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int, call: Any, name: str, where: str) -> None:
    mark = tmp_path / "run"
    text = f"open({str(mark)!r}, 'w')" if call is eval else f"touch {mark}"
    hostile: Any = Command(call, text)
    content = {
        "alone": hostile,
        "image": ([hostile, *IMAGES[1:]], SAME),
        "truth": (IMAGES, [hostile, *SAME[1:]]),
    }[where]
    path = written(tmp_path, content, protocol)
    with pytest.raises(PairFileError, match="holds code: its pickle names") as caught:
        read_pair_file(path)
    assert name in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"cnumpy\ndtype\n(dS'a'\ncos\nsystem\nsb.",  # BUILD on a stand-in
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
    ],
)
def test_no_way_of_naming_code_gets_through(tmp_path: Path, opcodes: bytes) -> None:
    with pytest.raises(PairFileError):
        read_pair_file(written(tmp_path, opcodes))


ENCODE, NDARRAY, DTYPE = b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
SCALAR, FROM_BUFFER = b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n"


def of_pairs(*, images: bytes = b"](C\x01aC\x01be", truths: bytes = b"]\x88a") -> bytes:
    """The operations of a set of one pair, with images or truths of one's own."""
    return b"\x80\x02" + images + truths + b"\x86."


@pytest.mark.parametrize("name", [ENCODE, NDARRAY, DTYPE, SCALAR, FROM_BUFFER])
def test_a_stand_in_cannot_be_changed(tmp_path: Path, name: bytes) -> None:
    kinds = [Array, Dtype, Encoded, *Array.__subclasses__()]
    before = [dict(vars(kind)) for kind in kinds]
    state = b"N}X\x0c\x00\x00\x00__defaults__X\x06\x00\x00\x00latin1\x85s\x86"
    state_of_attributes = b"(NX\x04\x00\x00\x00textX\x03\x00\x00\x00bad\x86t"
    for given_state in (state, state_of_attributes):
        with pytest.raises(PairFileError):
            read_pair_file(written(tmp_path, b"\x80\x02" + name + given_state + b"b0]]\x86."))
    assert [dict(vars(kind)) for kind in kinds] == before


DEEP = b"]" * 100_000 + b"a" * 99_999
DEEP_TUPLE = b")" + b"\x85" * 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (of_pairs(truths=NDARRAY + b")\x81"), "a pickle of something else"),
        (of_pairs(images=b"](C\x01a" + NDARRAY + b")\x81e"), "image 1 is an array of another type"),
        (of_pairs(images=b"](C\x01a" + ENCODE + b")\x81e"), "image 1 is Encoded"),
        (of_pairs(truths=b"]" + SCALAR + DTYPE + b")\x81C\x01\x01\x86Ra"), "pair 0 is the same is Array"),
        (of_pairs(truths=b"]" + DEEP + b"a"), "pair 0 is the same is list"),
        (of_pairs(images=b"]" + DEEP + b"a"), "image 0 is list"),
        (of_pairs(truths=b"]" + DEEP_TUPLE + b"a"), "pair 0 is the same is tuple"),
        (of_pairs(truths=b"]}" + DEEP_TUPLE + b"Nsa"), "a pickle of something else"),
        (pickle.dumps((IMAGES[:2], [10**6000]), 2), "pair 0 is the same is int"),
        (
            of_pairs(images=b"](" + b"C\x01a" * 200_002 + b"e", truths=b"](" + b"\x88" * 100_001 + b"e"),
            "holds 100,001 pairs; expected at most 100,000",
        ),
    ],
    ids=[
        "truths without __init__",
        "array without __init__",
        "text without __init__",
        "data type without __init__",
        "deep truth",
        "deep image",
        "deep tuple",
        "deep key",
        "truth of 6,000 digits",
        "too many pairs",
    ],
)
def test_what_only_an_attacker_writes_is_one_clear_error_too(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(PairFileError, match=message):
        read_pair_file(written(tmp_path, content))


def test_a_small_file_cannot_become_a_large_memory(tmp_path: Path) -> None:
    """A megabyte that is referred to a thousand times, in each way that could copy it."""
    size = (1_000_000).to_bytes(4, "little")
    dtype = DTYPE + b"X\x02\x00\x00\x00u1\x85R"
    kinds = {
        "array": FROM_BUFFER
        + b"(B"
        + size
        + b"a" * 1_000_000
        + dtype
        + b"tRq\x000"
        + b"]("
        + b"h\x00" * 1000,
        "arrays of one buffer": FROM_BUFFER
        + b"q\x000B"
        + size
        + b"a" * 1_000_000
        + b"q\x010"
        + dtype
        + b"q\x020]("
        + b"h\x00h\x01h\x02\x86R" * 1000,
        "encoded again and again": ENCODE
        + b"q\x000X"
        + size
        + b"a" * 1_000_000
        + b"X\x06\x00\x00\x00latin1\x86q\x010]("
        + b"h\x00h\x01R" * 1000,
    }
    for images in kinds.values():
        path = written(tmp_path, of_pairs(images=images + b"e", truths=b"](" + b"\x88" * 500 + b"e"))
        tracemalloc.start()
        try:
            found = read_pair_file(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(found.images) == 1000
        assert set(map(len, found.images)) == {1_000_000}
        assert peak < 20_000_000


def test_a_memo_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match="place 4294967280 of a memo"):
        read_pair_file(written(tmp_path, b"\x80\x02]r\xf0\xff\xff\xff."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES[:-1], SAME), "11 images for 6 pairs; expected two images a pair"),
        ((IMAGES, SAME[:-1]), "12 images for 5 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, SAME, SAME), "a pickle of something else"),
        ({"images": IMAGES}, "a pickle of something else"),
        (([1, *IMAGES[1:]], SAME), "image 0 is int; expected the bytes"),
        (([np.zeros(3, np.float32), *IMAGES[1:]], SAME), "image 0 is an array of another type"),
        ((["text", *IMAGES[1:]], SAME), "image 0 is str"),
        ((IMAGES, [*SAME[:-1], 2]), "whether pair 5 is the same is 2; expected true or false"),
        ((IMAGES, [*SAME[:-1], None]), "whether pair 5 is the same is None"),
        ((IMAGES, np.array(SAME, np.float64)), "a pickle of something else"),
        ((np.array(IMAGES, object), SAME), "a pickle of something else"),
        (b"", "cannot be read as a pickle"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a pickle"),
    ],
)
def test_what_is_no_set_is_one_clear_error(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PairFileError, match=message):
        read_pair_file(written(tmp_path, content))


def test_a_class_of_another_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match=r"names collections\.OrderedDict"):
        read_pair_file(written(tmp_path, OrderedDict(), 4))


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_a_truncated_set_is_said_to_be(tmp_path: Path, missing: int) -> None:
    content = pickle.dumps((IMAGES, SAME), 4)[:-missing]
    with pytest.raises(PairFileError, match=r"cannot be read as a pickle .*, whole"):
        read_pair_file(written(tmp_path, content))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match="No such file"):
        read_pair_file(tmp_path / "lfw.bin")


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=6), max_size=40))
def test_any_bytes_are_a_set_or_one_clear_error(tmp_path_factory: Any, pieces: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(b"".join(pieces))
    with pytest.raises(PairFileError):
        read_pair_file(path)
