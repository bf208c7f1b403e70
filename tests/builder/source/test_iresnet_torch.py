"""Against PyTorch: the network as arcface_torch defines it, written out plainly."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcface_builder.build import build
from arcface_builder.check.crops import noise
from arcface_builder.errors import CheckpointError
from arcface_builder.graph.edit import session
from arcface_builder.source.checkpoint import read_checkpoint
from arcface_builder.source.iresnet import BLOCKS
from arcface_builder.source.load import Checkpoint, OnnxFile
from arcface_client.models.normalisation import PYTORCH
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
    np.testing.assert_allclose(source.embed(crops), expected, rtol=0, atol=1e-5)
    served = source.serving_graph().SerializeToString()
    (embeddings,) = session(served).run(None, {"image": crops})
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


Layout = Callable[[Any], dict[str, Any]]


def of_arcface_torch(network: Any) -> dict[str, Any]:
    """checkpoint_gpu_0.pt, with the state of everything that trains."""
    head = torch.nn.Linear(512, 10)
    optimiser = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    return {
        "epoch": 3,
        "global_step": 1000,
        "state_dict_backbone": network.state_dict(),
        "state_dict_softmax_fc": head.state_dict(),
        "state_optimizer": optimiser.state_dict(),
        "state_lr_scheduler": torch.optim.lr_scheduler.PolynomialLR(optimiser).state_dict(),
    }


def of_magface(network: Any) -> dict[str, Any]:
    state = {f"features.module.{name}": tensor for name, tensor in network.state_dict().items()}
    return {"epoch": 25, "arch": "iresnet18", "state_dict": {"fc.weight": torch.ones(512, 10), **state}}


def of_lightning(network: Any) -> dict[str, Any]:
    compiled = {f"model._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}
    return {"epoch": 1, "state_dict": compiled, "hyper_parameters": {"lr": 0.1}}


@pytest.mark.parametrize("layout", [of_arcface_torch, of_magface, of_lightning])
def test_the_network_is_found_in_what_training_frameworks_save(layout: Layout, tmp_path: Path) -> None:
    network = iresnet_torch.iresnet(BLOCKS["r18"])
    torch.save(layout(network), tmp_path / "checkpoint.pt")

    depth, state = read_checkpoint(tmp_path / "checkpoint.pt")

    assert depth == "r18"
    assert all(np.array_equal(array, network.state_dict()[name]) for name, array in state.items())


def test_a_checkpoint_without_weights_or_a_truncated_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "state_dict_backbone": {}}, path)
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint(path).load()

    for content in (path.read_bytes()[:-200], b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is cut short"):
            Checkpoint(path).load()


def whole_network(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


@pytest.mark.parametrize("save", [whole_network, torchscript])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_that_is_a_program_is_not_run(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "network.pt")

    with pytest.raises(CheckpointError, match="nothing in it was run"):
        Checkpoint(tmp_path / "network.pt").load()


class Mbf(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A network with the names and the structure of arcface_torch's MobileFaceNet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 8, 3, 8, 1), torch.nn.PReLU(8)])
        self.conv_sep = torch.nn.Sequential()
        self.conv_sep.layers = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1), torch.nn.PReLU(16))
        self.features = torch.nn.Sequential(torch.nn.Linear(16 * 14 * 14, 512), torch.nn.BatchNorm1d(512))

    def forward(self, x: Any) -> Any:
        with torch.autocast("cuda", enabled=False):
            for layer in self.layers:
                x = layer(x)
        x = self.conv_sep(x)
        return self.features(x.view(x.size(0), -1))


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_the_way_over_onnx_that_the_message_names_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    network = Mbf().eval()
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"MobileFaceNet \(mbf\)") as error:
        Checkpoint(tmp_path / "backbone.pth").load()
    (command,) = re.findall(r"torch\.onnx\.export.*\]\)", str(error.value))

    monkeypatch.chdir(tmp_path)
    exec(command, {"torch": torch, "network": network})

    reference = OnnxFile(Path("network.onnx")).load()
    with torch.no_grad():
        raw = network(torch.from_numpy(PYTORCH.apply(face_crops()))).numpy()
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(reference.embed(face_crops()), expected, rtol=0, atol=1e-5)
    assert build(OnnxFile(Path("network.onnx")), name="m", repository=Path("models")).version == 1
