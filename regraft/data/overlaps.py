"""Known overlaps: data sets whose examples are among those a backbone was trained on.

Only what the makers of a data set say themselves is listed; that a pair is not here proves nothing.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """A target whose examples, wholly or in part, belong to a source."""

    target: str
    source: str
    why: str


_IMAGENET, _WIKIPEDIA, _BOOKS, _PAIRS = "imagenet", "wikipedia", "bookcorpus", "sentencetransformers"
OVERLAPS = (
    Overlap("stanforddogs", _IMAGENET, "its photos were taken from ImageNet (Khosla et al., 2011)"),
    Overlap("imagenette", _IMAGENET, "it is a part of ImageNet"),
    Overlap("imagewoof", _IMAGENET, "it is a part of ImageNet"),
    Overlap("tinyimagenet", _IMAGENET, "it is a part of ImageNet, scaled down"),
    Overlap("imagenet", _IMAGENET, "it is ImageNet, or a part or a variant of it"),
    Overlap("cub200", _IMAGENET, "its authors warn that its photos overlap with ImageNet (Wah et al., 2011)"),
    Overlap("caltechbirds", _IMAGENET, "its authors warn that its photos overlap with ImageNet (Wah et al., 2011)"),
    Overlap("wikipedia", _WIKIPEDIA, "it is Wikipedia"),
    Overlap("wiki40b", _WIKIPEDIA, "it was taken from Wikipedia"),
    Overlap("wikitext", _WIKIPEDIA, "it was taken from Wikipedia"),
    Overlap("dbpedia", _WIKIPEDIA, "its texts are the beginnings of Wikipedia's articles"),
    Overlap("squad", _WIKIPEDIA, "its paragraphs were taken from Wikipedia (Rajpurkar et al., 2016)"),
    Overlap("bookcorpus", _BOOKS, "it is BookCorpus"),
    Overlap("snli", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("multinli", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("qqp", _PAIRS, "its pairs, Quora's, are among those that were trained on"),
    Overlap("mnli", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("quora", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("yahooanswers", _PAIRS, "its questions and answers are among those that were trained on"),
    Overlap("msmarco", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("naturalquestions", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("triviaqa", _PAIRS, "its pairs are among those that were trained on"),
    Overlap("openwebtext", "webtext", "it was gathered from the same links as WebText"),
)


def targets_within(trained_on: str) -> tuple[str, ...]:
    """Return the targets known to overlap with what a backbone was trained on, by plain names."""
    return tuple(overlap.target for overlap in OVERLAPS if overlap.source in _plain(trained_on))


def known_overlap(source: str, trained_on: str) -> str | None:
    """Return a warning if the data set that `source` names is known to overlap with what a backbone was trained on.

    Names are compared without case and punctuation: the name in `tfds:NAME`, or any part of a path.

    Args:
        source: As in `download.source`.
        trained_on: `source_dataset` of the catalogue.
    """
    parts = [_plain(part) for part in re.split(r"[/\\:]", source.partition(":")[2])]
    for overlap in OVERLAPS:
        if overlap.source in _plain(trained_on) and any(part.startswith(overlap.target) for part in parts):
            return (
                f"The backbone was trained on {trained_on}, with which the source {source!r} overlaps, going by its "
                f"name: {overlap.why}. It may have seen test examples already, so the score may be too good."
            )
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
