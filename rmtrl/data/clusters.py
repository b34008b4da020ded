"""The same prompt, exactly or nearly: one notion of it for deduplication, splits and contamination.

Two prompts are near-duplicates when the Jaccard index |A ∩ B| / |A ∪ B| of their shingles reaches the threshold. A
shingle is two words in a row, of the text in NFKC form, casefolded and without punctuation; a text of one word has
that word. Symbols (+, €, 🙂) are words, and in scripts written without spaces (Han, Kana, Thai, Lao, Burmese, Khmer)
so is each character. Punctuation of formulas goes too: "3-4" equals "3/4".

Of 20 distinct texts or more, a shingle that more than half of them have is template: it is left out of the sets,
except where a text would have none left. System and developer messages are no part of a prompt that has other
messages.

Every pair that reaches the threshold is found: of two such sets A and B, |A| ≤ |B|, at least ⌈2t/(1+t)|A|⌉ ≥ ⌈t|B|⌉
shingles are common, so one of the rarest few of A is among the rarest few of B. The product of two sparse matrices of
rare shingles, in blocks, holds all candidates, and the exact index decides.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from rmtrl.data.messages import canonical, conversation_text
from rmtrl.data.normal_form import TEMPLATE
from rmtrl.data.splits import cells, with_column
from rmtrl.errors import UsageError
from rmtrl.types import Conversation

Rows = NDArray[np.int64]

TEMPLATE_TEXTS = 20
"""Texts from which a shingle of most of them counts as template."""

_BLOCK = 2**21  # candidates looked at once
_MOST = 4096  # candidates a text, on average, from which the rest is left out and counted
_EXAMPLES, _EXAMPLE_CHARS = 3, 120
_BEFORE = 40  # characters an example shows before the first difference
_INSTRUCTIONS = ("system", "developer")

# Lao and Thai, Burmese, Khmer, Kana, Han
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


@dataclass(frozen=True)
class Duplicates:
    """Which texts are the same and which nearly so.

    Args:
        cluster (`(N,)` int64): Cluster of each text, numbered in the order of first members; alone: its own cluster.
        exact (`int`): Texts that equal an earlier one after normalisation.
        near (`int`): Further texts that are not the first of their cluster: `N − exact − near` clusters in all.
        clusters (`int`): Clusters of two texts or more.
        largest (`int`): Texts in the largest cluster.
        skipped (`int`): Candidate pairs left uncompared to bound the cost; see [`find_duplicates`].
    """

    cluster: Rows
    exact: int
    near: int
    clusters: int
    largest: int
    skipped: int


@dataclass(frozen=True)
class Deduplication:
    """Pairs with their near-duplicate clusters.

    Args:
        clustered (`Dataset`): All rows, in order, with the column `cluster_id`.
        kept (`Dataset`): The rows of one prompt a cluster, the one whose `prompt_id` is the `cluster_id`, and of one
            for each other system message or set of tools in it.
        prompts (`int`): Distinct `prompt_id`s; `duplicates` counts these, not rows.
        duplicates ([`Duplicates`]): Clusters of the prompts.
        examples (`list[list[str]]`): The first two prompts of some clusters, cut around their first difference.
        replaced (`int`): Rows that came with another `cluster_id`.
    """

    clustered: Dataset
    kept: Dataset
    prompts: int
    duplicates: Duplicates
    examples: list[list[str]]
    replaced: int = 0

    @property
    def warnings(self) -> list[str]:
        """A line where one cluster of more than 10 prompts has most of them, and where the data had clusters."""
        largest, replaced = self.duplicates.largest, self.replaced
        said = {
            f"one cluster holds {largest:,} of {self.prompts:,} prompts: a template they share? raise --threshold":
            largest > max(10, self.prompts / 2),
            f"cluster_id of the data is replaced by the clusters found here ({replaced:,} rows had another)": replaced,
        }  # fmt: skip
        return [line for line, holds in said.items() if holds]

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts, ready for JSON: `n`, `kept` and `dropped` are rows, the others prompts."""
        found, n, kept = self.duplicates, len(self.clustered), len(self.kept)
        return {
            "n": n, "prompts": self.prompts, "exact": found.exact, "near": found.near, "clusters": found.clusters,
            "largest": found.largest, "kept": kept, "dropped": n - kept, "skipped_comparisons": found.skipped,
            "examples": self.examples, "warnings": self.warnings,
        }  # fmt: skip


def find_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> Duplicates:
    """Returns the clusters of equal and nearly equal texts: the connected components of Jaccard ≥ `threshold`.

    Every link is decided by the exact Jaccard index of the shingles that are not template (see the module), and none
    is missed while there are at most 4,096 candidates a text on average; what is left out beyond that, where many
    short texts are of the same few words, is counted in `skipped`. Clusters do not depend on the order of the texts.

    Args:
        texts (`Sequence[str]`): The texts, `(N,)`.
        threshold (`float`): Jaccard index from which two texts are near-duplicates, from 0.5 to 1.

    Raises:
        UsageError: If `threshold` is outside [0.5, 1].

    Example:

    ```python
    >>> find_duplicates(["What is the capital of Spain?", "what is the capital of Spain", "Why?"]).cluster.tolist()
    [0, 0, 1]
    ```
    """
    distinct, of_text = np.unique(np.array([normalize_text(text) for text in texts], object), return_inverse=True)
    labels, skipped = linked(shingle_sets(distinct.tolist()), threshold)
    _, first, inverse, sizes = np.unique(labels[of_text], return_index=True, return_inverse=True, return_counts=True)
    return Duplicates(
        cluster=np.argsort(np.argsort(first))[inverse].astype(np.int64),
        exact=len(texts) - len(distinct),
        near=len(distinct) - len(first),
        clusters=int((sizes > 1).sum()),
        largest=int(sizes.max(initial=0)),
        skipped=skipped,
    )


def deduplicate(dataset: Dataset, *, threshold: float = 0.8) -> Deduplication:
    """Returns the pairs with a `cluster_id` each, and the rows of one representative prompt a cluster.

    `cluster_id` is the smallest `prompt_id` of the cluster, whatever the order of the rows. Rows of one `prompt_id`
    share a cluster; where their prompts differ, the smallest text stands for all. The same question under another
    system message or with other tools is in one cluster, so that no split parts it, and has its own representative.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.

    Raises:
        DataError: If the columns `prompt_id` or `prompt` are missing.
        UsageError: If `threshold` is outside [0.5, 1].

    Example:

    ```python
    >>> result = deduplicate(read_preferences("harmless-base-test.jsonl.gz"))
    >>> result.prompts, result.duplicates.near, len(result.clustered), len(result.kept)
    (2310, 7, 2312, 2304)
    ```
    """
    rows = _prompts(dataset)
    prompts = rows.sort_values(["prompt_id", "text"]).drop_duplicates("prompt_id").set_index("prompt_id")
    prompts["setting"] = rows.sort_values("setting").drop_duplicates("prompt_id").set_index("prompt_id").setting
    found = find_duplicates(prompts.text, threshold=threshold)
    prompts["cluster"] = prompts.index[np.unique(found.cluster, return_index=True)[1]][found.cluster]
    stands = ~prompts.duplicated(["cluster", "setting"])
    clustered, replaced = with_column(dataset, "cluster_id", prompts.cluster[rows.prompt_id].tolist())
    kept = clustered.select(np.flatnonzero(stands[rows.prompt_id]))
    twins = prompts[~stands].drop_duplicates("cluster").sort_values("cluster").head(_EXAMPLES)
    examples = [
        shorten_pair(prompts.text[cluster], text) for cluster, text in zip(twins.cluster, twins.text, strict=True)
    ]
    return Deduplication(clustered, kept, len(prompts), found, examples, replaced)


def with_clusters(dataset: Dataset, *, threshold: float = 0.8) -> Dataset:
    """Returns the pairs with the column `cluster_id`, the group that must not be divided between splits.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.

    Raises:
        DataError: If the columns `prompt_id` or `prompt` are missing.
        UsageError: If `threshold` is outside [0.5, 1].

    Example:

    ```python
    >>> pairs = Dataset.from_dict({"prompt_id": ["b", "a", "c"], "prompt": ["Why is it?", "why is it", "When?"]})
    >>> with_clusters(pairs)["cluster_id"][:]
    ['a', 'a', 'c']
    ```
    """
    return deduplicate(dataset, threshold=threshold).clustered


# ---- texts


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


def prompt_text(conversation: Conversation) -> str:
    """Returns the text of a conversation: a string as it is, the contents and calls of messages one a line.

    System and developer messages, which many prompts share, are left out unless there are no others.

    Example:

    ```python
    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    'Why?'
    ```
    """
    if isinstance(conversation, str):
        return conversation
    asked = [message for message in conversation if message.get("role") not in _INSTRUCTIONS]
    return conversation_text(asked or conversation)


def shorten_pair(first: str, second: str) -> list[str]:
    """Returns two texts on one line each, cut to 120 characters around the first difference other than in case."""
    lines = [" ".join(text.split()) for text in (first, second)]
    differing = (at for at, (a, b) in enumerate(zip(*lines, strict=False)) if a.casefold() != b.casefold())
    at = next(differing, min(map(len, lines)))
    if len(set(map(str.casefold, lines))) == 1:
        at = 0
    return [_window(line, at) for line in lines]


def _window(line: str, at: int) -> str:
    start = max(0, min(at - _BEFORE, len(line) - _EXAMPLE_CHARS + 1))
    cut = line[start:] if start == 0 else "…" + line[start:]
    return cut if len(cut) <= _EXAMPLE_CHARS else cut[: _EXAMPLE_CHARS - 1] + "…"


def _prompts(dataset: Dataset) -> pd.DataFrame:
    """Returns the prompt_id, the text and the setting (system messages, tools) of each row."""
    template = [name for name in TEMPLATE if name in dataset.column_names]
    read = [
        (prompt_id, prompt_text(prompt), _setting(prompt, [value for value in variables if value]))
        for prompt_id, prompt, *variables in cells(dataset, "prompt_id", "prompt", *template)
    ]
    return pd.DataFrame(read, columns=["prompt_id", "text", "setting"], dtype=object)


def _setting(prompt: Conversation, variables: list[Any]) -> str:
    told = [] if isinstance(prompt, str) else [m for m in prompt if m.get("role") in _INSTRUCTIONS]
    return canonical([*told, *variables]) if told or variables else ""


# ---- sets


def shingle_sets(texts: Sequence[str], reference: int | None = None) -> csr_array:
    """Returns the shingles of normalised texts without template, as a 0-1 matrix, the rarest in the first columns.

    Args:
        texts (`Sequence[str]`): Texts from [`normalize_text`].
        reference (`int`, *optional*): Number of first texts that tell what is template; all by default.
    """
    numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
    # "" splits into one empty word, so no text is without a shingle
    lengths = np.array([text.count(" ") + 1 for text in texts], np.int64)
    words = np.fromiter((numbers[word] for text in texts for word in text.split(" ")), np.int64, lengths.sum())
    last = np.cumsum(lengths) - 1
    codes = words << 32 | np.append(words[1:], 0)[: len(words)]
    codes[last] = words[last] << 32
    used = np.ones(len(words), bool)
    used[last] = lengths == 1
    _, columns, counts = np.unique(codes[used], return_inverse=True, return_counts=True)
    # the rarest shingle is the first column; counts of 16 bits are sorted in one pass
    place = np.empty(len(counts), np.int32)
    place[np.argsort(np.minimum(counts, 2**15 - 1).astype(np.int16), kind="stable")] = np.arange(len(counts))

    ends = np.append(0, np.cumsum(np.maximum(lengths - 1, 1))).astype(np.int32)
    sets = csr_array((np.ones(len(columns), np.int32), place[columns], ends), shape=(len(texts), len(counts)))
    sets.sum_duplicates()
    sets.data[:] = 1
    return _without_template(sets, len(texts) if reference is None else reference)


def _without_template(sets: csr_array, reference: int) -> csr_array:
    if reference < TEMPLATE_TEXTS:
        return sets
    plain = 2 * sets[:reference].sum(axis=0) <= reference
    bare = sets @ plain.astype(np.int32) == 0
    return _where(sets, plain[sets.indices] | np.repeat(bare, np.diff(sets.indptr)))


def are_near(sets: csr_array, left: Rows, right: Rows, threshold: float) -> NDArray[np.bool_]:
    """Returns for each pair of rows whether its exact Jaccard index reaches the threshold, `(P,)`."""
    sizes = np.diff(sets.indptr)
    a, b = sizes[left], sizes[right]
    found = np.minimum(a, b) >= threshold * np.maximum(a, b) - 1e-9  # J <= min / max
    for chunk in np.array_split(np.flatnonzero(found), 1 + len(left) // 200_000):
        shared = sets[left[chunk]].multiply(sets[right[chunk]]).sum(axis=1)
        # the tolerance keeps a pair at exactly the threshold; fractions of set sizes lie much further apart
        found[chunk] = shared >= threshold * (a[chunk] + b[chunk] - shared) - 1e-9
    return found


def linked(sets: csr_array, threshold: float, sides: NDArray[np.bool_] | None = None) -> tuple[Rows, int]:
    """Returns the component of each set in the graph of all near pairs, `(N,)`, and the candidates left out.

    Args:
        sets (`csr_array`): From [`shingle_sets`].
        threshold (`float`): Jaccard index from which two sets are linked, from 0.5 to 1.
        sides (`(2, N)` bool, *optional*): Links go from a set of the first side to one of the second only. So a
            component of more than one set is of sets that are near one of the other side.

    Raises:
        UsageError: If `threshold` is outside [0.5, 1].
    """
    if not 0.5 <= threshold <= 1:
        raise UsageError(f"got threshold {threshold}; wanted a Jaccard index from 0.5 to 1, for example 0.8")
    few, more = (_rarest(sets, share) for share in (2 * threshold / (1 + threshold), threshold))
    known = more.sum(axis=0) > 1  # a shingle of one set links nobody
    few, more = few[:, known], more[:, known]
    labels: Rows = np.arange(sets.shape[0])
    left_out, budget = 0, _MOST * len(labels)
    sides = np.ones((1, len(labels)), bool) if sides is None else sides
    with tqdm(total=sides.sum(), desc="Finding near-duplicates", delay=1) as bar:
        for one, other in zip(sides, sides[::-1], strict=True):
            rows, partners = np.flatnonzero(one), np.flatnonzero(other)
            holders = more[partners].T.tocsr()
            while len(rows) and budget >= 0:
                open = _undecided(more, labels)
                costs = np.cumsum(few[rows] @ (np.diff(holders.indptr) * open))
                n = max(1, int(np.searchsorted(costs, _BLOCK, side="right")))
                block = few[rows[:n]]
                found = (_where(block, open[block.indices]) @ holders).tocoo()
                labels = _joined(sets, threshold, labels, rows[found.row], partners[found.col])
                bar.update(n)
                rows, budget = rows[n:], budget - costs[n - 1]
            left_out += int(costs[-1] - costs[n - 1]) if len(rows) else 0
    return labels, left_out


def _rarest(sets: csr_array, share: float) -> csr_array:
    """Returns the sets cut to their rarest shingles, one of which is among any `share` of the set."""
    sizes = np.diff(sets.indptr)
    rank = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], sizes)
    kept = rank < np.repeat(sizes - np.ceil(share * sizes - 1e-9) + 1, sizes)
    return _where(sets, kept)


def _where(sets: csr_array, kept: NDArray[np.bool_]) -> csr_array:
    cut = sets.copy()
    cut.data = kept.astype(np.int32)
    cut.eliminate_zeros()
    return cut


def _undecided(sets: csr_array, labels: Rows) -> NDArray[np.bool_]:
    """Returns which shingles are of sets in several components; the others have nothing to tell any more."""
    holders = sets.tocsc()
    of_holders, starts = labels[holders.indices], holders.indptr[:-1]
    return np.asarray(np.minimum.reduceat(of_holders, starts) < np.maximum.reduceat(of_holders, starts))


def _joined(sets: csr_array, threshold: float, labels: Rows, left: Rows, right: Rows) -> Rows:
    """Returns the labels after joining the components of the candidate pairs that are near-duplicates."""
    apart = labels[left] != labels[right]
    left, right = left[apart], right[apart]
    near = are_near(sets, left, right, threshold)
    ends = labels[left[near]], labels[right[near]]
    edges = coo_array((np.ones(near.sum()), ends), shape=(len(labels), len(labels)))
    return connected_components(edges, directed=False)[1].astype(np.int64)[labels]
