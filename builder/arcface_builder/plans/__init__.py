"""TensorRT plans: a serving graph typed, built, inspected and proved; see ``docs/plans.md``."""
