"""From a source somebody names to labelled, split, checked examples on disk."""
