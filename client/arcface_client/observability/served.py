"""Moved to ``diagnostics``."""

from .diagnostics import HERE as HERE
from .diagnostics import Refusal as Refusal
from .diagnostics import Served as Served
from .diagnostics import Source as Source
