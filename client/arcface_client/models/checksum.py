"""Moved to ``files``."""

from .files import sha256_of as sha256_of
