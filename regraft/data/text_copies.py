"""Copies of texts: the same but for case and punctuation, the same but for one word, and long texts that share most.

All comparisons are of *folded* texts. Texts that differ in one word, be it replaced, put in or left out, meet under the
hash of what is left without it; longer ones with several changes meet through MinHash. One word proves little among
short questions from one mould ("how do I order my card", "where do I order my card"), so such a pair counts only if its
evidence suffices: how surprising the shared words are in this very set of texts, how ill the odd one fits among them,
and how few texts have the same gap. What suffices depends on how many pairs the set has that stand out by nothing.
So it depends on the other texts, and made splits go by pairs that do not depend on them: see `NearCopies`.

Short texts set a bound to this. In banking77 2,139 pairs of its 13,018 different questions differ in a word by nature,
many because one person put another's question in other words. As it stands the rule reports 129 of these pairs, 1% of
the examples, and of planted copies with a word replaced finds nine in ten (nearly all from 11 words on, half of those
of 5 words); with a word put in or left out, one in two. In sms_spam and emobank, of longer texts, it finds 93% to 100%
of them all. benchmarks/audit.py prints this, by length and over thresholds.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

FEWEST_WORDS = 5  # of texts that may differ in a word
WORDS_ENOUGH = 12  # of both texts: so many but one in common are a bond, whatever the other texts are
_GAP_FILLINGS = 20  # a gap that more texts have is a mould, not a copy
# Weights of the evidence, in nats, fitted by logistic regression to planted changes and natural pairs of banking77.
_SHARED, _MISFIT, _RARE, _MOULD = 0.23, 0.4, 0.17, 2.8
# What it takes to count, beside the logarithm of how many pairs with hardly any evidence there are to a text: the more
# a set of texts has of those, the more of its pairs stand out by chance.
_REPLACED, _PUT_IN, _HARDLY_ANY, _LEAST_CHANCE = 8.2, 11.6, 3.0, 0.011
_SHINGLE = 2  # words
_LONG_WORDS = 40  # from here on texts may differ in more than a word
_PERMUTATIONS, _BAND = 64, 4
_BUCKET = 16  # members of a band's bucket that are compared with its first
_JACCARD = 0.75
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish modulo 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_LENGTH = np.uint64(0x517CC1B727220A95)
_AT_ONCE = 1 << 20  # words

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class NearCopies:
    """Pairs (i, j), i < j, of different texts, in order; of k texts that fold to one the first with each other one.

    Attributes:
        pairs: Those that are near copies, by all evidence.
        bonds: Those that must share a split. Other texts do not decide on them, so that adding texts parts none: equal
            when folded, long and mostly the same, or equal but for a word of `WORDS_ENOUGH` or more (unless the gap
            becomes a mould).
    """

    pairs: list[tuple[int, int]]
    bonds: list[tuple[int, int]]


def near_copies(texts: Sequence[str]) -> NearCopies:
    """Return which of different texts are near copies of each other. Time grows as n log n."""
    first_of: dict[bytes, int] = {}
    pairs: set[tuple[int, int]] = set()
    kept: list[int] = []
    lengths: list[int] = []
    numbers: dict[str, int] = {}
    flat = array("i")
    for place, text in enumerate(texts):
        words = fold(text).split()
        key = hashlib.blake2b(("".join(words) or text.strip()).encode(), digest_size=12).digest()
        first = first_of.setdefault(key, place)
        if first != place:
            pairs.add((first, place))
            continue
        kept.append(place)
        lengths.append(len(words))
        flat.extend(numbers.setdefault(word, len(numbers)) for word in words)
    del first_of
    bonds = set(pairs)
    if kept:
        starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
        corpus = _Corpus(np.frombuffer(flat, np.int32), starts, len(numbers))
        alike, (evident, enough) = _mostly_shared(corpus), _one_word_apart(corpus)
        for found, into in ((alike, pairs), (evident, pairs), (alike, bonds), (enough, bonds)):
            into.update((min(kept[i], kept[j]), max(kept[i], kept[j])) for i, j in found)
    return NearCopies(sorted(pairs), sorted(bonds))


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

    @property
    def lengths(self) -> Places:
        return np.diff(self.starts)

    def text(self, number: int) -> NDArray[np.int32]:
        return self.words[self.starts[number] : self.starts[number + 1]]

    def places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return for each of `words` the number of its text and its place in it."""
        owners = np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), self.lengths)
        return owners, np.arange(len(self.words), dtype=np.int32) - self.starts.astype(np.int32)[owners]


@dataclass(frozen=True)
class _Pairs:
    """Pairs of texts that are equal without one word.

    Attributes:
        texts: Numbers of both texts, shape (2, N).
        places: Where the odd word stands in each, shape (2, N); -1 in a text that lacks it.
        fillings: How many texts have the same gap, shape (N,).
    """

    texts: Places
    places: Places
    fillings: Places

    @property
    def gaps(self) -> Places:
        """The place at which the two texts part, shape (N,)."""
        return self.places.max(axis=0)


def _one_word_apart(corpus: _Corpus) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return pairs of texts that differ in one word: those with enough evidence for a copy, and those long enough."""
    pairs = _equal_but_for_a_word(corpus)
    if not pairs.fillings.size:
        return [], []
    evidence = _evidence(corpus, pairs)
    chance = max(_LEAST_CHANCE, np.count_nonzero(evidence < _HARDLY_ANY) / (len(corpus.starts) - 1))
    found = np.flatnonzero(evidence > np.where(pairs.places.min(axis=0) < 0, _PUT_IN, _REPLACED) + np.log(chance))
    long = np.flatnonzero(corpus.lengths[pairs.texts].min(axis=0) >= WORDS_ENOUGH)
    return _confirmed(corpus, pairs, found), _confirmed(corpus, pairs, long)


def _confirmed(corpus: _Corpus, pairs: _Pairs, found: Places) -> list[tuple[int, int]]:
    """Return those of the pairs numbered `found` that are equal without a word, word by word and not by hash alone."""
    return [
        (one, other)
        for (one, other), places in zip(
            pairs.texts[:, found].T.tolist(), pairs.places[:, found].T.tolist(), strict=True
        )
        if np.array_equal(_without(corpus.text(one), places[0]), _without(corpus.text(other), places[1]))
    ]


def _without(text: NDArray[np.int32], place: int) -> NDArray[np.int32]:
    return text if place < 0 else np.delete(text, place)


def _equal_but_for_a_word(corpus: _Corpus) -> _Pairs:
    """Return the pairs of texts whose hashes are equal after leaving out one word of either at one place, or of one."""
    keys, owners, places = _left_out(corpus)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    del keys
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    sizes = np.diff(edges)
    ones, others, fillings = [], [], []
    for size in range(2, _GAP_FILLINGS + 1):
        buckets = order[edges[:-1][sizes == size][:, None] + np.arange(size)]
        for one, other in combinations(range(size), 2):
            a, b = buckets[:, one], buckets[:, other]
            # A word that moved is another matter; and one of two equal neighbours may be left out of one text.
            fit = (owners[a] != owners[b]) & ((places[a] == places[b]) | ((places[a] < 0) != (places[b] < 0)))
            ones.append(a[fit])
            others.append(b[fit])
            fillings.append(np.full(int(fit.sum()), size))
    rows = np.stack([np.concatenate(ones), np.concatenate(others)])
    return _Pairs(owners[rows].astype(np.int64), places[rows].astype(np.int64), np.concatenate(fillings))


def _left_out(corpus: _Corpus) -> tuple[Hashes, NDArray[np.int32], NDArray[np.int32]]:
    """Return hashes of every text without each of its words and of every text whole, its number, and the place."""
    owners, places = corpus.places()
    terms = _mix(np.arange(corpus.vocabulary, dtype=np.uint64))[corpus.words]
    terms *= _powers(int(corpus.lengths.max(initial=0)))[places]
    sums = np.r_[np.uint64(0), np.cumsum(terms, dtype=np.uint64)]
    wholes = sums[corpus.starts[1:]] - sums[corpus.starts[:-1]]
    lengths = corpus.lengths.astype(np.uint64)
    long = corpus.lengths >= FEWEST_WORDS
    words = np.flatnonzero(long[owners])
    keys = np.empty(len(words) + int(long.sum()), np.uint64)
    for start in range(0, len(words), _AT_ONCE):
        part = words[start : start + _AT_ONCE]
        text = owners[part]
        before = sums[part] - sums[corpus.starts[text]]
        after = wholes[text] - before - terms[part]
        # What comes after moves up by one place.
        keys[start : start + len(part)] = _mix(before + after * _INVERSE + (lengths[text] - np.uint64(1)) * _LENGTH)
    keys[len(words) :] = _mix(wholes + lengths * _LENGTH)[long]
    return (
        keys,
        np.concatenate([owners[words], np.flatnonzero(long).astype(np.int32)]),
        np.concatenate([places[words], np.full(int(long.sum()), -1, np.int32)]),
    )


def _evidence(corpus: _Corpus, pairs: _Pairs) -> NDArray[np.float64]:
    """Return how much speaks for a copy in each of `pairs`: sums of surprises, weighted; shape (N,).

    The odd word misfits if it and the two words after it are more surprising than a word drawn at random in its place.
    Of the two texts the one with the greater misfit is taken for the copy.
    """
    language = _Language.of(corpus)
    sums = np.r_[0.0, np.cumsum(language.given_both, dtype=np.float64)]
    shared, misfit, rare = (np.empty(pairs.texts.shape) for _ in range(3))
    for side, (texts, places) in enumerate(zip(pairs.texts, pairs.places, strict=True)):
        first = corpus.starts[texts] + texts + 1
        end = first + corpus.lengths[texts] + 1
        gap, has_word = first + pairs.gaps, places >= 0
        after = np.minimum(gap + np.where(has_word, 3, 2), end)
        shared[side] = sums[gap] - sums[first] + sums[end] - sums[after]
        around = [
            np.where(gap + step < after, language.given_one[np.minimum(gap + step, end - 1)], 0) for step in range(3)
        ]
        misfit[side] = sum(around) - np.where(has_word, language.alone[gap], 0)
        rare[side] = np.where(has_word, around[0], 0)
    weighted = _SHARED * shared.min(axis=0) + _MISFIT * misfit.max(axis=0) + _RARE * rare.max(axis=0)
    return np.asarray(weighted - _MOULD * np.log(pairs.fillings))


@dataclass(frozen=True)
class _Language:
    """How surprising each word is, and the end of each text: minus its log probability after the two words before.

    Positions are those of the texts end to end, each with a mark before it, and one mark at the end of all.

    Attributes:
        given_one: With the text itself left out of the counts, float32.
        given_both: With two texts that have these words left out.
        alone: Whatever stands before, the text left out.

    Source: interpolated trigrams with weights after Witten & Bell, 1991 (method C).
    """

    given_one: NDArray[np.float32]
    given_both: NDArray[np.float32]
    alone: NDArray[np.float32]

    @classmethod
    def of(cls, corpus: _Corpus) -> "_Language":
        end = corpus.vocabulary
        owners, _ = corpus.places()
        stream = np.full(len(corpus.words) + len(corpus.starts), end, np.int32)
        stream[np.arange(len(corpus.words)) + owners + 1] = corpus.words
        del owners
        singles = np.bincount(stream, minlength=end + 1)
        twos, followed, kinds = _count_after(stream[:-1], stream[1:], end + 1, contexts=end + 1)
        # A pair whose second word is the mark is the end of a text: what comes next does not depend on it.
        inside = np.flatnonzero(stream[1:-1] != end)
        threes, followed_two, kinds_two = _count_after(
            twos.numbers[inside], stream[2:][inside], end + 1, contexts=len(twos.counts)
        )
        surprises = [np.empty(len(stream), np.float32) for _ in range(3)]
        rows = np.full(len(stream), -1, np.int32)  # of each position in `threes`
        rows[inside + 2] = np.arange(len(inside), dtype=np.int32)
        for start in range(0, len(stream), _AT_ONCE):
            at = np.arange(start, min(start + _AT_ONCE, len(stream)))
            before = np.maximum(at - 1, 0)
            two, three = twos.numbers[np.maximum(at - 1, 0)], rows[at]
            context = twos.numbers[np.maximum(at - 2, 0)]
            for own, kept in ((2, surprises[1]), (1, surprises[0])):
                alone = (np.maximum(singles[stream[at]] - own, 0) + 1) / (len(stream) + end + 1)
                given = _interpolated(
                    twos.counts[two], followed[stream[before]], kinds[stream[before]], own=own, otherwise=alone
                )
                trigram = _interpolated(
                    threes.counts[threes.numbers[three]], followed_two[context], kinds_two[context],
                    own=own, otherwise=given,
                )  # fmt: skip
                kept[at] = -np.log(np.where(three >= 0, trigram, given))
            surprises[2][at] = -np.log(alone)
        return cls(*surprises)


@dataclass(frozen=True)
class _Counts:
    """Different things by number: `numbers` of each occurrence, `counts` of each number."""

    numbers: NDArray[np.int32]
    counts: NDArray[np.int32]


def _count_after(
    before: NDArray[np.int32], words: NDArray[np.int32], vocabulary: int, *, contexts: int
) -> tuple[_Counts, NDArray[np.int32], NDArray[np.int32]]:
    """Return counts of (before, word); and by `before` how often, and by how many different words, it is followed."""
    keys = before.astype(np.int64) * vocabulary + words
    order = np.argsort(keys)
    keys = keys[order]
    is_new = np.r_[True, keys[1:] != keys[:-1]][: len(keys)]
    starts = np.flatnonzero(is_new)
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(is_new, dtype=np.int32) - 1
    counts = np.diff(np.r_[starts, len(keys)]).astype(np.int32)
    followed = np.bincount(before, minlength=contexts).astype(np.int32)
    kinds = np.bincount(keys[starts] // vocabulary, minlength=contexts).astype(np.int32)
    return _Counts(numbers, counts), followed, kinds


def _interpolated(
    together: NDArray[np.int32],
    followed: NDArray[np.int32],
    kinds: NDArray[np.int32],
    *,
    own: int,
    otherwise: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the probability of a word after a context, `own` occurrences of both left out of the counts."""
    rest = np.maximum(followed - own, 0)
    new = kinds - (together <= own)
    seen = np.maximum(together - own, 0)
    return np.where(rest + new > 0, (seen + new * otherwise) / np.maximum(rest + new, 1), otherwise)


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
