"""``arcface-client``: embed image files, look at a server and a machine, compare and measure models."""

from __future__ import annotations

from collections.abc import Sequence

from . import benchmark, compare, doctor, embed, migrate, search, status
from .terminal import examples, new_app, run

app = new_app(
    "Embed face crops through a Triton server that holds an ArcFace model repository.\n\n"
    "Settings come from the flags, then from ARCFACE_* variables, then from config/pipeline/embedding.yaml.",
    epilog=examples(
        "arcface-client status --url localhost:8001",
        "arcface-client doctor --url localhost:8001",
        "arcface-client embed crops/ --output embeddings.npz",
        "arcface-client search gallery.parquet face.jpg",
        "arcface-client compare arcface_r100_onnx arcface_r100_trt --report out.html",
        "arcface-client benchmark triton --against onnxruntime",
    ),
)
app.command(epilog=embed.EPILOG)(embed.embed)
app.command(epilog=search.EPILOG)(search.search)
app.command(epilog=migrate.EPILOG)(migrate.migrate)
app.command(epilog=status.EPILOG)(status.status)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=benchmark.EPILOG)(benchmark.benchmark)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    return run(app, "arcface-client", argv)
