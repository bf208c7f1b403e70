"""Several processes that put plans into one repository, one of which is killed."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from arcface_builder.repository.publish import ModelRepository
from arcface_builder.repository.publish_plan import add_plan
from arcface_builder.store import describe_plan
from support import children
from support.engines import stored_plan

ADD = """
import signal
import sys
from pathlib import Path
from arcface_builder.repository import publish_plan as repository
from arcface_builder.repository.publish import ModelRepository
from support.engines import stored_plan

def stop(*arguments, **more):
    print("in the middle", flush=True)
    signal.pause()

folder, sm, fate = sys.argv[1:]
if fate == "killed":
    repository._place = stop  # its record is there, and its plan is not
plan = stored_plan(Path(folder), sm)
print("begins", flush=True)
repository.add_plan(ModelRepository(Path(folder) / "models"), plan, version=1)
"""

CAPABILITIES = {"75": "7.5", "80": "8.0", "86": "8.6", "90": "9.0"}


def check_whole(root: Path, sms: list[str]) -> None:
    """Check that the repository names the plans for these architectures alone, and has what it names."""
    text = (root / "m_trt/config.pbtxt").read_text()
    names = dict(text_format.Parse(text, model_config_pb2.ModelConfig()).cc_model_filenames)
    assert names == {CAPABILITIES[sm]: f"m-fp16-sm{sm}.plan" for sm in sms}
    assert sorted(path.name for path in (root / "m_trt/1").iterdir()) == sorted(names.values())
    for sm in sms:
        record = json.loads((root / f"m_trt-1-sm{sm}.manifest.json").read_text())
        assert record["plan_sha256"] == describe_plan(root / f"m_trt/1/m-fp16-sm{sm}.plan")["plan_sha256"]
    assert not list(root.parent.glob(".models-staging-*"))


def test_the_others_go_on_where_one_is_killed_with_the_lock(tmp_path: Path) -> None:
    with ExitStack() as stack:
        killed = stack.enter_context(children.start(ADD, tmp_path, "75", "killed"))
        stack.callback(killed.kill)
        assert killed.stdout is not None
        assert [killed.stdout.readline() for _ in range(2)] == ["begins\n", "in the middle\n"]
        others = [stack.enter_context(children.start(ADD, tmp_path, sm, "ends")) for sm in ("80", "86", "90")]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "begins\n"
        killed.kill()
        assert [other.wait(30) for other in others] == [0] * 3

    check_whole(tmp_path / "models", ["80", "86", "90"])
    add_plan(ModelRepository(tmp_path / "models"), stored_plan(tmp_path, "75"), version=1)
    check_whole(tmp_path / "models", ["75", "80", "86", "90"])
