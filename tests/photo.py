"""Aligned crops of a real photograph: the one with six faces that InsightFace's wheel carries."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import insightface
import numpy as np
from insightface.utils import face_align

from arcface_client.contract import Crops

# Left eye, right eye, nose, left and right corner of the mouth, in pixels (x, y); the wheel has no detector.
LANDMARKS = (
    ((85, 331), (133, 306), (116, 338), (118, 373), (147, 355)),
    ((291, 212), (326, 192), (311, 221), (316, 250), (341, 237)),
    ((491, 316), (547, 329), (512, 353), (485, 376), (534, 389)),
    ((770, 396), (823, 401), (789, 424), (765, 441), (809, 448)),
    ((921, 119), (968, 113), (934, 150), (936, 180), (973, 173)),
    ((1148, 323), (1201, 322), (1171, 346), (1152, 368), (1196, 370)),
)


def photo_crops() -> Crops:
    """Six real faces: uint8 [6, 112, 112, 3], BGR."""
    path = Path(insightface.__file__).parent / "data/images/t1.jpg"
    image = cv2.imread(str(path))
    with warnings.catch_warnings():
        # InsightFace calls a function of scikit-image that is on its way out.
        warnings.simplefilter("ignore", FutureWarning)
        return np.stack([face_align.norm_crop(image, np.array(points, np.float32)) for points in LANDMARKS])
