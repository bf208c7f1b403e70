"""Moved to ``metrics``."""

from .metrics import Meter as Meter
