"""``arcface-client compare``: are several models the same, and how fast is each?"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from .bars import stages
from .commandline import DONE, FAILED
from .connecting import add_connection_flags, settings_from
from .output import check_output, replace_text

_DESCRIPTION: Final = """\
Compare ways of embedding on the same crops: models of a Triton server, ONNX files in this process, and
InsightFace itself as the reference. The first one is the baseline (the reference, if there is one). Without
models, every ready version of the settings' model is compared: {name}_onnx and {name}_trt.
"""

_EPILOG: Final = """\
examples:
  arcface-client compare --n-samples 100
  arcface-client compare arcface_r100_onnx:1 arcface_r100_trt:1 --images crops/ --report out.html
  arcface-client compare --reference glintr100.onnx arcface_r100_trt:2 --pairs lfw.bin --json

exit codes: 0 passed, 1 failed or inconclusive (a negative control was not seen), 2 wrong usage
"""

_DEFAULT_THRESHOLD: Final = 0.3


def add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    compare = commands.add_parser(
        "compare",
        help="compare models with each other, or with InsightFace",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a model of the server, NAME or NAME:VERSION, or an ONNX file",
    )
    compare.add_argument(
        "--models", nargs="+", dest="more_models", default=[], metavar="MODEL", help="the same, as a flag"
    )
    compare.add_argument(
        "--reference",
        metavar="FILE",
        help="the source model's ONNX file, or the name of an InsightFace pack, run by InsightFace",
    )
    compare.add_argument(
        "--control-model",
        action="append",
        default=[],
        metavar="MODEL",
        help="a model of another source, which the comparison must tell apart; may be repeated",
    )
    samples = compare.add_argument_group("samples")
    samples.add_argument(
        "--n-samples",
        type=_whole(least=2),
        default=100,
        metavar="N",
        help="crops to compare (default: %(default)s)",
    )
    samples.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of face crops (default: variations of drawn ones)"
    )
    samples.add_argument(
        "--resize", action="store_true", help="scale crops of another size instead of refusing them"
    )
    samples.add_argument(
        "--batch-size",
        type=_whole(least=1),
        default=32,
        metavar="N",
        help="crops in a batch (default: %(default)s)",
    )
    judging = compare.add_argument_group("tolerance and verification")
    judging.add_argument(
        "--max-drift-cosine",
        type=_number(0, 2),
        metavar="DRIFT",
        help="largest cosine distance that passes (default: validation.max_drift_cosine)",
    )
    judging.add_argument(
        "--threshold",
        type=_number(-1, 1),
        default=_DEFAULT_THRESHOLD,
        metavar="COSINE",
        help="similarity from which two crops are one person (default: %(default)s)",
    )
    judging.add_argument(
        "--pairs", type=Path, metavar="FILE", help="verification set of InsightFace's, such as lfw.bin"
    )
    judging.add_argument(
        "--mirrored",
        action="store_true",
        help="with --pairs: add the mirrored crop's embedding, as InsightFace's verification.py does",
    )
    output = compare.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print a JSON object")
    output.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page that stands alone")
    server = compare.add_argument_group("server")
    add_connection_flags(server)
    compare.set_defaults(run=partial(_compare, compare))


def _compare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    specs = [*arguments.models, *arguments.more_models]
    if len(specs) == 1 and arguments.reference is None:
        parser.error(f"{specs[0]} is compared with nothing; name a second model, or --reference FILE")
    from ..evaluation.comparison import Options, compare  # brings gRPC, for which `--help` need not wait

    if arguments.report is not None:
        from ..evaluation.page import check_extra, to_html

        check_extra()
        check_output(arguments.report)
    settings = settings_from(arguments, **{"validation.max_drift_cosine": arguments.max_drift_cosine})
    options = Options(
        models=specs,
        reference=arguments.reference,
        control_models=arguments.control_model,
        images=arguments.images,
        n_samples=arguments.n_samples,
        resize=arguments.resize,
        batch_size=arguments.batch_size,
        threshold=arguments.threshold,
        pairs=arguments.pairs,
        mirrored=arguments.mirrored,
        command=arguments.command_line,
    )
    with stages("compare") as progress:
        report = compare(options, settings, progress)
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report.to_text())
    if arguments.report is not None:
        replace_text(arguments.report, to_html(report))
    return DONE if report.passed else FAILED


def _whole(*, least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return int(text)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:  # NaN is not, either
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
        return number

    return parse
