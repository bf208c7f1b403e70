"""Moved to ``limits``."""

from .limits import Tls as Tls
