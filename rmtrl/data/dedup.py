"""Near-duplicate prompts: exact duplicates first, then MinHash LSH for candidates and exact Jaccard to decide.

Two prompts are near-duplicates when the Jaccard index |A ∩ B| / |A ∪ B| of their shingles reaches the threshold. A
shingle is two words in a row, of the text in NFKC form, casefolded and without punctuation; a text of one word has
that word. Symbols (+, €, 🙂) are words, and in scripts written without spaces (Han, Kana, Thai, Lao, Burmese, Khmer)
so is each character. Punctuation of formulas goes too: "3-4" equals "3/4".

Of 20 distinct texts or more, a shingle that more than half of them have is template: it is left out of the sets,
except where a text would have none left. System and developer messages are no part of a prompt that has other
messages. How candidates are found is in `shingles.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from rmtrl.data.messages import canonical, conversation_text
from rmtrl.data.reading.normal_form import TEMPLATE
from rmtrl.data.shingles import cluster_texts, normalize_text
from rmtrl.errors import DataError
from rmtrl.types import Conversation

_EXAMPLES = 3
_EXAMPLE_CHARS = 120
_BEFORE = 40  # characters an example shows before the first difference
_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True)
class Duplicates:
    """Which texts are the same and which nearly so.

    Args:
        cluster (`(N,)` int64): Cluster of each text, numbered in the order of first members; alone: its own cluster.
        exact (`int`): Texts that equal an earlier one after normalisation.
        near (`int`): Further texts that are not the first of their cluster: `N − exact − near` clusters in all.
        clusters (`int`): Clusters of two texts or more.
        largest (`int`): Texts in the largest cluster.
        skipped (`int`): Candidate pairs left uncompared to keep the cost linear; see [`find_duplicates`].
    """

    cluster: NDArray[np.int64]
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
        """A line where the data had clusters of its own, and where one of more than 10 prompts has most of them."""
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


def find_duplicates(
    texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0, progress: bool = True
) -> Duplicates:
    """Returns the clusters of equal and nearly equal texts: the connected components of Jaccard ≥ `threshold`.

    There are no false positives: every link is decided by the exact Jaccard index of the shingles that are not
    template (see the module). A pair at exactly the threshold is
    missed with probability below 1e-4, one above it with less (Leskovec, Rajaraman & Ullman, Mining of Massive
    Datasets, ch. 3). Clusters do not depend on the order of the texts.

    Buckets of more than 64 texts are divided by their rarest shingles, which loses no pair; where a part still holds
    more than 64, each text is compared with at most 64 others on average. What that leaves out is counted in
    `skipped`; it is 0 unless many texts follow one template and differ by just more than the threshold allows.

    Args:
        texts (`Sequence[str]`): The texts, `(N,)`.
        threshold (`float`): Jaccard index from which two texts are near-duplicates, from 0.5 to 1.
        seed (`int`): Seed of the hash functions.
        progress (`bool`): Whether to show progress on stderr.

    Raises:
        UsageError: If `threshold` is outside [0.5, 1].

    Example:

    ```python
    >>> find_duplicates(["What is the capital of Spain?", "what is the capital of Spain", "Why?"]).cluster.tolist()
    [0, 0, 1]
    ```
    """
    keys = [normalize_text(text) for text in texts]
    distinct = sorted(set(keys))  # sorted, so that nothing below depends on the order of the texts
    position = {key: index for index, key in enumerate(distinct)}
    labels, skipped = cluster_texts(distinct, threshold, seed, progress)
    of_text = labels[np.fromiter((position[key] for key in keys), np.int64, len(keys))]
    _, first, inverse, sizes = np.unique(of_text, return_index=True, return_inverse=True, return_counts=True)
    return Duplicates(
        cluster=np.argsort(np.argsort(first))[inverse].astype(np.int64),
        exact=len(keys) - len(distinct),
        near=len(distinct) - len(first),
        clusters=int((sizes > 1).sum()),
        largest=int(sizes.max(initial=0)),
        skipped=skipped,
    )


def deduplicate(dataset: Dataset, *, threshold: float = 0.8, seed: int = 0, progress: bool = True) -> Deduplication:
    """Returns the pairs with a `cluster_id` each, and the rows of one representative prompt a cluster.

    `cluster_id` is the smallest `prompt_id` of the cluster, whatever the order of the rows. Rows of one `prompt_id`
    share a cluster; where their prompts differ, the smallest text stands for all. The same question under another
    system message or with other tools is in one cluster, so that no split parts it, and has its own representative.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.
        seed (`int`): Seed of the hash functions.
        progress (`bool`): Whether to show progress on stderr.

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
    row_prompts, texts, settings = _prompts(dataset)
    prompts = sorted(texts)
    found = find_duplicates([texts[prompt] for prompt in prompts], threshold=threshold, seed=seed, progress=progress)
    first: dict[int, str] = {}
    cluster_of = {p: first.setdefault(c, p) for p, c in zip(prompts, found.cluster.tolist(), strict=True)}
    column = [cluster_of[prompt] for prompt in row_prompts]
    own = dataset["cluster_id"] if "cluster_id" in dataset.column_names else []
    replaced = sum(old not in (None, "", new) for old, new in zip(own, column, strict=False))
    plain = dataset.remove_columns([name for name in ("cluster_id",) if name in dataset.column_names])
    clustered = plain.add_column("cluster_id", column)
    stands_for: dict[tuple[str, str], str] = {}
    for prompt in prompts:
        stands_for.setdefault((cluster_of[prompt], settings[prompt]), prompt)
    representatives = set(stands_for.values())
    kept = [row for row, prompt in enumerate(row_prompts) if prompt in representatives]
    twins = [(cluster, prompt) for prompt, cluster in cluster_of.items() if prompt not in representatives]
    shown = dict(reversed(twins))  # the first twin of each cluster
    examples = [shorten_pair(texts[cluster], texts[shown[cluster]]) for cluster in sorted(shown)[:_EXAMPLES]]
    return Deduplication(clustered, clustered.select(kept), len(prompts), found, examples, replaced)


def with_clusters(dataset: Dataset, *, threshold: float = 0.8, seed: int = 0, progress: bool = True) -> Dataset:
    """Returns the pairs with the column `cluster_id`, the group that must not be divided between splits.

    Args:
        dataset (`Dataset`): Pairs in the normal form.
        threshold (`float`): Jaccard index from which two prompts are near-duplicates, from 0.5 to 1.
        seed (`int`): Seed of the hash functions.
        progress (`bool`): Whether to show progress on stderr.

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
    return deduplicate(dataset, threshold=threshold, seed=seed, progress=progress).clustered


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


def _prompts(dataset: Dataset) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Returns the prompt_id of each row, and the text and the setting (system messages, tools) of each prompt_id."""
    missing = [name for name in ("prompt_id", "prompt") if name not in dataset.column_names]
    if missing:
        raise DataError(f"got pairs without {', '.join(missing)}; wanted the normal form, see to_normal_form")
    of_row: list[str] = []
    texts: dict[str, str] = {}
    settings: dict[str, str] = {}
    template = [name for name in TEMPLATE if name in dataset.column_names]
    for batch in dataset.select_columns(["prompt_id", "prompt", *template]).with_format(None).iter(batch_size=1000):
        given = zip(*(batch[name] for name in template), strict=True) if template else repeat(())
        for prompt_id, prompt, variables in zip(batch["prompt_id"], batch["prompt"], given, strict=False):
            text = prompt_text(prompt)
            of_row.append(prompt_id)
            texts[prompt_id] = min(text, texts.get(prompt_id, text))
            setting = _setting(prompt, [value for value in variables if value])
            settings[prompt_id] = min(setting, settings.get(prompt_id, setting))
    return of_row, texts, settings


def _setting(prompt: Conversation, variables: list[Any]) -> str:
    told = [] if isinstance(prompt, str) else [m for m in prompt if m.get("role") in _INSTRUCTIONS]
    return canonical([*told, *variables]) if told or variables else ""
