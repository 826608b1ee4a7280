"""The table of `regraft backbones`: what there is for some kind of data, and what of it needs no network here."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.backbones import catalogue
from regraft.backbones.catalogue import PRESET, Entry
from regraft.backbones.weights import CARD
from regraft.files import read_object


@dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        name: For `backbone.name`.
        kind: "image" (also for recordings) or "text".
        parameters: Of the network without any head.
        flops: Operations of one example, see `arithmetic.operations`; 0 if they were not counted.
        takes: Of images the side it was trained at, of texts how long they may be.
        source_dataset: What it was trained on.
        licence: Of the weights.
        at_hand: How it can be had without a network; None if it cannot.
        needs: What it needs then.
        overlaps: Data sets known to be drawn from what it was trained on.
    """

    name: str
    kind: str
    parameters: int
    flops: int
    takes: str
    source_dataset: str
    licence: str
    at_hand: str | None
    needs: str | None
    overlaps: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        return asdict(self)


def rows(
    backbones: Path, root: Path, *, kind: str | None = None, most: int | None = None, at_hand_only: bool = False
) -> list[Row]:
    """Return the catalogue, what this user added, and what was pretrained in a project.

    Args:
        backbones: The folder of the project's backbone; may not exist.
        root: Of the project.
        kind: Of data: "image", "text" or "audio"; None for all.
        most: Parameters at most; None for any number.
        at_hand_only: Leave out what needs a network.
    """
    found = [_row(entry, catalogue.how_at_hand(entry)) for entry in catalogue.known().values()]
    for card in sorted(backbones.glob(f"*/{CARD}")):
        facts = read_object(card)
        if facts.get("pretraining"):
            name = f"{PRESET}{card.parent.relative_to(root).as_posix()}"
            found.append(_row(catalogue.entry_of(name, facts, card), "pretrained here"))
    return [
        row
        for row in found
        if (kind is None or row.kind == catalogue.backbone_kind(kind))
        and (most is None or row.parameters <= most)
        and (row.at_hand or not at_hand_only)
    ]


def _row(entry: Entry, at_hand: str | None) -> Row:
    fixed = "only " if entry.is_fixed_size else ""
    takes = f"{fixed}{entry.input_size_px} px" if entry.kind == "image" else f"{entry.input_tokens} tokens"
    return Row(
        name=entry.name,
        kind=entry.kind,
        parameters=entry.parameters,
        flops=entry.flops,
        takes=takes,
        source_dataset=entry.source_dataset,
        licence=entry.licence,
        at_hand=at_hand,
        needs=None if at_hand else catalogue.needs(entry),
        overlaps=entry.overlaps,
    )
