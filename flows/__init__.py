"""Prefect flows: they know time and order, and take what a stage is from dvc.yaml. No TensorFlow is imported here."""
