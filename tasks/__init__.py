"""The stages of the graph, one module each; `python -m tasks STAGE` runs one in the project of the current folder."""
