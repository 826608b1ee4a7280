"""Copies of texts: the same but for case and punctuation, the same but for one word, and long texts that share most.

All comparisons are of *folded* texts. Texts that differ in one word meet under the hash of what is left without it;
longer ones with several changes meet through MinHash. One changed word proves little among short questions from one
mould ("how do I order my card", "where do I order my card"), so such a pair counts only if its evidence suffices: how
surprising the shared words and the odd one are in this very set of texts, and how few texts fit the same gap.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FEWEST_WORDS = 5  # of texts that may differ in a word
_GAP_FILLINGS = 20  # a gap that more texts fill is a mould, not a copy
# Weights of the evidence, in nats; calibrated on banking77 (benchmarks/audit.py), of whose examples less than 1% differ
# in a word with enough of it. The more texts, the more of them meet by chance: n of them make some n * n pairs.
_SHARED, _MOULD, _ENOUGH = 0.34, 7.2, 10.3
_SHINGLE = 2  # words
_LONG_WORDS = 40  # from here on texts may differ in more than a word
_PERMUTATIONS, _BAND = 64, 4
_BUCKET = 16  # members of a band's bucket that are compared with its first
_JACCARD = 0.75
_ROWS_AT_ONCE = 4096
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish modulo 2**64
_PRIME = np.uint64((1 << 61) - 1)

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


def near_copies(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of different texts that are near copies, in order.

    Of k texts that fold to one, the first is paired with each other one. Time grows as n log n.
    """
    first_of: dict[bytes, int] = {}
    pairs: set[tuple[int, int]] = set()
    kept: list[int] = []
    lengths: list[int] = []
    numbers: dict[str, int] = {}
    flat: list[NDArray[np.int32]] = []
    for place, text in enumerate(texts):
        words = fold(text).split()
        key = hashlib.blake2b(("".join(words) or text.strip()).encode(), digest_size=12).digest()
        first = first_of.setdefault(key, place)
        if first != place:
            pairs.add((first, place))
            continue
        kept.append(place)
        lengths.append(len(words))
        flat.append(np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32))
    if kept:
        corpus = _Corpus.of(flat, lengths, len(numbers))
        del flat
        for i, j in {*_one_word_apart(corpus), *_mostly_shared(corpus)}:
            pairs.add((min(kept[i], kept[j]), max(kept[i], kept[j])))
    return sorted(pairs)


def fold(text: str) -> str:
    """Return `text` without what may change when it is copied: case, punctuation, spacing, forms of one character.

    Apostrophes vanish (`can't` is `cant`), all else that is no letter, mark or digit parts words. Of a text of symbols
    alone nothing is left.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return " ".join(folded.translate(_ASCII).split())
    return " ".join("".join(map(_kept, folded)).split())


def _kept(character: str) -> str:
    if character in _APOSTROPHES:
        return ""
    return character if unicodedata.category(character)[0] in "LMN" else " "


_APOSTROPHES = "'’‘`´"
_ASCII = {code: _kept(chr(code)) for code in range(128)}


@dataclass(frozen=True)
class _Corpus:
    """Different texts as numbers of words, end to end.

    Attributes:
        words: All words of all texts, int32.
        starts: Where each text begins in `words`; one more for the end.
        vocabulary: Number of different words.
    """

    words: NDArray[np.int32]
    starts: Places
    vocabulary: int

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.int32]], lengths: Sequence[int], vocabulary: int) -> "_Corpus":
        return cls(np.concatenate(texts), np.r_[0, np.cumsum(lengths)].astype(np.int64), vocabulary)

    @property
    def lengths(self) -> Places:
        return np.diff(self.starts)

    def text(self, number: int) -> NDArray[np.int32]:
        return self.words[self.starts[number] : self.starts[number + 1]]

    def places(self) -> tuple[Places, Places]:
        """Return for each of `words` the number of its text and its place in it."""
        owners = np.repeat(np.arange(len(self.starts) - 1), self.lengths)
        return owners, np.arange(len(self.words)) - self.starts[owners]


def _one_word_apart(corpus: _Corpus) -> list[tuple[int, int]]:
    """Return pairs of texts of `FEWEST_WORDS` or more that differ in one word, with enough evidence for a copy."""
    owners, places = corpus.places()
    terms = _mix(corpus.words.astype(np.uint64)) * _powers(int(corpus.lengths.max(initial=0)))[places]
    sums = np.r_[np.uint64(0), np.cumsum(terms, dtype=np.uint64)]
    wholes = sums[corpus.starts[1:]] - sums[corpus.starts[:-1]]
    fit = corpus.lengths[owners] >= FEWEST_WORDS
    owners, places = owners[fit], places[fit]
    gaps = _mix(wholes[owners] - terms[fit] + _mix((places * 65_537 + corpus.lengths[owners]).astype(np.uint64)))
    order = np.argsort(gaps, kind="stable")
    pairs: list[tuple[int, int]] = []
    enough = _ENOUGH + _SHARED * 2.0 * np.log(len(wholes))
    language = None
    for bucket in _runs(gaps[order]):
        if not 2 <= len(bucket) <= _GAP_FILLINGS:
            continue
        rows = order[bucket]
        language = language or _Language.of(corpus)
        place = int(places[rows[0]])
        found = [int(owners[row]) for row in rows]
        texts = [corpus.text(number) for number in found]
        surprises = [language.surprise(text, place) for text in texts]
        for one in range(len(found)):
            for other in range(one + 1, len(found)):
                if not _differ_only_at(texts[one], texts[other], place):
                    continue
                shared = np.delete(surprises[one], (place, place + 1)).sum()
                odd = max(surprises[one][place : place + 2].sum(), surprises[other][place : place + 2].sum())
                if _SHARED * shared + odd - _MOULD * np.log(len(found)) > enough:
                    pairs.append((found[one], found[other]))
    return pairs


def _differ_only_at(one: NDArray[np.int32], other: NDArray[np.int32], place: int) -> bool:
    return len(one) == len(other) and bool((np.flatnonzero(one != other) == place).all())


@dataclass(frozen=True)
class _Language:
    """How often words and pairs of neighbours occur in the texts; one number past the words stands for an end."""

    end: int
    singles: Places
    lefts: Places
    pairs: NDArray[np.int64]
    counts: Places

    @classmethod
    def of(cls, corpus: _Corpus) -> "_Language":
        end = corpus.vocabulary
        keys = np.concatenate(
            [
                corpus.words[:-1].astype(np.int64) * (end + 1) + corpus.words[1:],
                np.int64(end) * (end + 1) + corpus.words[corpus.starts[:-1][corpus.lengths > 0]],
                corpus.words[corpus.starts[1:][corpus.lengths > 0] - 1].astype(np.int64) * (end + 1) + end,
            ]
        )
        # A last word and the first of the next text are no neighbours.
        apart = np.ones(len(keys), bool)
        inner = corpus.starts[1:-1]
        apart[inner[(inner > 0) & (inner < len(corpus.words))] - 1] = False
        pairs, counts = np.unique(keys[apart], return_counts=True)
        texts = len(corpus.starts) - 1
        singles = np.bincount(corpus.words, minlength=end + 1)
        singles[end] = texts
        lefts = np.bincount(pairs // (end + 1), weights=counts, minlength=end + 1).astype(np.int64)
        return cls(end, singles, lefts, pairs, counts)

    def surprise(self, text: NDArray[np.int32], gap: int) -> NDArray[np.float64]:
        """Return minus the log probability, in nats, of each word of `text` and of its end, given the word before.

        The text itself is left out of the counts, and but for the word at `gap` so is the one compared with it. Words
        never seen elsewhere keep a hundredth of the probability.
        """
        own = np.full(len(text) + 1, 2)
        own[gap : gap + 2] = 1
        before = np.r_[self.end, text].astype(np.int64)
        after = np.r_[text, self.end].astype(np.int64)
        keys = before * (self.end + 1) + after
        together = self.counts[np.searchsorted(self.pairs, keys)] - own
        total = self.singles.sum()
        given = together / np.maximum(1, self.lefts[before] - own)
        alone = np.maximum(0, self.singles[after] - own) / total
        surprise: NDArray[np.float64] = -np.log(0.75 * given + 0.24 * alone + 0.01 / (self.end + 1))
        return surprise


def _mostly_shared(corpus: _Corpus) -> list[tuple[int, int]]:
    """Return pairs of texts of `_LONG_WORDS` or more whose neighbouring words overlap by `_JACCARD`.

    Source: Broder, 1997 (MinHash), with bands as in Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4.
    """
    long = np.flatnonzero(corpus.lengths >= _LONG_WORDS)
    if len(long) < 2:
        return []
    signatures = np.stack([_signature(_shingles(corpus.text(number))) for number in long.tolist()])
    pairs: set[tuple[int, int]] = set()
    for start in range(0, _PERMUTATIONS, _BAND):
        keys = _mix((_mix(signatures[:, start : start + _BAND]) * _powers(_BAND)).sum(axis=1, dtype=np.uint64))
        order = np.argsort(keys, kind="stable")
        for bucket in _runs(keys[order]):
            members = long[order[bucket]].tolist()
            pairs.update((members[0], other) for other in members[1:])
            pairs.update(pairwise(members[1:_BUCKET]))
    shingles: dict[int, Hashes] = {}
    found = []
    for i, j in sorted(pairs):
        for number in (i, j):
            if number not in shingles:
                shingles[number] = _shingles(corpus.text(number))
        shared = len(np.intersect1d(shingles[i], shingles[j], assume_unique=True))
        if shared >= _JACCARD * (len(shingles[i]) + len(shingles[j]) - shared):
            found.append((i, j))
    return found


def _shingles(text: NDArray[np.int32]) -> Hashes:
    """Return the different pairs of neighbouring words as hashes, sorted."""
    words = text.astype(np.uint64)
    return np.unique(_mix(words[:-1] * np.uint64(1 << 32) + words[1:]))


def _signature(shingles: Hashes) -> Hashes:
    """Return the least of the shingles under each permutation, shape (_PERMUTATIONS,)."""
    return (shingles[:, None] * _FACTORS + _SUMMANDS >> np.uint64(3)).min(axis=0)


def _runs(ordered: Hashes) -> list[Places]:
    """Return the places of each value that occurs twice or more in `ordered`."""
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    sizes = np.diff(edges)
    return [np.arange(edges[run], edges[run + 1]) for run in np.flatnonzero(sizes > 1).tolist()]


def _mix(values: Hashes) -> Hashes:
    """Return a hash of each number. Source: the finalizer of splitmix64 (Steele, Lea & Flood, 2014)."""
    mixed = values + _BASE
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _powers(count: int) -> Hashes:
    """Return the first `count` powers of an odd number, modulo 2**64."""
    return np.cumprod(np.full(count, _BASE, np.uint64), dtype=np.uint64)


_FACTORS = _mix(np.arange(1, _PERMUTATIONS + 1, dtype=np.uint64)) | np.uint64(1)
_SUMMANDS = _mix(np.arange(1001, 1001 + _PERMUTATIONS, dtype=np.uint64))
