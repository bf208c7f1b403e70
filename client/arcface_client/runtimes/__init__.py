"""Ways to run a serving graph in this process: one module each, all with the contract of ``base.Runtime``."""
