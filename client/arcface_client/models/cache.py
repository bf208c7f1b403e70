"""Moved to ``files``."""

from .files import cache_folder as cache_folder
