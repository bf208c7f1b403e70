"""``arcface-client compare`` as a user calls it, against a real Triton."""

from __future__ import annotations

import html.parser
import json
import pickle
import re
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arcface_builder.build import build
from arcface_builder.source.load import OnnxFile
from arcface_client.cli.app import main
from arcface_client.evaluation.images import read_crop
from arcface_client.evaluation.scores import flips, similarities
from arcface_client.runtimes.onnxruntime import OnnxRuntime
from arcface_server import LocalTriton
from support.browser import CHROMIUM, PHONE, show
from support.exports import small_arcface
from support.image_files import encoded
from support.pair_files import PYTHON_2, pairs

DOCUMENTATION = Path(__file__).parents[3] / "docs/compare.md"

FEW = ["--n-samples", "12", "--batch-size", "4"]


@pytest.fixture
def url(server: LocalTriton) -> list[str]:
    return ["--url", server.grpc_url]


def compared(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    """The JSON object that a comparison prints; it must end with a code."""
    assert main(["compare", *arguments, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def test_equal_models_pass(url: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "out.html"
    found = compared(["face_onnx:1", "face_trt:1", *FEW, *url, "--report", str(report)], capsys, 0)
    assert "No crop drifts measurably" in report.read_text(encoding="utf-8")
    assert found["result"] == {"outcome": "passed", "reasons": []}
    (pair,) = found["pairs"]
    assert (pair["baseline"], pair["other"]) == ("face_onnx:1", "face_trt:1")
    assert pair["drift_max"] < 1e-9
    assert pair["cosine_min"] > 1 - 1e-9
    assert pair["flips"] == {"threshold": 0.3, "count": 0, "pairs": 12 * 11 // 2}
    assert [(control["perturbation"], control["seen"]) for control in found["controls"]] == [
        ("red and blue swapped", True),
        ("pixels normalised twice", True),
        ("another image", True),
    ]
    assert found["samples"] == {
        "count": 12,
        "origin": "8 golden crops varied, seed 0",
        "skipped": [],
        "batch_size": 4,
    }
    assert [backend["kind"] for backend in found["backends"]] == ["served", "served"]
    for backend in found["backends"]:
        assert backend["where"] == url[1]
        assert backend["norm_min"] == pytest.approx(1, abs=1e-5)
        assert [speed["batch_size"] for speed in backend["speed"]] == [1, 4]
        assert all(speed["faces_per_s"] > 0 for speed in backend["speed"])
    assert found["verification"] is None
    assert "triton" in found["versions"]
    assert found["command"].startswith("arcface-client compare face_onnx:1 face_trt:1 --n-samples 12")


def test_a_model_that_is_slightly_wrong_fails(url: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(["face_onnx", "slight_trt", *FEW, *url], capsys, 1)
    assert found["result"]["outcome"] == "failed"
    assert 0.0015 < found["pairs"][0]["drift_max"] < 0.0035
    (reason,) = found["result"]["reasons"]
    assert re.fullmatch(r"slight_trt:1 drifts by 0.00\d+ from face_onnx:1; expected at most 0.001\.", reason)
    tolerant = ["--max-drift-cosine", "0.01"]
    assert compared(["face_onnx", "slight_trt", *FEW, *tolerant, *url], capsys, 0)["max_drift_cosine"] == 0.01


def test_another_model_fails_and_can_be_a_negative_control(
    url: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(["face_onnx", "another_onnx", *FEW, *url], capsys, 1)
    assert found["pairs"][0]["drift_max"] > 0.3
    assert found["pairs"][0]["flips"]["count"] > 0
    controlled = ["face_onnx", "face_trt", "--control-model", "another_onnx:2"]
    controls = compared([*controlled, *FEW, *url], capsys, 0)["controls"]
    assert {"perturbation": "another model: another_onnx:2", "seen": True}.items() <= controls[3].items()


def test_a_negative_control_that_is_not_seen_makes_the_comparison_inconclusive(
    url: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(["face_onnx", "face_trt", "--control-model", "face_trt", *FEW, *url], capsys, 1)
    assert found["result"]["outcome"] == "inconclusive"
    assert "another model: face_trt:1 causes a drift of" in found["result"]["reasons"][0]


def test_without_models_every_ready_sibling_is_compared(
    url: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL", "face")
    found = compared([*FEW, *url], capsys, 0)
    assert [backend["name"] for backend in found["backends"]] == ["face_onnx:1", "face_trt:1"]


def test_insightface_and_the_model_built_from_its_file_agree_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.onnx"
    onnx.save(small_arcface(), source)
    built = build(OnnxFile(source), name="small", repository=tmp_path / "repository")
    served = str(built.path / "model.onnx")
    found = compared([served, "--reference", str(source), *FEW, "--url", "127.0.0.1:9"], capsys, 0)
    assert [backend["kind"] for backend in found["backends"]] == ["reference", "in process"]
    assert found["pairs"][0]["drift_max"] < 1e-6
    assert found["fits"] == []
    stated = ["--reference", str(source), "--color", "bgr", "--normalisation", "unit"]
    (fit,) = compared([served, *stated, *FEW, "--url", "127.0.0.1:9"], capsys, 1)["fits"]
    assert (fit["given"], fit["best"]) == ("BGR, x / 255", "RGB, (x - 127.5) / 127.5")
    assert fit["drift_best"] < 1e-6 < fit["drift_given"]
    assert "triton" not in found["versions"]


def test_a_verification_set_gives_accuracy_and_flips(
    url: list[str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, same = pairs(60)
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((images, same), 2))
    crops = np.stack([read_crop(image) for image in images])
    embedded = [
        OnnxRuntime(models / name / "model.onnx").embed(crops) for name in ("face_onnx/1", "another_onnx/2")
    ]
    similar = [similarities(own[0::2], own[1::2]) for own in embedded]
    threshold = float(similar[0][1] + similar[1][1]) / 2  # between the two models' similarities of one pair
    flags = [*FEW, "--pairs", str(path), "--threshold", str(threshold), *url]
    arguments = ["face_onnx", "face_trt", "another_onnx", *flags]
    found = compared(arguments, capsys, 1)["verification"]
    assert (found["pairs"], found["same"], found["mirrored"]) == (60, 30, False)
    assert [own["name"] for own in found["backends"]] == ["face_onnx:1", "face_trt:1", "another_onnx:2"]
    for own in found["backends"]:
        assert own["accuracy_mean"] > 0.95
        assert own["tar_at_far"] == {"0.001": None, "0.0001": None}  # too few impostor pairs
    expected = flips(similar[0], similar[1], threshold).count
    assert expected > 0
    assert [own["count"] for own in found["flips"]] == [0, expected]
    mirrored = compared(["face_onnx", "face_trt", *flags, "--mirrored"], capsys, 0)["verification"]
    assert mirrored["mirrored"]


def test_an_unreadable_image_of_a_set_is_named(
    url: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = encoded(np.zeros((112, 112, 3), np.uint8))
    path = tmp_path / "broken.bin"
    path.write_bytes(pickle.dumps(([good, b"not an image", good, good], [True, False])))
    assert main(["compare", "face_onnx", "face_trt", *FEW, "--pairs", str(path), *url]) == 1
    error = capsys.readouterr().err
    assert f"arcface-client: {path}: image 1 cannot be read as an image" in error
    assert "BytesIO" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["face_onnx", "face_onnx:1"], "face_onnx:1 is named twice"),
        (["face_onnx", "face_trt:9"], "There is no face_trt:9 at"),
        (["face_onnx", "missing"], "There is no missing at"),
        (["face_onnx", "face_trt:new"], "'face_trt:new'; expected a model's name"),
        (["face_onnx", "missing.onnx"], "No model file at missing.onnx"),
        (["face_onnx", "--reference", "missing.onnx"], "There is no file missing.onnx"),
        (["face_onnx", "face_trt", "--images", "missing"], "The folder missing cannot be read: No such file"),
        (["face_onnx", "face_trt", "--pairs", "missing.bin"], "missing.bin cannot be read: No such file"),
        (
            ["face_onnx", "face_trt", "--report", "missing/out.html"],
            "missing to write out.html to; make it first",
        ),
        (["face_onnx", "models/a.plan"], "models/a.plan is not an .onnx file"),
        ([], "has no ready version of arcface_r100_onnx or"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_clear_line(
    url: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments, *FEW, *url]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_one_version_alone_cannot_be_compared(
    url: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCFACE_EMBEDDING_MODEL", "slight")
    assert main(["compare", *FEW, *url]) == 1
    assert "slight_trt:1 is the only model that is ready" in capsys.readouterr().err


class Page(html.parser.HTMLParser):
    """Collects a page's tags, the addresses it refers to and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or ""
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "action", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_report_stands_alone_and_shows_everything(
    url: list[str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "<b>$1$ & co.onnx"
    odd.write_bytes((models / "another_onnx/2/model.onnx").read_bytes())
    path = tmp_path / "out.html"
    (tmp_path / "a.bin").write_bytes(pickle.dumps(pairs(20)))
    arguments = ["face_onnx", "slight_trt", str(odd), *FEW, "--pairs", str(tmp_path / "a.bin"), *url]
    assert main(["compare", *arguments, "--report", str(path)]) == 1
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import|<b>\$", text)
    assert str(odd) in page.text
    assert text.count("<tr class=bad>") == 2  # both models drift
    assert page.tags.count("svg") == 1 + 2 * 4  # speed; drift twice and two sets of pairs for each pair
    assert page.tags.count("figure") == 16  # the worst eight crops of each pair
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        xml.etree.ElementTree.fromstring(svg)
    for expected in (
        "failed",
        "slight_trt:1 drifts by 0.00",
        "red and blue swapped",
        "of 66 pairs flip",
        "a.bin: ",
        "arcface-client compare face_onnx slight_trt",
        "tritonclient",
        "faces a second",
        "allowed: 0.001",
    ):
        assert expected in page.text, expected
    assert "slight_trt:1" in capsys.readouterr().out


def test_a_missing_package_for_the_page_is_reported_before_the_work(
    url: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["compare", "missing", "missing", *url, "--report", str(tmp_path / "out.html")]) == 1
    assert capsys.readouterr().err == (
        "arcface-client: The HTML report needs the package jinja2: pip install 'arcface-triton[report]'\n"
    )


def test_every_field_of_the_json_is_documented(url: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    found = compared(["face_onnx", "face_trt", *FEW, "--pairs", str(PYTHON_2), *url], capsys, 0)
    del found["versions"]  # whose keys are packages
    documented = set(re.findall(r"`(\w+)`", DOCUMENTATION.read_text(encoding="utf-8")))
    assert keys(found) - {"0.001", "0.0001"} <= documented


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_the_html_report_is_whole_in_a_browser_without_a_network_and_on_a_phone(
    url: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.html"
    assert main(["compare", "face_onnx", "slight_trt", *FEW, *url, "--report", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    page = show(path, tmp_path / "profile")
    assert page.complaints == []
    assert page.requests == []
    assert page.width <= PHONE
    (pair,) = found["pairs"]
    for drift in (pair["drift_max"], pair["drift_p99"], *(one["drift_max"] for one in found["controls"])):
        assert f"{drift:.1e}" in page.text
    for speed in (speed for system in found["backends"] for speed in system["speed"]):
        assert f"{speed['faces_per_s']:.1f}" in page.text
