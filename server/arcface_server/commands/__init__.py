"""The commands of ``arcface-server``, one module each."""
