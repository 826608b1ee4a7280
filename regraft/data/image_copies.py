"""Copies of pictures: the same pixels, and the same picture saved, scaled, lit or cut otherwise.

A picture is kept as a sketch: a hash of its pixels and a thumbnail of 3 KB. Near copies are found in two steps. The
coarse shapes and colours of each thumbnail, and of crops of it, become points, and a k-d tree finds the few points
nearest to each. Only such pairs are laid over each other (scale and shift to a fraction of a pixel, gain and offset of
the light), first small and grey, then in full and in colour, and must agree to what resampling leaves.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct
from scipy.spatial import cKDTree

from regraft.data.images import to_rgb

SIDE_PX = 32  # of a thumbnail
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_FREQUENCIES = 6  # of the cosine transform, along each side
_NEIGHBOURS = 4  # compared for each picture and for each crop of it
_RADIUS = 0.12  # of the neighbourhood, where a point's distance from the origin is 1
_PAIRS_AT_ONCE = 256
_DARK, _BRIGHT = 4.0, 251.0  # beyond these a brighter or darker copy may have been clipped
_FLAT = 2.0  # standard deviation of the grey values below which a picture shows nothing to compare
# What a crop may have left of a picture: (left, top, width, height) in shares of its sides.
_CROPS = (
    (0.0, 0.0, 1.0, 1.0),
    (0.025, 0.025, 0.95, 0.95),
    (0.05, 0.05, 0.90, 0.90),
    (0.05, 0.05, 0.95, 0.95),
    (0.0, 0.05, 0.95, 0.95),
    (0.05, 0.0, 0.95, 0.95),
    (0.0, 0.0, 0.95, 0.95),
    (0.05, 0.0, 0.95, 1.0),
    (0.0, 0.0, 0.95, 1.0),
    (0.0, 0.05, 1.0, 0.95),
    (0.0, 0.0, 1.0, 0.95),
)
# Calibrated on photos with planted copies (benchmarks/audit.py): how much difference alignment may leave, as a share of
# the variance and of the mean squared gradient, at each of four stages.
_GLANCE, _COARSE, _GREY_FINE, _FINE = (0.6, 9.0), (0.25, 9.0), (9.0, 0.1), (9.0, 0.15)
# Little must be left of colour and grey together; or less of grey alone, for JPEG coarsens colour in small pictures.
_COLOUR, _GREY_ALONE = 0.035, 0.015

_MOST_STRETCH, _MOST_GAIN = 0.07, 0.22  # logarithms of ratios: a crop of 5% along one side, light changed by a fifth

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sketch:
    """What is kept of a picture: `digest` of its size and RGB pixels, and a `thumbnail` (SIDE_PX, SIDE_PX, 3)."""

    digest: bytes
    thumbnail: Pixels


def sketch(content: bytes | Path) -> Sketch:
    """Decode a picture, from its encoded bytes or the file holding them, and keep what finding copies takes.

    Raises:
        UnreadableImage: If it is no picture.
    """
    image = to_rgb(content.read_bytes() if isinstance(content, Path) else content)
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Sketch(digest.digest()[:16], np.asarray(small))


def near_copies(thumbnails: Pixels) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of pictures that are near copies, in order.

    A picture is compared with its `_NEIGHBOURS` nearest only, so of many copies of one picture not every pair need be
    there, but enough to link them. Pictures of one even colour are never near copies. Time grows as n log n.

    Args:
        thumbnails: Of different pictures, uint8, shape (N, SIDE_PX, SIDE_PX, 3).
    """
    candidates = _candidates(thumbnails)
    found: set[tuple[int, int]] = set()
    for start in range(0, len(candidates), _PAIRS_AT_ONCE):
        chunk = candidates[start : start + _PAIRS_AT_ONCE]
        agree = _agree(thumbnails[chunk[:, 0]], thumbnails[chunk[:, 1]], _STARTS[chunk[:, 2]])
        found.update((min(i, j), max(i, j)) for i, j in chunk[agree, :2].tolist())
    return sorted(found)


def _candidates(thumbnails: Pixels) -> NDArray[np.int64]:
    """Return rows (i, j, crop): picture i looks like that crop of picture j; each pair once, at its best crop."""
    grey_spread = np.concatenate([_grey(part).std(axis=(1, 2)) for part in _chunks(thumbnails)] or [np.empty(0)])
    shown = np.flatnonzero(grey_spread >= _FLAT)
    if len(shown) < 2:
        return np.empty((0, 3), np.int64)
    points = np.concatenate([_points(part) for part in _chunks(thumbnails[shown])], axis=1)
    # Pictures that fall on one point would make the tree visit them all for each of them: two of each are enough.
    order = np.lexsort(points[0].T)
    same = (np.abs(np.diff(points[0][order], axis=0)) < 1e-6).all(axis=1)
    third = np.r_[False, False, same[1:] & same[:-1]]
    indexed = order[~third]
    tree = cKDTree(points[0][indexed])
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for crop in range(len(_CROPS)):
        # Within two thirds of the radius every neighbour is seen, further out most are, at less than half the time.
        distances, places = tree.query(
            points[crop], k=_NEIGHBOURS + 1, distance_upper_bound=_RADIUS, eps=0.5, workers=-1
        )
        near = np.isfinite(distances)
        whole = np.broadcast_to(np.arange(len(shown))[:, None], places.shape)[near]
        part = indexed[places[near]]
        for distance, i, j in zip(distances[near].tolist(), part.tolist(), whole.tolist(), strict=True):
            pair = (min(i, j), max(i, j))
            if i != j and (pair not in best or distance < best[pair][0]):
                best[pair] = (distance, i, j, crop)
    rows = [(int(shown[i]), int(shown[j]), crop) for _, i, j, crop in (best[pair] for pair in sorted(best))]
    return np.array(rows, np.int64).reshape(-1, 3)


def _points(thumbnails: Pixels) -> Floats:
    """Return a point of length 1 for each crop of each picture, shape (crops, N, D).

    Its coordinates are low frequencies of brightness (without the mean, so light added counts little; gain not at all)
    and the lowest of the two colour differences.
    """
    colour = thumbnails.astype(np.float32)
    grey = colour @ _GREY
    planes = ((grey, _SHAPE), (1.13 * (colour[..., 2] - grey), _TINT), (1.43 * (colour[..., 0] - grey), _TINT))
    crops = []
    for left, top, width, height in _CROPS:
        across = _COSINES @ _reading(np.array([width]), np.array([left + width / 2 - 0.5]), SIDE_PX)[0]
        down = _COSINES @ _reading(np.array([height]), np.array([top + height / 2 - 0.5]), SIDE_PX)[0]
        parts = [(down @ plane @ across.T)[:, chosen] for plane, chosen in planes]
        point = np.concatenate(parts, axis=1)
        crops.append(point / np.maximum(np.linalg.norm(point, axis=1, keepdims=True), 1e-6))
    return np.stack(crops)


def _agree(parts: Pixels, wholes: Pixels, starts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each of `parts`, shape (P, ...), shows what `wholes` show near the crops `starts`."""
    part, whole = (_soften(_soften(pixels.astype(np.float32))) for pixels in (parts, wholes))
    grey = tuple((pixels @ _GREY)[..., None] for pixels in (part, whole))
    small = tuple(_halve(pixels) for pixels in grey)
    # From cheap to dear, each stage goes on with the pairs and the places that the one before has left.
    left = np.arange(len(parts))
    roughness = np.full(len(parts), np.inf)
    fit = _Fit.at(starts)
    for (one, other), steps, limits in (
        (small, 2, _GLANCE),
        (small, 6, _COARSE),
        (grey, 3, _GREY_FINE),
        ((part, whole), 3, _FINE),
    ):
        fit = _align(one[left], other[left], fit, steps=steps)
        good = (fit.residue < limits[0]) & (fit.roughness < limits[1])
        left, fit = left[good], fit.of(np.flatnonzero(good))
        if not len(left):
            break
        if one is grey[0]:
            roughness[left] = fit.roughness
    agree = np.zeros(len(parts), bool)
    stretch = np.abs(np.log(fit.place[:, 0] / fit.place[:, 2]))
    is_same = (fit.roughness < _COLOUR) | (roughness[left] < _GREY_ALONE)
    agree[left] = is_same & (stretch < _MOST_STRETCH) & (np.abs(np.log(fit.gain)) < _MOST_GAIN)
    return agree


@dataclass(frozen=True)
class _Fit:
    """How pictures lie over others: arrays of one value a pair.

    Attributes:
        place: Scale and shift across, scale and shift down, in shares of the side; shape (P, 4).
        gain: Factor of the light.
        offset: Light added, in grey values.
        blur: Factor of the Laplacian: a crop is sharper than its place in a thumbnail of the whole.
        residue: Mean squared difference that is left, as a share of the variance.
        roughness: The same as a share of the mean squared gradient.
    """

    place: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]
    blur: NDArray[np.float64]
    residue: NDArray[np.float64]
    roughness: NDArray[np.float64]

    @classmethod
    def at(cls, place: NDArray[np.float64]) -> "_Fit":
        count = len(place)
        none = np.full(count, np.inf)
        return cls(place, np.ones(count), np.zeros(count), np.zeros(count), none, none)

    def of(self, chosen: NDArray[np.int64]) -> "_Fit":
        return _Fit(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _align(parts: Floats, wholes: Floats, start: _Fit, *, steps: int) -> _Fit:
    """Lay `wholes` over `parts`, both (P, side, side, channels), by Gauss-Newton steps from `start`.

    Values that may have been clipped take no part in the fit and count afterwards only where they contradict it.
    Source: Lucas & Kanade, 1981, with a gain and an offset beside scale and shift.
    """
    count, side = parts.shape[:2]
    centred = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    place, gain, offset, blur = start.place, start.gain, start.offset, start.blur
    for step in range(steps + 1):
        across, down = _reading(place[:, 0], place[:, 1], side), _reading(place[:, 2], place[:, 3], side)
        laid = np.matmul(down, wholes.reshape(count, side, -1)).reshape(wholes.shape)
        laid = np.matmul(across[:, None], laid)
        inside = _inside(down)[:, :, None, None] & _inside(across)[:, None, :, None]
        bend = _bend(laid)
        lit = _each(gain) * laid + _each(offset) + _each(blur) * bend
        if step == steps:
            break
        clipped = (parts <= _DARK) | (parts >= _BRIGHT) | (laid <= _DARK) | (laid >= _BRIGHT)
        weight = (inside & ~clipped).astype(np.float32)
        along_y, along_x = np.gradient(laid, axis=1) * side, np.gradient(laid, axis=2) * side
        slopes = np.stack(
            [
                along_x * centred[None, None, :, None], along_x, along_y * centred[None, :, None, None], along_y,
                laid / 64.0, np.ones_like(laid), bend * (side == SIDE_PX),
            ],
            axis=-1,
        )  # fmt: skip
        slopes[..., :4] *= _each(gain)[..., None]
        slopes = (slopes * weight[..., None]).reshape(count, -1, slopes.shape[-1])
        transposed = slopes.transpose(0, 2, 1)
        normal = np.matmul(transposed, slopes).astype(np.float64)
        towards = np.matmul(transposed, ((parts - lit) * weight).reshape(count, -1, 1)).astype(np.float64)
        damping = 1e-5 * np.trace(normal, axis1=1, axis2=2) + 1e-3
        normal += damping[:, None, None] * np.diag([1.0, 1.0, 1.0, 1.0, 1e-3, 1e-3, 1e-1])
        change = np.linalg.solve(normal, towards)[..., 0]
        place = np.clip(place + np.clip(change[:, :4], -0.06, 0.06), _FARTHEST_LOW, _FARTHEST_HIGH)
        gain = np.clip(gain + change[:, 4] / 64.0, 0.6, 1.6)
        offset = offset + change[:, 5]
        blur = np.clip(blur + change[:, 6], -_MOST_BLUR, _MOST_BLUR) if side == SIDE_PX else blur
    left = parts - np.clip(lit, 0.0, 255.0)
    left = np.where(((laid >= _BRIGHT) & (left > 0)) | ((laid <= _DARK) & (left < 0)), 0.0, left)
    weight = np.broadcast_to(inside, parts.shape)
    values = np.maximum(weight.sum((1, 2, 3)), 1)
    squared = np.where(weight, left**2, 0.0).sum((1, 2, 3)) / values
    variance = np.where(weight, (parts - parts.mean((1, 2), keepdims=True)) ** 2, 0.0).sum((1, 2, 3)) / values
    gradient = np.gradient(parts, axis=1) ** 2 + np.gradient(parts, axis=2) ** 2
    gradient = np.where(weight, gradient, 0.0).sum((1, 2, 3)) / values
    return _Fit(place, gain, offset, blur, squared / np.maximum(variance, 1e-3), squared / np.maximum(gradient, 1e-3))


def _inside(reading: Floats) -> NDArray[np.bool_]:
    """Return which rows of `_reading` matrices stay clear of both borders, shape (P, side).

    Beside a border, blurring saw the border repeated where the other picture goes on.
    """
    side = reading.shape[1]
    margin = side // 16
    inside: NDArray[np.bool_] = reading[:, :, margin : side - margin].sum(2) > 0.999
    inside[:, :margin] = inside[:, side - margin :] = False
    return inside


def _each(values: NDArray[np.float64]) -> Floats:
    """Return one value a pair, shaped to go with pictures."""
    return values.astype(np.float32)[:, None, None, None]


def _bend(pixels: Floats) -> Floats:
    """Return the Laplacian, 0 at the borders."""
    bend = np.zeros_like(pixels)
    middle = pixels[:, 1:-1, 1:-1]
    bend[:, 1:-1, 1:-1] = (
        pixels[:, :-2, 1:-1] + pixels[:, 2:, 1:-1] + pixels[:, 1:-1, :-2] + pixels[:, 1:-1, 2:] - 4.0 * middle
    )
    return bend


def _reading(scale: NDArray[np.float64], shift: NDArray[np.float64], side: int) -> Floats:
    """Return matrices (P, side, side) that read a line at centre + scale * place + shift, linearly interpolated.

    A row whose place lies outside the line does not sum to 1.
    """
    centred = (np.arange(side) + 0.5) / side - 0.5
    places = (0.5 + shift[:, None] + scale[:, None] * centred) * side - 0.5
    return np.maximum(0.0, 1.0 - np.abs(places[:, :, None] - np.arange(side))).astype(np.float32)


def _soften(pixels: Floats) -> Floats:
    """Blur by 1-2-1 along both sides: what remains is resampled without much loss."""
    for axis in (1, 2):
        padded = np.pad(pixels, [(1, 1) if place == axis else (0, 0) for place in range(pixels.ndim)], mode="edge")
        first, middle, last = (np.take(padded, range(start, start + SIDE_PX), axis=axis) for start in range(3))
        pixels = (first + 2.0 * middle + last) / np.float32(4.0)
    return pixels


def _halve(planes: Floats) -> Floats:
    count, side, _, channels = planes.shape
    halved: Floats = planes.reshape(count, side // 2, 2, side // 2, 2, channels).mean((2, 4))
    return halved


def _grey(thumbnails: Pixels) -> Floats:
    return thumbnails.astype(np.float32) @ _GREY


def _chunks(thumbnails: Pixels, size: int = 4096) -> list[Pixels]:
    return [thumbnails[start : start + size] for start in range(0, len(thumbnails), size)]


_COSINES: Floats = dct(np.eye(SIDE_PX, dtype=np.float32), axis=0, norm="ortho")[:_FREQUENCIES]
_SUMS = np.add.outer(range(_FREQUENCIES), range(_FREQUENCIES))
_SHAPE = (_SUMS > 0) & (_SUMS < _FREQUENCIES)
_TINT = _SUMS < 2
_STARTS = np.array(
    [(width, left + width / 2 - 0.5, height, top + height / 2 - 0.5) for left, top, width, height in _CROPS]
)
_MOST_BLUR = 0.5
_FARTHEST_LOW = np.array([0.86, -0.08, 0.86, -0.08])
_FARTHEST_HIGH = np.array([1.16, 0.08, 1.16, 0.08])
