"""Figures of a report, drawn for light or dark pages: numbers in, PNG bytes out, the same bytes each time."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_MATRIX_CLASSES = 20
_MATRIX_EXCERPT = 12
_BAR_CLASSES = 30
_ROOMY_CLASSES = 12
_PANELS = 4
_DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Theme:
    """Colours of a page, as #rrggbb: the same values as in report.html.j2."""

    surface: str
    ink: str
    muted: str
    line: str
    good: str
    bad: str


LIGHT = Theme(surface="#ffffff", ink="#1c2126", muted="#5f6872", line="#e2e5e9", good="#2b6cb0", bad="#c2570c")
DARK = Theme(surface="#1b1f24", ink="#e7eaee", muted="#9aa4af", line="#333a42", good="#6aa9e9", bad="#f0924c")


@dataclass(frozen=True)
class Mistake:
    """A test example the model got wrong.

    Attributes:
        name: Where the example came from.
        label: Its class; or its labels or values in words.
        predicted: The class the model chose; or the labels or values it answered.
        probability: The probability the model gave to `predicted`, in [0, 1]; None where there is no single one.
        content: Encoded image (of a recording: the picture of its sound), or text.
        why: What spoke for `predicted`: the image with heat over it, or words as `Attribution.words` has them.
    """

    name: str
    label: str
    predicted: str
    probability: float | None
    content: bytes | str
    why: bytes | list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, encoded as PNG or JPEG."""

    encoded: bytes
    longer_side_px: int


def confusion_figure(confusion: Sequence[Sequence[int]], class_names: Sequence[str], theme: Theme) -> bytes:
    """Draw the confusion matrix: rows are true classes, columns predicted ones, cells hold counts.

    Right answers and mistakes have colour scales of their own, because on a good model's common scale mistakes would be
    invisible. Of many classes, those with most mistakes are drawn.
    """
    counts = np.array(confusion)
    mistakes = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[: classes_drawn(len(counts))])
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[np.ix_(chosen, chosen)]
    counts = counts[np.ix_(chosen, chosen)]
    size = len(chosen)
    diagonal = np.eye(size, dtype=bool)
    side = 4.6 if size <= _ROOMY_CLASSES else 6.2
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(side, min(side, 1.0 + 0.7 * size)), layout="constrained")
        axes = figure.add_subplot()
        for mask, colour, highest in (
            (diagonal, theme.good, 1.0),
            (~diagonal, theme.bad, max(float(shares[~diagonal].max(initial=0.0)), 0.02)),
        ):
            scale = LinearSegmentedColormap.from_list("share", [theme.surface, colour])
            axes.imshow(np.where(mask, shares, np.nan), cmap=scale, vmin=0.0, vmax=highest)
            for row, column in np.argwhere(mask & (counts > 0)):
                is_strong = shares[row, column] > 0.55 * highest
                axes.text(
                    column,
                    row,
                    str(counts[row, column]),
                    ha="center",
                    va="center",
                    fontsize=8.5 if size <= _ROOMY_CLASSES else 6.5,
                    color=theme.surface if is_strong else theme.ink,
                )
        names = [_shorten(class_names[index], 18) for index in chosen]
        is_upright = size * max(map(len, names)) <= 32
        axes.set_xticks(
            range(size),
            names,
            rotation=0 if is_upright else 45,
            ha="center" if is_upright else "right",
            rotation_mode="anchor",
        )
        axes.set_yticks(range(size), names)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=theme.line, linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return _png(figure)


def classes_drawn(classes: int) -> int:
    """Return how many of `classes` classes the confusion matrix shows; more could not be read."""
    return classes if classes <= _MATRIX_CLASSES else _MATRIX_EXCERPT


def f1_figure(f1_by_class: Mapping[str, float], theme: Theme) -> bytes:
    """Draw the F1 of each class, lowest first; of more than _BAR_CLASSES classes, the lowest ones."""
    lowest = sorted(f1_by_class.items(), key=lambda item: item[1])[:_BAR_CLASSES]
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(4.6, 0.9 + 0.24 * len(lowest)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(lowest)), [value for _, value in lowest], color=theme.good, height=0.66)
        axes.set_yticks(range(len(lowest)), [_shorten(name, 24) for name, _ in lowest])
        axes.invert_yaxis()
        axes.set_xlim(0.0, 1.1)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
        for place, (_, value) in enumerate(lowest):
            axes.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=7, color=theme.muted)
        _bare(axes)
        axes.spines["bottom"].set_visible(False)
        axes.grid(axis="x", color=theme.line, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("F1 on the test split")
        return _png(figure)


def reliability_figure(
    rows: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] | None, theme: Theme
) -> bytes:
    """Draw how often predictions are right against how probable they were said to be; on the line, both are the same.

    Args:
        rows: Of each bin "probability" and "right", both in [0, 1], as the model ships.
        before: The same before calibration; None where there is none.
        theme: Colours.
    """
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0.0, 1.0], [0.0, 1.0], color=theme.line, linewidth=2, zorder=0)
        for bins, colour, name in ((before, theme.bad, "before calibration"), (rows, theme.good, "as it ships")):
            if bins is not None:
                places = [[bin_[axis] for bin_ in bins] for axis in ("probability", "right")]
                axes.plot(*places, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=name)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal", adjustable="box")
        axes.set_xlabel("probability that was given")
        axes.set_ylabel("share that is right")
        axes.legend(frameon=False, fontsize=7.5, labelcolor=theme.muted, loc="upper left")
        _bare(axes)
        return _png(figure)


def scatter_figure(
    truth: NDArray[np.floating], answers: NDArray[np.floating], names: Sequence[str], theme: Theme
) -> bytes:
    """Draw predicted against true values, one panel a target; a right answer lies on the line.

    Args:
        truth: Shape (N, K); of more than _PANELS targets the first are drawn.
        answers: Shape (N, K).
        names: Of the targets.
        theme: Colours.
    """
    shown = min(len(names), _PANELS)
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(4.6, 0.2 + 3.8 * shown), layout="constrained")
        for axes, place in zip(figure.subplots(shown, 1, squeeze=False)[:, 0], range(shown), strict=True):
            true, given = truth[:, place], answers[:, place]
            ends = [min(true.min(), given.min()), max(true.max(), given.max())]
            axes.plot(ends, ends, color=theme.line, linewidth=2, zorder=0)
            axes.scatter(true, given, s=9, color=theme.good, alpha=_opacity(len(true)), linewidths=0)
            axes.set_xlabel(f"true {_shorten(names[place], 30)}")
            axes.set_ylabel("predicted")
            axes.set_aspect("equal", adjustable="box")
            _bare(axes)
        return _png(figure)


def residuals_figure(
    truth: NDArray[np.floating], answers: NDArray[np.floating], names: Sequence[str], theme: Theme
) -> bytes:
    """Draw how far predictions are off against what was predicted; see `scatter_figure` for the arguments."""
    shown = min(len(names), _PANELS)
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(4.6, 0.2 + 2.2 * shown), layout="constrained")
        for axes, place in zip(figure.subplots(shown, 1, squeeze=False)[:, 0], range(shown), strict=True):
            given = answers[:, place]
            axes.axhline(0.0, color=theme.line, linewidth=2, zorder=0)
            axes.scatter(given, given - truth[:, place], s=9, color=theme.bad, alpha=_opacity(len(given)), linewidths=0)
            axes.set_xlabel(f"predicted {_shorten(names[place], 30)}")
            axes.set_ylabel("predicted minus true")
            _bare(axes)
        return _png(figure)


def _opacity(points: int) -> float:
    """Return how opaque one of many points is, so that crowds show."""
    return min(0.9, max(0.05, 150.0 / max(points, 1)))


def curves_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], *, best_epoch: int, theme: Theme) -> bytes:
    """Draw training curves, one panel above another.

    Args:
        panels: For each panel's title its curves by name: one value an epoch from epoch 0 (before training) on, NaN
            where none is known; at most two curves a panel.
        best_epoch: The epoch whose weights were kept, marked in every panel.
        theme: Colours.
    """
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(4.6, 0.5 + 1.9 * len(panels)), layout="constrained")
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
            for (name, values), colour in zip(curves.items(), (theme.good, theme.bad), strict=False):
                axes.plot(
                    range(len(values)), values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name
                )
            axes.axvline(best_epoch, color=theme.line, linewidth=6, zorder=0)
            axes.set_title(title, loc="left", fontsize=9, color=theme.ink)
            axes.legend(frameon=False, fontsize=7.5, labelcolor=theme.muted)
            axes.grid(axis="y", color=theme.line, linewidth=0.6)
            _bare(axes)
        all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
        all_axes[-1].set_xlabel("epoch (0 is the probe; the one that ships is shaded)")
        return _png(figure)


def mistakes_figure(mistakes: Sequence[Mistake], theme: Theme, *, columns: int = 4) -> bytes:
    """Draw a contact sheet of images (at least one), each with its true and predicted class."""
    rows = -(-len(mistakes) // columns)
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, mistake in zip(grid, mistakes, strict=False):
            if isinstance(mistake.content, str):
                raise TypeError("a contact sheet shows images, got a text")
            axes.imshow(Image.open(io.BytesIO(mistake.content)).convert("RGB"), interpolation="nearest")
            sure = "" if mistake.probability is None else f" {mistake.probability:.0%}"
            axes.set_title(
                f"{_shorten(mistake.label, 16)}\nread as {_shorten(mistake.predicted, 14)}{sure}",
                fontsize=7.5,
                color=theme.ink,
            )
        return _png(figure)


def thumbnail(encoded: bytes, *, side_px: int = 160) -> Thumbnail:
    """Return the image small enough for a page: its longer side at most `side_px`; a smaller one keeps its pixels."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    is_small = max(image.size) <= side_px
    image.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if is_small else "JPEG", quality=82)
    return Thumbnail(buffer.getvalue(), max(image.size))


def to_jpeg(encoded: bytes) -> bytes:
    """Return the image as a JPEG file of the same size: photographs in a page need no more."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).convert("RGB").save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def to_png(pixels: np.ndarray) -> bytes:
    """Return pixels, shape (height, width, 3) with values in [0, 255], as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _style(theme: Theme) -> Any:
    """Return matplotlib's settings for `theme`."""
    return {
        "font.size": 8.5,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.line,
        "axes.facecolor": theme.surface,
        "figure.facecolor": theme.surface,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
    }


def _bare(axes: Any) -> None:
    """Take away the frame but for its lower edge, and the tick marks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


def _shorten(text: str, most: int) -> str:
    """Return `text` cut to `most` characters in its middle: names of classes often differ at the end.

    Dollar signs are escaped; two of them would make a formula.
    """
    end = most // 2
    shown = text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"
    return shown.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    """Return `figure` as PNG bytes without the name of the software that drew it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # What the font lacks (an emoji in the name of a class) is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
