from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from arcface_client.contract import INPUT_NAME, Crops
from arcface_client.errors import DeploymentError
from arcface_client.runtimes import base
from arcface_client.runtimes.base import usable_cores
from arcface_client.runtimes.onnxruntime import OnnxRuntime, open_on


def test_embeddings_are_float32_rows_of_length_one(model: Path, crops: Crops) -> None:
    runtime = OnnxRuntime(model)
    embeddings = runtime.embed(crops)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    runtime.close()


def test_a_provider_that_cannot_run_the_model_is_a_deployment_error(model: Path) -> None:
    provider = "AzureExecutionProvider"  # in every build; it leaves all nodes to the CPU
    with pytest.raises(DeploymentError, match=f"on {provider}, but cannot run it: .*INVALID_ARGUMENT"):
        open_on(
            provider,
            model,
            options={},
            try_out=lambda session: session.run(None, {INPUT_NAME: np.zeros((1, 2), np.uint8)}),
        )


def test_only_cores_that_the_process_may_use_are_counted() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def cgroups(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/pod/app/cpu.max": "max 100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/of-the-host\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({}, 8),
    ],
    ids=["half a CPU", "two and a half", "none", "of the pod", "version 1", "version 1, none", "no cgroups"],
)
def test_a_cpu_quota_limits_the_cores_that_are_counted(
    files: Mapping[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups(tmp_path, files)
    monkeypatch.setattr(base, "_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    assert usable_cores() == cores
