"""The sub-commands of ``arcface-client``, one module each."""
