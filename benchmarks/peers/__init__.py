"""Comparisons with other libraries on the same examples."""
