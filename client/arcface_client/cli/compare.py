"""``arcface-client compare``: are several models the same, and how fast is each?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from .connection import Json, Resize, Server, Threshold
from .terminal import DONE, FAILED, checked, examples, print_json, progress, with_shared_options

if TYPE_CHECKING:
    from ..models.normalisation import Channels

EPILOG: Final = examples(
    "arcface-client compare --n-samples 100",
    "arcface-client compare arcface_r100_onnx:1 arcface_r100_trt:1 --images crops/ --report out.html",
    "arcface-client compare --reference glintr100.onnx arcface_r100_trt:2 --pairs lfw.bin --json",
    "arcface-client compare --reference adaface.onnx --color bgr adaface_onnx",
    exit_codes="0 passed, 1 failed or inconclusive (a negative control was not seen)",
)


@with_shared_options
def compare(
    server: Server,
    context: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(help="Models of the server, NAME or NAME:VERSION, and ONNX files.")
    ] = None,
    more_models: Annotated[
        list[str] | None, typer.Option("--models", metavar="MODEL", help="The same models, as a flag.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The source network's ONNX file, or the name of an InsightFace pack.",
        ),
    ] = None,
    color: Annotated[
        Literal["rgb", "bgr"] | None,
        typer.Option(
            case_sensitive=False, help="With --reference: the channel order that the network takes."
        ),
    ] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(
            help="With --reference: the normalisation that the network takes: pytorch, mxnet, imagenet, "
            "unit, raw, or MEAN,STD."
        ),
    ] = None,
    control_model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A model of another source, which the comparison must tell apart; may be repeated.",
        ),
    ] = None,
    n_samples: Annotated[int, typer.Option(min=2, help="Crops to compare.")] = 100,
    images: Annotated[
        Path | None, typer.Option(help="Folder of face crops (default: generated crops).")
    ] = None,
    resize: Resize = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops in a batch.")] = 32,
    max_drift_cosine: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Largest cosine distance that passes (default: validation.max_drift_cosine)."
        ),
    ] = None,
    threshold: Threshold = 0.3,
    pairs: Annotated[
        Path | None, typer.Option(help="Verification set of InsightFace, for example lfw.bin.")
    ] = None,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored",
            help="With --pairs: add the mirrored crop's embedding, as InsightFace's verification.py does.",
        ),
    ] = False,
    as_json: Json = False,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write an HTML page that stands alone.")
    ] = None,
) -> int:
    """Compare models with each other, or with the network that they were built from.

    All of them embed the same crops: models of a Triton server, ONNX files in this process, and the
    reference. The reference is the source network as its own users run it, by InsightFace's code where that
    takes the file. The first one is the baseline (the reference, if there is one). Without models, every
    ready version of the settings' model is compared: {name}_onnx and its siblings.
    """
    specs = [*(more_models or []), *(models or [])]
    if len(specs) == 1 and reference is None:
        raise typer.BadParameter(
            f"{specs[0]} is compared with nothing; name a second model, or give --reference FILE."
        )
    if reference is None and (color or normalisation):
        raise typer.BadParameter(
            "--color and --normalisation say what the reference takes; give --reference."
        )
    from ..evaluation import comparison  # brings gRPC, for which `--help` need not wait
    from ..models.normalisation import PYTORCH, Normalisation, Pixels
    from .output import check_output, replace_text

    pixels = None
    if color or normalisation:
        channels: Channels = "BGR" if color == "bgr" else "RGB"
        pixels = Pixels(channels, checked(Normalisation.parse)(normalisation) if normalisation else PYTORCH)

    if report is not None:
        from ..evaluation.page import check_extra, to_html

        check_extra()
        check_output(report)
    settings = server.settings(**{"validation.max_drift_cosine": max_drift_cosine})
    options = comparison.Options(
        models=specs,
        reference=reference,
        pixels=pixels,
        control_models=control_model or [],
        images=images,
        n_samples=n_samples,
        resize=resize,
        batch_size=batch_size,
        threshold=threshold,
        pairs=pairs,
        mirrored=mirrored,
        command=str(context.obj),
    )
    with progress("compare") as shown:
        result = comparison.compare(options, settings, shown)
    if as_json:
        print_json(result.to_dict())
    else:
        print(result.to_text())
    if report is not None:
        replace_text(report, to_html(result))
    return DONE if result.passed else FAILED
