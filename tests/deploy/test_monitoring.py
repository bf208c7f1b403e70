"""deploy/monitoring: the alerts, and every query of the dashboard against a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest
import yaml

from arcface_client import get_embedding_backend
from arcface_client.backends.base import EmbeddingBackend
from arcface_client.contract import Crops
from arcface_client.errors import DeadlineExceededError
from arcface_server import LocalTriton
from support.processes import wait_until
from support.siblings import write_siblings

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
INTERVAL = "10s"
GPU = "nv_gpu_"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def queries() -> list[tuple[str, str]]:
    """Every query of the dashboard, with its panel's title."""
    panels = json.loads((MONITORING / "grafana/dashboards/arcface.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, check=False)


@needs_promtool
def test_prometheus_takes_its_configuration() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_each_alert_is_raised_when_it_should_be_and_not_before() -> None:
    done = promtool("test", "rules", "alerts.test.yml")
    assert done.returncode == 0, done.stderr + done.stdout


def test_each_alert_has_a_test_in_which_it_is_raised_and_one_in_which_it_is_not() -> None:
    tests = yaml.safe_load((MONITORING / "alerts.test.yml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    names = sorted(rule["alert"] for rule in rules())
    assert sorted({check["alertname"] for check in checks if "exp_alerts" in check}) == names
    assert sorted({check["alertname"] for check in checks if "exp_alerts" not in check}) == names


def test_an_alert_names_a_chapter_of_the_operations_guide() -> None:
    root = MONITORING.parents[1]
    for rule in rules():
        page, _, chapter = rule["annotations"]["runbook"].partition("#")
        titles = re.findall(r"^#+ (.+)$", (root / page).read_text(), re.MULTILINE)
        assert chapter in {title.lower().replace(" ", "-") for title in titles}


class Prometheus:
    """Debian's Prometheus on this machine, asked every second."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        assert [job["job_name"] for job in config["scrape_configs"]] == list(targets)
        config["scrape_configs"] = [
            {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
        ]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        flags = [
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:0",
        ]
        self._process = subprocess.Popen(
            ["prometheus", *flags], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(lines,))
        self._reader.start()
        wait_until(lambda: any("Server is ready" in line for line in lines))
        self._url = next(found[0] for line in lines if (found := re.findall(r"127\.0\.0\.1:[1-9]\d*", line)))

    def _read(self, lines: list[str]) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as log:
            lines.extend(log)

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def query(self, text: str) -> list[dict[str, Any]]:
        parameters = urllib.parse.urlencode({"query": text})
        with urllib.request.urlopen(f"http://{self._url}/api/v1/query?{parameters}") as answer:
            return list(json.load(answer)["data"]["result"])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a server and a pipeline for some seconds, of which one call fell back."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    crops = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), np.uint8)
    registry = prometheus_client.CollectorRegistry()
    flags = ["--metrics-config=summary_latencies=true", "--model-control-mode=explicit", "--load-model=*"]
    with ExitStack() as stack:
        server = stack.enter_context(
            LocalTriton(write_siblings(folder / "models"), flags=flags, stop_timeout_s=1)
        )
        exporter, _ = prometheus_client.start_http_server(0, "127.0.0.1", registry)
        stack.callback(exporter.server_close)
        stack.callback(exporter.shutdown)
        urls = {
            "triton": server.metrics_url.split("/")[2],
            "arcface-client": f"127.0.0.1:{exporter.server_port}",
        }
        prometheus = stack.enter_context(Prometheus(folder, urls))
        embedder = stack.enter_context(
            get_embedding_backend(
                "triton",
                triton_url=server.grpc_url,
                embedding_model="tiny",
                embedding_model_repository=folder / "models",
                triton_shadow_rate=1,
                registry=registry,
            )
        )
        embedder.ensure_ready()
        wait_until(lambda: len(prometheus.query("up == 1")) == len(urls))
        load(embedder, crops)
        with pytest.raises(DeadlineExceededError):
            embedder.encode(crops, timeout_s=1e-4)
        control(server, "unload", "tiny_trt")
        load(embedder, crops)
        control(server, "load", "tiny_trt")
        load(embedder, crops)
        yield prometheus


def load(embedder: EmbeddingBackend, crops: Crops) -> None:
    end = time.monotonic() + 4
    while time.monotonic() < end:
        embedder.encode(crops)


def control(server: LocalTriton, what: str, model: str) -> None:
    url = f"http://{server.http_url}/v2/repository/models/{model}/{what}"
    with urllib.request.urlopen(urllib.request.Request(url, b"{}", method="POST")):
        pass


@pytest.mark.faults
@pytest.mark.parametrize(("title", "query"), queries())
def test_a_query_of_the_dashboard_finds_figures_of_a_server_under_load(
    prometheus: Prometheus, title: str, query: str
) -> None:
    if GPU in query:
        pytest.skip("needs an NVIDIA GPU")
    found = prometheus.query(query.replace("$__rate_interval", INTERVAL))
    values = [float(series["value"][1]) for series in found]
    assert [value for value in values if value == value], title


@pytest.mark.faults
def test_the_metric_of_the_autoscaler_is_found(prometheus: Prometheus) -> None:
    values = yaml.safe_load((MONITORING.parent / "kubernetes/prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    query = (
        rule["metricsQuery"].replace("<<.LabelMatchers>>", 'job="triton"').replace("<<.GroupBy>>", "instance")
    )
    (series,) = prometheus.query(query.replace("[2m]", f"[{INTERVAL}]"))
    assert 0 < float(series["value"][1]) < 1
    (autoscaler,) = (MONITORING.parent / "kubernetes/base").glob("autoscaler.yaml")
    assert f"name: {rule['name']['as']} " in autoscaler.read_text()


@pytest.mark.faults
def test_an_alert_is_seen_by_prometheus_itself(prometheus: Prometheus) -> None:
    names = {series["metric"]["alertname"] for series in prometheus.query("max_over_time(ALERTS[1m])")}
    assert "ArcfaceModelUnavailable" in names  # it was pending while the plan was unloaded
