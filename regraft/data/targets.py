"""Targets: what an example is to be answered with, from the cell of a table or the name of a folder."""

import unicodedata


class UnusableTarget(Exception):
    """The cell or folder name is no target; the message says why, in words that fit after an example's name."""


def class_name(text: str) -> str:
    """Return the class that `text` names: trimmed, with its accents composed (NFC).

    File systems and editors differ in how they spell an é.

    Raises:
        UnusableTarget: If nothing is left, or it has a line break in it.
    """
    name = unicodedata.normalize("NFC", text.strip())
    if not name:
        raise UnusableTarget("has no label")
    if len(name.splitlines()) > 1:
        raise UnusableTarget("has a line break in its label")
    return name
