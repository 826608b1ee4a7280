"""Two texts as one: entailment, paraphrase, question and answer. A pair is stored, hashed and audited as one string."""

from collections.abc import Sequence

SEPARATOR = " ||| "
_BARS = "|||"


def join(texts: Sequence[str]) -> str:
    """Return two texts as one string; `split` takes them apart again.

    Raises:
        ValueError: If one of them holds the bars that separate them; the message goes after "its text".
    """
    if any(_BARS in text for text in texts):
        raise ValueError(f"holds {_BARS}, which separates the two texts of a pair")
    return SEPARATOR.join(texts)


def split(pair: str) -> tuple[str, str]:
    """Return the two texts of a pair.

    Raises:
        ValueError: If there are not two.
    """
    parts = [part.strip() for part in pair.split(_BARS)]
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"is not two texts with {_BARS} between them")
    return parts[0], parts[1]


def as_columns(names: Sequence[str], pairs: Sequence[str]) -> dict[str, list[str]]:
    """Return pairs as a table that a registered model takes: a column for the first texts and one for the second.

    Raises:
        ValueError: See `split`.
    """
    both = [split(pair) for pair in pairs]
    return {name: [pair[place] for pair in both] for place, name in enumerate(names)}
