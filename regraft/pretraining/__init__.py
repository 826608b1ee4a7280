"""Pretraining: a backbone learns from labelled or unlabelled data before it meets the project's own."""
