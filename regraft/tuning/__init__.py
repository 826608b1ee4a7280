"""Grafting a head on a backbone: solve it on cached features, then train both a little."""
