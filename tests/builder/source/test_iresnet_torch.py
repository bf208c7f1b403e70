"""Against PyTorch: the network as arcface_torch defines it, written out plainly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcface_builder.check.crops import noise
from arcface_builder.errors import CheckpointError
from arcface_builder.graph.edit import session
from arcface_builder.source.iresnet import BLOCKS
from arcface_builder.source.load import Checkpoint
from arcface_builder.source.reference import ReferenceEmbedder
from photograph import face_crops

torch = pytest.importorskip("torch")
iresnet_torch = pytest.importorskip("iresnet_torch")


@pytest.mark.parametrize("depth", ["r18", "r50"])
def test_a_state_dict_gives_pytorchs_embeddings(depth: str, tmp_path: Path) -> None:
    network = iresnet_torch.iresnet(BLOCKS[depth])
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    source = Checkpoint(tmp_path / "backbone.pth").load()
    crops = np.concatenate([face_crops(), noise(2)])

    with torch.no_grad():
        raw = network(torch.from_numpy(source.caller.apply(crops))).numpy()

    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(ReferenceEmbedder(source).embed(crops), expected, rtol=0, atol=1e-5)
    served = source.serving_graph().SerializeToString()
    (embeddings,) = session(served).run(None, {"image": crops})
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_a_training_state_or_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "state_dict_backbone": {}}, path)
    with pytest.raises(CheckpointError, match="holds no plain state dict"):
        Checkpoint(path).load()

    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is cut short"):
        Checkpoint(path).load()
