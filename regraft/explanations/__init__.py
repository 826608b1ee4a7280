"""Why a model answers as it does: parts of the input by their weight in the answer, and how far to trust that."""
