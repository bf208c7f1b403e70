"""Moved to ``embed_request``."""

from .embed_request import Deadline as Deadline
