"""Measure a server with NVIDIA's perf_analyzer and real crops."""
