"""Texts as sets of shingles: their words, MinHash buckets and exact Jaccard comparison, on arrays.

One row of a sparse matrix is the shingle set of one text. MinHash LSH puts a text into one bucket a band, by the
smallest values of a few hash functions over its shingles; only texts that share a bucket are compared. Buckets are
found by sorting, band after band, so no index of all bands is held in memory.

What most texts share, such as a template, tells none apart: shingles in more than half of 20 texts or more are left
out of the sets, except where a text would have none left.
"""

import hashlib
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from rmtrl.errors import UsageError

Rows = NDArray[np.int64]
Pairs = tuple[Rows, Rows]

_MISS = 1e-4  # bound on the probability that a pair at the threshold shares no bucket
_MOST_HASHES = 160
_SMALL = 64  # buckets up to this size are compared in full
_CHUNK = 200_000  # pairs compared at once
TEMPLATE_TEXTS = 20  # texts from which a shingle of most of them counts as template
_BLOCK = 4096  # texts hashed at once, so that their values stay in the processor's cache

# Lao and Thai, Burmese, Khmer, Kana, Han
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class _Plain(dict[int, "int | str | None"]):
    """The table for `str.translate`: punctuation to spaces, symbols and unspaced scripts apart, formats away."""

    def __missing__(self, code: int) -> int | str | None:
        character, category = chr(code), unicodedata.category(chr(code))
        value: int | str | None = code
        if category == "Cf":
            value = None
        elif category[0] in "PZ" or category == "Cc":
            value = " "
        elif category[0] == "S" or any(low <= code <= high for low, high in _UNSPACED):
            value = f" {character} "
        self[code] = value
        return value


_PLAIN = _Plain()


def normalize_text(text: str) -> str:
    """Returns the words of a text, one space between: NFKC form, casefolded, without punctuation.

    A text of punctuation alone keeps it, so that it equals only its like.

    Example:

    ```python
    >>> normalize_text("Hello,  WORLD!! 1+1")
    'hello world 1 + 1'
    ```
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PLAIN).split()) or " ".join(folded.split())


class Shingles:
    """The shingle sets of N normalised texts, and their MinHash buckets.

    Args:
        texts (`Sequence[str]`): Texts from [`normalize_text`].
        threshold (`float`): Jaccard index that makes a pair near-duplicates, from 0.5 to 1.
        seed (`int`): Seed of the hash functions.
        reference (`int`, *optional*): Number of first texts that tell what most texts share; all by default.

    Raises:
        UsageError: If `threshold` is outside [0.5, 1].
    """

    def __init__(
        self, texts: Sequence[str], threshold: float = 0.8, seed: int = 0, reference: int | None = None
    ) -> None:
        if not 0.5 <= threshold <= 1:
            raise UsageError(f"got threshold {threshold}; wanted a Jaccard index from 0.5 to 1, for example 0.8")
        self.threshold = threshold
        self.bands, self.rows_a_band = bands_for(threshold)
        matrix, column_hashes = _shingle_matrix(texts)
        self.matrix = _without_template(matrix, len(texts) if reference is None else reference)
        self.sizes = np.diff(self.matrix.indptr).astype(np.int64)
        self._hashes = column_hashes[self.matrix.indices]
        shape = (self.bands, self.rows_a_band)
        generator = np.random.default_rng(seed)
        # h -> a h + b mod 2^64 with odd a is a permutation of the 64-bit numbers
        self._factors = generator.integers(0, 2**64, shape, dtype=np.uint64) | np.uint64(1)
        self._offsets = generator.integers(0, 2**64, shape, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.sizes)

    def bucket_keys(self, band: int) -> NDArray[np.uint64]:
        """Returns the bucket of every text in one band, `(N,)`: a hash of its `rows_a_band` smallest hash values."""
        keys = np.zeros(len(self), np.uint64)
        for start in range(0, len(self), _BLOCK):
            bounds = self.matrix.indptr[start : start + _BLOCK + 1]
            hashes, block = self._hashes[bounds[0] : bounds[-1]], keys[start : start + _BLOCK]
            for a, b in zip(self._factors[band], self._offsets[band], strict=True):
                block[:] = _mix(block ^ np.minimum.reduceat(hashes * a + b, bounds[:-1] - bounds[0]))
        return keys

    def near(self, left: Rows, right: Rows) -> NDArray[np.bool_]:
        """Returns for each pair of rows whether its exact Jaccard index reaches the threshold, `(P,)`."""
        a, b = self.sizes[left], self.sizes[right]
        found = np.minimum(a, b) >= self.threshold * np.maximum(a, b) - 1e-9  # J <= min / max
        for chunk in np.array_split(np.flatnonzero(found), 1 + len(left) // _CHUNK):
            shared = self.matrix[left[chunk]].multiply(self.matrix[right[chunk]]).sum(axis=1)
            # the tolerance keeps a pair at exactly the threshold; fractions of set sizes lie much further apart
            found[chunk] = shared >= self.threshold * (a[chunk] + b[chunk] - shared) - 1e-9
        return found


def bands_for(threshold: float) -> tuple[int, int]:
    """Returns (bands, rows a band) that miss a pair at the threshold with probability (1 − t^r)^b below 1e-4.

    The most rows a band, so the fewest false candidates, that need at most 160 hash functions.

    Example:

    ```python
    >>> bands_for(0.8)
    (24, 5)
    ```
    """
    best = (1, 16)
    for rows in range(1, 17):
        hit = threshold**rows
        bands = 1 if hit == 1 else math.ceil(math.log(_MISS) / math.log1p(-hit))
        if bands * rows <= _MOST_HASHES:
            best = (bands, rows)
    return best


def cluster_texts(texts: Sequence[str], threshold: float, seed: int, progress: bool) -> tuple[Rows, int]:
    """Returns the component of each of the distinct normalised texts, `(N,)`, and the pairs left uncompared."""
    shingles = Shingles(texts, threshold, seed)
    labels: Rows = np.arange(len(shingles))
    skipped = 0
    bands = range(shingles.bands if len(shingles) > 1 else 0)
    for band in tqdm(bands, desc="Finding near-duplicates", unit="band", delay=1, disable=not progress):
        small, large = _buckets(shingles.bucket_keys(band), np.arange(len(shingles)))
        labels = _link(shingles, labels, small)
        for members in large:
            if np.ptp(labels[members]):
                small, larger = _buckets(*_by_rare_shingle(shingles, members))
                labels = _link(shingles, labels, small)
                for part in larger:
                    labels, left_out = _explore(shingles, labels, part)
                    skipped += left_out
    return labels, skipped


def found_across(shingles: Shingles, left: Rows, right: Rows, progress: bool) -> tuple[Rows, Rows, int]:
    """Returns the rows of `left` near a row of `right`, those of `right` near one of `left`, and comparisons left out.

    A row that is on both sides is no partner of itself. Pairs are not collected: a pair is compared only while one of
    its rows has not been found. In a bucket of more than 64 that its rarest shingles do not divide, each row is
    compared with at most 64 of the other side.
    """
    search = _Search(shingles, left, right)
    for band in tqdm(range(shingles.bands), desc="Comparing prompts", unit="band", delay=1, disable=not progress):
        keys = shingles.bucket_keys(band)
        asked = np.flatnonzero(np.isin(keys, keys[left]))
        small, large = _buckets(keys[asked], asked)
        search.compare(*small)
        for members in large:
            if search.is_open(members):
                small, larger = _buckets(*_by_rare_shingle(shingles, members))
                search.compare(*small)
                for part in larger:
                    search.sample(part)
    return np.flatnonzero(search.found[0]), np.flatnonzero(search.found[1]), search.skipped


class _Search:
    """What a search between two sides has found: `sides` and `found` are (2, N), side by row."""

    def __init__(self, shingles: Shingles, left: Rows, right: Rows) -> None:
        self.shingles = shingles
        self.sides = np.zeros((2, len(shingles)), bool)
        self.sides[0, left], self.sides[1, right] = True, True
        self.found = np.zeros_like(self.sides)
        self.skipped = 0

    def is_open(self, members: Rows) -> bool:
        """Returns whether both sides are there and some row has not been found."""
        sides = self.sides[:, members]
        return bool(sides.any(axis=1).all() and (sides & ~self.found[:, members]).any())

    def compare(self, a: Rows, b: Rows) -> None:
        """Marks the near-duplicates among the candidate pairs, whichever side each row is on."""
        for one, other in ((a, b), (b, a)):
            across = self.sides[0, one] & self.sides[1, other] & (one != other)
            new = np.flatnonzero(across & ~(self.found[0, one] & self.found[1, other]))
            near = new[self.shingles.near(one[new], other[new])]
            self.found[0, one[near]] = True
            self.found[1, other[near]] = True

    def sample(self, members: Rows) -> None:
        """Compares each row not found yet with others of the bucket, 1, 1, 2, 4, … at a time, up to 64."""
        for side in (0, 1):
            own, others = members[self.sides[side, members]], members[self.sides[1 - side, members]]
            stop, most = 0, min(_SMALL, len(others))
            while stop < most:
                start, stop = stop, min(max(1, 2 * stop), most)
                place = np.flatnonzero(~self.found[side, own])
                partner = (place[:, None] + np.arange(start, stop)) % len(others)
                self.compare(np.repeat(own[place], stop - start), others[partner.ravel()])
            self.skipped += int((~self.found[side, own]).sum()) * (len(others) - most)


# ---- buckets


def _buckets(keys: NDArray[np.generic], rows: Rows) -> tuple[Pairs, list[Rows]]:
    """Returns all pairs of rows that share a key in a bucket of up to 64, and the members of larger buckets."""
    order = np.argsort(keys)
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    large = [np.sort(rows[starts[i] : starts[i] + sizes[i]]) for i in np.flatnonzero(sizes > _SMALL)]
    bucket = np.repeat(np.arange(len(starts)), sizes)
    shared = np.repeat((sizes > 1) & (sizes <= _SMALL), sizes)
    rows, bucket = rows[shared], bucket[shared]
    lefts, rights = [rows[:0]], [rows[:0]]
    for step in range(1, _SMALL):
        same = np.flatnonzero(bucket[step:] == bucket[:-step])
        if not len(same):
            break
        lefts.append(rows[same])
        rights.append(rows[same + step])
    return (np.concatenate(lefts), np.concatenate(rights)), large


def _link(shingles: Shingles, labels: Rows, pairs: Pairs) -> Rows:
    """Returns the labels after joining the components of the candidate pairs that are near-duplicates."""
    apart = labels[pairs[0]] != labels[pairs[1]]
    left, right = pairs[0][apart], pairs[1][apart]
    found = shingles.near(left, right)
    return _joined(labels, left[found], right[found])


def _joined(labels: Rows, left: Rows, right: Rows) -> Rows:
    if not len(left):
        return labels
    edges = coo_array((np.ones(len(left)), (labels[left], labels[right])), shape=(len(labels), len(labels)))
    return connected_components(edges, directed=False)[1].astype(np.int64)[labels]


def _by_rare_shingle(shingles: Shingles, members: Rows) -> tuple[Rows, Rows]:
    """Returns (shingle, row) of the rarest shingles of each member: near-duplicates have one of them in common.

    Prefix filter (Chaudhuri, Ganti & Kaushik 2006; Xiao et al. 2008): Jaccard ≥ t means at least ⌈t|A|⌉ common
    shingles, and ⌈2t/(1+t)|A|⌉ for the smaller set A. So in any one order of all shingles, here the rarest of the
    bucket first, the first common one is among the first |A| − ⌈2t/(1+t)|A|⌉ + 1 of the smaller set and among the
    first |B| − ⌈t|B|⌉ + 1 of the other. A shingle that is in no prefix of the shorter kind links nobody.
    """
    columns = shingles.matrix[members].indices
    sizes = shingles.sizes[members]
    row = np.repeat(np.arange(len(members)), sizes)
    inverse, counts = np.unique(columns, return_inverse=True, return_counts=True)[1:]
    order = np.lexsort((columns, counts[inverse], row))
    rank = np.arange(len(columns)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    def prefix(share: float) -> Rows:
        lengths = sizes - np.ceil(share * sizes - 1e-9).astype(np.int64) + 1
        return order[rank < np.repeat(lengths, sizes)]

    kept = prefix(shingles.threshold)
    anchors = columns[prefix(2 * shingles.threshold / (1 + shingles.threshold))]
    kept = kept[np.isin(columns[kept], anchors)]
    return columns[kept].astype(np.int64), members[row[kept]]


def _explore(shingles: Shingles, labels: Rows, members: Rows) -> tuple[Rows, int]:
    """Returns the labels after a search through one large bucket, and the pairs left uncompared.

    Each text found is compared with those not found yet. Where all are alike the first finds the rest.
    """
    rest, budget = members, _SMALL * len(members)
    lefts, rights = [], []
    frontier: list[int] = []
    while len(rest) and budget >= 0:
        if not frontier:
            frontier, rest = [int(rest[0])], rest[1:]
        node = np.full(len(rest), frontier.pop())
        found = labels[rest] == labels[node]
        apart = np.flatnonzero(~found)
        found[apart] = shingles.near(node[apart], rest[apart])
        budget -= len(apart)
        lefts.append(node[found])
        rights.append(rest[found])
        frontier += rest[found].tolist()
        rest = rest[~found]
    left_out = len(rest) * (len(rest) - 1) // 2 + len(frontier) * len(rest)
    return _joined(labels, np.concatenate(lefts), np.concatenate(rights)), left_out


# ---- from words to numbers


class _Vocabulary(dict[str, int]):
    """Numbers words as they come, from 1."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self) + 1
        return self[word]


def _shingle_matrix(texts: Sequence[str]) -> tuple[csr_array, NDArray[np.uint64]]:
    """Returns the sets as a 0-1 matrix (N, shingles) and a hash of each shingle that depends on its words alone."""
    vocabulary = _Vocabulary()
    # "" splits into one empty word, so no text is without a shingle
    lengths = np.fromiter((text.count(" ") + 1 for text in texts), np.int64, len(texts))
    words = np.fromiter((vocabulary[word] for text in texts for word in text.split(" ")), np.int64, lengths.sum())
    last = np.cumsum(lengths) - 1
    following = np.append(words[1:], 0)[: len(words)]
    following[last] = 0
    used = np.ones(len(words), bool)
    used[last] = lengths == 1
    codes, columns = np.unique(words[used] << 32 | following[used], return_inverse=True)
    rows = np.repeat(np.arange(len(texts)), np.maximum(lengths - 1, 1))
    cells = (np.ones(len(rows), np.int32), (rows.astype(np.int32), columns.astype(np.int32)))
    matrix = coo_array(cells, shape=(len(texts), len(codes))).tocsr()
    matrix.data[:] = 1
    word_hashes = np.array([0, *map(_hash, vocabulary)], np.uint64)
    return matrix, _mix(_mix(word_hashes[codes >> 32]) + word_hashes[codes & 0xFFFFFFFF])


def _without_template(matrix: csr_array, reference: int) -> csr_array:
    """Returns the sets without the shingles of more than half of the first `reference` texts; none becomes empty."""
    if reference < TEMPLATE_TEXTS:
        return matrix
    counts = np.bincount(matrix.indices[: matrix.indptr[reference]], minlength=matrix.shape[1])
    kept = 2 * counts[matrix.indices] <= reference
    sizes = np.diff(matrix.indptr)
    kept |= np.repeat(np.add.reduceat(kept, matrix.indptr[:-1], dtype=np.int64) == 0, sizes)
    ends = np.append(0, np.cumsum(kept))[matrix.indptr]
    return csr_array((matrix.data[kept], matrix.indices[kept], ends.astype(matrix.indptr.dtype)), shape=matrix.shape)


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the values through the finaliser of MurmurHash3, a bijection of the 64-bit numbers."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))
