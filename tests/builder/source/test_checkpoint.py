from __future__ import annotations

import hashlib
import pickle
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from arcface_builder.build import build
from arcface_builder.errors import CheckpointError
from arcface_builder.source.checkpoint import depth_of, read_checkpoint
from arcface_builder.source.iresnet import BLOCKS, parameter_shapes
from arcface_builder.source.load import Checkpoint, Synthetic
from arcface_builder.source.synthetic import synthetic_weights
from arcface_client.errors import MissingExtraError

StateDict = dict[str, npt.NDArray[np.float32]]


def random_weights(depth: str, *, embedding_dim: int = 512) -> StateDict:
    """Weights that fit the names of a network, and nothing more."""
    random = np.random.RandomState(0)
    shapes = parameter_shapes(depth, embedding_dim)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(state: StateDict, folder: Path) -> Checkpoint:
    path = folder / "backbone.safetensors"
    save_file(state, path)
    return Checkpoint(path)


@pytest.mark.usefixtures("thin")
def test_a_state_dict_gives_the_network_that_it_came_from(tmp_path: Path) -> None:
    r18 = Synthetic("r18").load()
    state = synthetic_weights("r18", seed=0)

    source = saved({**state, "bn1.num_batches_tracked": np.array(7, np.float32)}, tmp_path).load()

    assert source.origin.depth == "r18"
    assert source.origin.name == "backbone.safetensors"
    assert list(source.proto.graph.node) == list(r18.proto.graph.node)
    assert list(source.proto.graph.initializer) == list(r18.proto.graph.initializer)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "state_dict.model.backbone."])
def test_the_network_is_found_among_other_weights_whatever_stands_before_its_names(
    prefix: str, tmp_path: Path
) -> None:
    state = random_weights("r18")
    others = {"fc.weight": np.ones((9, 512), np.float32), "optimizer.0.exp_avg": np.ones(3, np.float32)}

    depth, read = read_checkpoint(
        saved({**others, **{f"{prefix}{name}": array for name, array in state.items()}}, tmp_path).path
    )

    assert depth == "r18"
    assert read.keys() == state.keys()
    assert all(np.array_equal(read[name], state[name]) for name in state)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_of_16_bits_become_float32(dtype: type, tmp_path: Path) -> None:
    state: StateDict = {name: array.astype(dtype) for name, array in random_weights("r18").items()}

    _, read = read_checkpoint(saved(state, tmp_path).path)

    assert all(array.dtype == np.float32 for array in read.values())
    assert np.array_equal(read["conv1.weight"], state["conv1.weight"].astype(np.float32))


@pytest.mark.usefixtures("thin")
def test_an_embedding_has_as_many_numbers_as_the_checkpoint_says(tmp_path: Path) -> None:
    source = saved(random_weights("r34", embedding_dim=256), tmp_path).load()

    assert source.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 256


@pytest.mark.usefixtures("thin")
def test_two_networks_in_one_file_are_both_named(tmp_path: Path) -> None:
    state = random_weights("r18")
    both = {f"{which}.{name}": array for which in ("model", "ema") for name, array in state.items()}

    with pytest.raises(CheckpointError, match=r"holds 2 networks \((model\., ema\.|ema\., model\.)\); save"):
        saved(both, tmp_path).load()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("state_dict_backbone.conv_sep.layers.0.weight", r"arcface_torch's MobileFaceNet \(mbf\)"),
        ("module.patch_embed.proj.weight", r"a vision transformer \(ViT\)"),
        ("model.input_layer.0.weight", r"an IR network \(AdaFace, CVLFace, face\.evoLVe\)"),
        ("layer1.0.conv1.weight", "a ResNet without PReLU"),
        ("stages.0.weight", r"a network that is not known here \(stages\.0\.weight\)"),
    ],
)
def test_another_network_is_named_with_the_way_over_onnx(name: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"holds {found}, and only .* torch.onnx.export.* --onnx-path=network.onnx"
    ):
        saved({name: np.ones((1, 1, 1, 1), np.float32)}, tmp_path).load()


@pytest.mark.usefixtures("thin")
def test_a_checkpoint_is_built_and_compared_with_its_source(tmp_path: Path) -> None:
    checkpoint = saved(synthetic_weights("r18", seed=0), tmp_path)

    built = build(checkpoint, name="m", repository=tmp_path / "models")

    assert built.manifest.source.sha256 == hashlib.sha256(checkpoint.path.read_bytes()).hexdigest()
    assert (built.manifest.source.kind, built.manifest.source.synthetic) == ("checkpoint", False)
    assert built.manifest.compared_with == "source file"


@pytest.mark.parametrize("depth", BLOCKS)
def test_the_depth_is_found_by_the_names(depth: str) -> None:
    assert depth_of(parameter_shapes(depth)) == depth


def test_an_unknown_depth_is_refused() -> None:
    names = dict.fromkeys(name for name in parameter_shapes("r50") if not name.startswith("layer3.13."))

    with pytest.raises(CheckpointError, match=r"has \[3, 4, 13, 3\] residual blocks .* r50 \[3, 4, 14, 3\]"):
        depth_of(names)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"fc.weight": None, "fc.bias": None},
            r"not a state dict of an IResNet r18: fc\.weight \(missing; expected \(512, 3136\)\), fc",
        ),
        ({"head.kernel": np.zeros(1, np.float32)}, r"head\.kernel \(\(1,\); expected no such parameter\)"),
        (
            {"conv1.weight": np.zeros((8, 1, 3, 3), np.float32)},
            r"conv1\.weight \(\(8, 1, 3, 3\); expected \(8, 3, 3, 3\)\)",
        ),
        ({"fc.bias": np.full(512, np.nan, np.float32)}, r"NaN or infinite values in fc\.bias"),
    ],
    ids=["missing", "unknown", "wrong shape", "not a number"],
)
def test_parameters_that_do_not_fit_are_named(
    changes: dict[str, npt.NDArray[np.float32] | None], message: str, tmp_path: Path
) -> None:
    state = random_weights("r18")
    changed = {name: array for name, array in {**state, **changes}.items() if array is not None}

    with pytest.raises(CheckpointError, match=message):
        saved(changed, tmp_path).load()


@pytest.mark.usefixtures("thin")
def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(random_weights("r18"), tmp_path)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-1000])

    with pytest.raises(CheckpointError, match="is cut short"):
        checkpoint.load()
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        Checkpoint(tmp_path / "nothing.pth").load()


class Harm:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path, trace = tmp_path / "backbone.pth", tmp_path / "harm"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("backbone/data.pkl", pickle.dumps(Harm(trace), protocol=2))
        archive.writestr("backbone/version", "3\n")

    with pytest.raises(CheckpointError, match="nothing in it was run"):
        Checkpoint(path).load()

    assert not trace.exists()


def test_without_torch_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backbone.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtraError, match=r"package torch: pip install 'arcface-triton\[torch\]'"):
        Checkpoint(tmp_path / "backbone.pth").load()
