"""Measurements behind every number in the documentation; each prints what it measured."""
