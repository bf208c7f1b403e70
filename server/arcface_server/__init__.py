"""A real Triton Inference Server for machines without its container."""
