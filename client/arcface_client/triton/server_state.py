"""Moved to ``status``."""

from .status import ModelStatus as ModelStatus
from .status import ServerStatus as ServerStatus
