"""The stages of the graph, one module each; `python -P -m tasks STAGE` runs one in the current project."""
