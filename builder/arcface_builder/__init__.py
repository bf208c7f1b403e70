"""ArcFace models in, a proven Triton model repository out."""
