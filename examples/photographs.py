"""Embed every face in a folder of photographs: detect, align, embed, write an .npz.

::

    python examples/photographs.py PHOTOGRAPHS faces.npz --pack ~/.insightface/models/buffalo_l

Detection and alignment are InsightFace's. Its packs are not part of the wheel, and are for non-commercial
research unless you have a licence for them. ``np.load("faces.npz")`` has ``embeddings``, float32 [N, D],
``paths``, the photograph of each face, and ``boxes``, its place there as x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from insightface.utils.face_align import norm_crop

from arcface_client import EmbeddingBackend, get_embedding_backend
from arcface_client.contract import CROP_SIZE
from arcface_client.errors import ArcFaceError

PACK = Path("~/.insightface/models/buffalo_l")
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}

Detect = Callable[[Any], Iterable[Any]]
"""Faces of a BGR image, each with ``bbox`` (4 numbers) and ``kps`` (5 points)."""


def main() -> int:
    """Run the example and return its exit code."""
    parser = argparse.ArgumentParser(description="Embed every face in a folder of photographs.")
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("output", type=Path, help=".npz file to write")
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of an InsightFace pack")
    arguments = parser.parse_args()
    try:
        detect = detector(arguments.pack.expanduser())
        with get_embedding_backend() as backend:
            count = embed_photographs(arguments.photographs, arguments.output, detect, backend)
    except (ArcFaceError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} faces: {arguments.output}")
    return 0


def detector(pack: Path) -> Detect:
    """Load the detector of an InsightFace pack.

    Raises:
        FileNotFoundError: There is no pack in the folder.
    """
    if not any(pack.glob("*.onnx")):
        raise FileNotFoundError(
            f"There is no InsightFace pack in {pack}. Download one from "
            "https://github.com/deepinsight/insightface/releases, unpack it, and name its folder with --pack."
        )
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(str(pack), allowed_modules=["detection"])
    analysis.prepare(ctx_id=-1)  # on the CPU; 0 is the first GPU
    return analysis.get  # type: ignore[no-any-return]


def embed_photographs(folder: Path, output: Path, detect: Detect, backend: EmbeddingBackend) -> int:
    """Embed all faces of a folder's photographs, and write them.

    Returns:
        The number of faces.

    Raises:
        FileNotFoundError: There is no photograph in the folder, or no face in the photographs.
    """
    crops, paths, boxes = [], [], []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        image = cv2.imread(str(path))  # BGR
        if image is None:
            print(f"{path} is not an image; it is left out.", file=sys.stderr)
            continue
        for face in detect(image):
            crops.append(norm_crop(image, face.kps, image_size=CROP_SIZE))
            paths.append(str(path))
            boxes.append(face.bbox)
    if not crops:
        raise FileNotFoundError(f"No face was found in {folder}; expected photographs with faces.")
    embeddings = backend.encode(np.stack(crops))
    np.savez(output, embeddings=embeddings, paths=np.array(paths), boxes=np.array(boxes, np.float32))
    return len(crops)


if __name__ == "__main__":
    sys.exit(main())
