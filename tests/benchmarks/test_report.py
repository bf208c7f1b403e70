"""The report of docs/benchmarks: the page, and README's tables, against the JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import report
from support.browser import CHROMIUM, PHONE, show

FILES = sorted(report.FOLDER.glob("*.json"))


def figures(file: Path) -> list[str]:
    """All speeds of a JSON file, and all figures of its tables, read without the report's code."""
    data = json.loads(file.read_text())
    speeds = [figure["throughput_fps"] for system in data.get("systems", ()) for figure in system["figures"]]
    speeds += [row["faces_per_s"] for row in data.get("figures", ())]
    cells = [cell for table in data.get("tables", ()) for row in table["rows"] for cell in row.values()]
    texts = [cell if isinstance(cell, str) else f"{cell:,}" for cell in cells]
    return [*(f"{speed:,.1f}" for speed in speeds), *texts]


def test_readmes_tables_are_those_of_the_json_files() -> None:
    readme = (report.ROOT / "README.md").read_text()
    assert report.with_tables(readme, report.to_markdown(report.read(report.FOLDER))) == readme
    tables = readme[readme.index(report.BEGIN) : readme.index(report.END)]
    known = {figure for file in FILES for figure in figures(file)}
    rows = [line.split("|")[2:-1] for line in tables.splitlines() if line.startswith("| ")]
    shown = {cell.split()[0] for row in rows for cell in row[:3] if re.match(r" [\d,]+\.\d\b", cell)}
    assert shown
    assert shown <= known


@pytest.mark.parametrize("name", report.PAGES)
def test_the_tables_of_a_page_are_those_of_its_json_files(name: str) -> None:
    page = (report.ROOT / "docs" / name).read_text()
    assert report.with_tables(page, report.page_markdown(report.read(report.FOLDER), name)) == page


def test_the_page_in_the_repository_has_the_figures_of_the_json_files() -> None:
    page = (report.FOLDER / "index.html").read_text()
    for file in FILES:
        for figure in figures(file):
            assert figure in page, f"{file} is newer than index.html: make report"


def test_the_page_names_the_machine_the_versions_and_the_command_of_every_figure() -> None:
    for part in report.read(report.FOLDER):
        assert part.about["machine"], part.title
        assert part.about["command"], part.title


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_the_page_is_whole_in_a_browser_without_a_network_and_on_a_phone(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text(report.to_html(report.read(report.FOLDER)))
    page = show(path, tmp_path / "profile")
    assert page.complaints == []
    assert page.requests == []
    assert page.width <= PHONE
    for file in FILES:
        for figure in figures(file):
            assert figure in page.text
