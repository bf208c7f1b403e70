"""The six faces of the photograph in InsightFace's wheel, aligned for ArcFace."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import insightface
import numpy as np
from insightface.utils.face_align import norm_crop

from arcface_client.contract import CROP_SIZE, Crops

# Usually a detector gives these points; see photographs.py. InsightFace's wheel has no detector weights, so
# they were marked by hand: for each face, left to right, its eyes, nose and mouth corners (left in the
# image first), in pixels.
LANDMARKS = np.array(
    [
        [(87.4, 328.3), (130.7, 308.3), (120.3, 345.0), (114.3, 370.5), (148.0, 351.0)],
        [(291.6, 211.8), (320.0, 194.7), (310.5, 230.6), (315.0, 243.8), (341.9, 233.0)],
        [(493.1, 320.2), (538.9, 332.2), (507.5, 365.0), (482.6, 367.0), (540.4, 377.7)],
        [(761.5, 396.9), (803.4, 402.9), (780.4, 429.2), (769.9, 440.6), (808.2, 442.7)],
        [(913.2, 116.3), (945.5, 115.7), (928.2, 149.2), (933.6, 167.2), (959.0, 169.6)],
        [(1149.4, 325.9), (1194.9, 324.1), (1170.4, 350.7), (1153.6, 367.2), (1197.3, 364.8)],
    ],
    np.float32,
)


PHOTOGRAPH = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"


def face_crops() -> Crops:
    """Cut and align the faces: uint8 [6, 112, 112, 3], BGR."""
    image = cv2.imread(str(PHOTOGRAPH))
    with warnings.catch_warnings():
        # InsightFace calls a function that the newest scikit-image deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        return np.stack([norm_crop(image, points, image_size=CROP_SIZE) for points in LANDMARKS])
