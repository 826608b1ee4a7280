"""Pretrained networks: which ones there are, where their weights come from, and the features they see."""
