"""The serving graph: wrap, fold, convert to a precision."""
