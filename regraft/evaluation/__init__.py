"""How good a model is, how sure we are of it, and how to show that in half a minute."""
