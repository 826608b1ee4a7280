"""Which backbone suits a task: evidence from its frozen features, before anything is trained."""
