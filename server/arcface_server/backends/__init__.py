"""Python-based Triton backends: for each backend a folder with its ``model.py``, named as Triton names it."""
