"""TensorRT: building, versions, GPUs, inspection of plans."""
