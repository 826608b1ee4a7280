"""Two versions of a dataset side by side: what came, went or was relabelled, and whether inputs or labels drifted."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from regraft.data import audio, images
from regraft.data.records import SPLITS, Split, open_split, read_info
from regraft.data.targets import REGRESSION
from regraft.errors import DataError

# Drift is what is both unlikely to be chance and large enough to matter.
SIGNIFICANCE = 0.01
# "Negligible" ends here: Cliff's delta (Romano et al., 2006), Cramer's V (Cohen, 1988, for one degree of freedom).
SMALL_DELTA, SMALL_V = 0.147, 0.1
# Inputs of at most so many examples of each version are measured: enough to see a small effect.
MEASURED_MOST = 5_000
_QUIETEST = 2.0**-15


@dataclass(frozen=True)
class Version:
    """A prepared dataset as far as comparing needs it.

    Attributes:
        kind: "image", "text" or "audio".
        places: For each example id, the (split, target in words, name) of every copy, in order.
        targets: Every example's value of each real-valued target, by its name; empty for other tasks.
        measures: Values of each input statistic over (a sample of) the examples, by name.
    """

    kind: str
    places: Mapping[str, tuple[tuple[str, str, str], ...]]
    targets: Mapping[str, NDArray[np.float64]]
    measures: Mapping[str, NDArray[np.float64]]

    def label_counts(self) -> Counter[str]:
        """Return how many examples bear each label, copies included."""
        return Counter(label for held in self.places.values() for _, label, _ in held)


def read_version(prepared: Path, *, advance: Callable[[int], None] = lambda done: None) -> Version:
    """Read the dataset that the preprocess stage wrote to `prepared`.

    Args:
        prepared: The dataset's folder.
        advance: Told how many more examples were measured.

    Raises:
        DataError: If there is no prepared data.
    """
    info = read_info(prepared)
    places: dict[str, list[tuple[str, str, str]]] = {}
    rows: list[tuple[Split, int]] = []
    splits = {name: open_split(prepared, name) for name in SPLITS if name in info.counts}
    for name, split in splits.items():
        for row, identity in enumerate(split.ids):
            if identity not in places:
                rows.append((split, row))
            places.setdefault(identity, []).append((name, split.target(row), split.names[row]))
    # Ids are hashes of contents, so the first ones in their order are a sample that does not depend on anything else.
    rows.sort(key=lambda place: place[0].ids[place[1]])
    measured: list[dict[str, float]] = []
    for split, row in rows[:MEASURED_MOST]:
        measured.append(_MEASURES[info.kind](split.inputs([row])[0]))
        advance(1)
    measures = {name: np.array([one[name] for one in measured]) for name in measured[0]} if measured else {}
    targets = {}
    if info.task == REGRESSION:
        values = np.concatenate([split.labels for split in splits.values()]).astype(np.float64)
        targets = {name: values[:, place] for place, name in enumerate(info.labels)}
    return Version(info.kind, {identity: tuple(held) for identity, held in places.items()}, targets, measures)


def measure(kind: str, givens: Sequence[str], *, are_texts: bool = False) -> dict[str, NDArray[np.float64]]:
    """Return the values of each input statistic of examples that are no prepared data; what cannot be read is left out.

    Args:
        kind: "image", "audio" or "text".
        givens: Paths of files; of kind "text" the texts, or paths of .txt files.
        are_texts: Whether all are texts, also those that look like paths.
    """
    measured = []
    for given in givens:
        try:
            is_file = kind != "text" or (not are_texts and _is_text_file(given))
            content: bytes | str = Path(given).read_bytes() if is_file else given
            measured.append(
                _MEASURES[kind](content.decode() if isinstance(content, bytes) and kind == "text" else content)
            )
        except (OSError, ValueError, audio.UnreadableAudio, images.UnreadableImage):
            continue
    return {name: np.array([one[name] for one in measured]) for name in measured[0]} if measured else {}


def _is_text_file(given: str) -> bool:
    """Return whether a text is the path of a .txt file; a long one, or one that holds a NUL, is no path."""
    if not given.lower().endswith(".txt") or "\n" in given:
        return False
    try:
        return Path(given).is_file()
    except (OSError, ValueError):
        return False


def compare(before: Version, after: Version) -> dict[str, Any]:
    """Return what changed from `before` to `after`, ready for JSON.

    Returns:
        {"before", "after": numbers of examples; "added", "removed": names; "relabelled": {"name", "before", "after"};
        "moved": {"name", "before", "after"} for examples that changed their split; "drift": a row for the labels and
        for each input statistic, see `numeric_drift` and `label_drift`}.

    Raises:
        DataError: If the two are of different kinds, or have different targets.
    """
    if before.kind != after.kind:
        raise DataError(f"the two versions hold {before.kind} and {after.kind} data, which cannot be compared.")
    if before.targets.keys() != after.targets.keys():
        raise DataError(
            f"the two versions have different targets ({', '.join(before.targets) or 'classes'}; "
            f"{', '.join(after.targets) or 'classes'}), which cannot be compared."
        )
    targets = [numeric_drift(name, before.targets[name], after.targets[name]) for name in after.targets]
    kept = [identity for identity in after.places if identity in before.places]
    return {
        "before": sum(map(len, before.places.values())),
        "after": sum(map(len, after.places.values())),
        "added": sorted(_name(held) for identity, held in after.places.items() if identity not in before.places),
        "removed": sorted(_name(held) for identity, held in before.places.items() if identity not in after.places),
        "relabelled": _changes(before, after, kept, part=1),
        "moved": _changes(before, after, kept, part=0),
        "drift": [
            *(targets or [label_drift(before.label_counts(), after.label_counts())]),
            *(numeric_drift(name, before.measures[name], after.measures[name]) for name in after.measures),
        ],
    }


def numeric_drift(name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """Compare one number over two sets of examples.

    Examples that are in both sets make the two alike, so the p-value errs towards saying "no drift".

    Args:
        name: What the number is, with its unit.
        before: Shape (N,), N >= 1.
        after: Shape (M,), M >= 1.

    Returns:
        {"what", "test", "p", "effect", "size", "before", "after" (medians), "drifted"}. The test is the two-sample one
        of Kolmogorov and Smirnov; the effect is Cliff's delta (Cliff, 1993), in [-1, 1]: how much more often a new
        value exceeds an old one than the other way round.
    """
    p_value = float(stats.ks_2samp(before, after, method="asymp").pvalue)
    wins = stats.mannwhitneyu(after, before, method="asymptotic").statistic
    delta = float(2.0 * wins / (len(after) * len(before)) - 1.0)
    return {
        "what": name,
        "test": "Kolmogorov-Smirnov",
        "p": p_value,
        "effect": "Cliff's delta",
        "size": delta,
        "before": float(np.median(before)),
        "after": float(np.median(after)),
        "drifted": p_value < SIGNIFICANCE and abs(delta) >= SMALL_DELTA,
    }


def label_drift(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """Compare how often each label occurs.

    Args:
        before: Number of examples by label; not empty.
        after: The same of the other version.

    Returns:
        As `numeric_drift`, with the chi-squared test of independence and Cramer's V (1946), in [0, 1]; "before" and
        "after" are each label's share of the examples.
    """
    names = sorted(set(before) | set(after))
    table = np.array([[counts.get(name, 0) for name in names] for counts in (before, after)])
    if len(names) > 1:
        chi_squared, p_value, _, _ = stats.chi2_contingency(table, correction=False)
        strength = float(np.sqrt(chi_squared / table.sum()))  # two rows: V's divisor is one
    else:
        p_value, strength = 1.0, 0.0
    shares = [{name: counts.get(name, 0) / sum(counts.values()) for name in names} for counts in (before, after)]
    return {
        "what": "labels",
        "test": "chi-squared",
        "p": float(p_value),
        "effect": "Cramer's V",
        "size": strength,
        "before": shares[0],
        "after": shares[1],
        "drifted": bool(p_value < SIGNIFICANCE and strength >= SMALL_V),
    }


def _changes(before: Version, after: Version, kept: Sequence[str], *, part: int) -> list[dict[str, str]]:
    """Return the kept examples whose splits (`part` 0) or labels (`part` 1) are not what they were, by name."""
    found = []
    for identity in kept:
        was, now = (sorted({place[part] for place in version.places[identity]}) for version in (before, after))
        if was != now:
            name = _name(after.places[identity])
            found.append({"name": name, "before": ", ".join(was), "after": ", ".join(now)})
    return sorted(found, key=lambda change: change["name"])


def _name(held: Sequence[tuple[str, str, str]]) -> str:
    return min(name for _, _, name in held)


def _measure_image(encoded: bytes) -> dict[str, float]:
    image = images.to_rgb(encoded)
    grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BILINEAR, reducing_gap=2.0), np.float64)
    return {
        "shorter side in pixels": float(min(image.size)),
        "width over height": image.width / image.height,
        "brightness (0 to 255)": float(grey.mean()),
        "contrast (standard deviation)": float(grey.std()),
    }


def _measure_text(text: str) -> dict[str, float]:
    letters = sum(map(str.isalpha, text))
    return {
        "length in characters": float(len(text)),
        "share of letters": letters / max(1, len(text)),
        "share of capitals among letters": sum(map(str.isupper, text)) / max(1, letters),
        "share of characters outside ASCII": sum(not character.isascii() for character in text) / max(1, len(text)),
    }


def _measure_audio(encoded: bytes) -> dict[str, float]:
    recording = audio.decode(encoded)
    power = float(np.mean(np.square(recording.samples, dtype=np.float64)))
    return {
        "length in seconds": recording.seconds,
        # Silence counts as the smallest step of 16 bits.
        "loudness (root mean square, dB of full scale)": 10.0 * math.log10(max(power, _QUIETEST**2)),
        "sampling rate in Hz": float(recording.rate_hz),
    }


_MEASURES: dict[str, Callable[[Any], dict[str, float]]] = {
    "image": _measure_image,
    "text": _measure_text,
    "audio": _measure_audio,
}
