"""Runtimes that run a serving graph in this process, one module each, all with the same contract."""
