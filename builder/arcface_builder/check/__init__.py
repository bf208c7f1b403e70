"""Checks: crops, accuracy reports, negative controls."""
