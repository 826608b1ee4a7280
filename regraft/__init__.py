"""Regraft keeps transfer-learned models fresh. It knows machine learning, but neither Prefect nor DVC."""
