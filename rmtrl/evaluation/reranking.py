"""Best of n with any scorer: the candidate that it scores highest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rmtrl.errors import DataError
from rmtrl.evaluation.scoring import joined, score_conversations
from rmtrl.types import Conversation, Scorer


@dataclass(frozen=True)
class Ranked:
    """The candidates of one prompt with their scores.

    Args:
        candidates (`tuple`): As given.
        scores (`(N,)` float64): One a candidate; NaN where the scorer does not hold it.
        index (`int`, *optional*): Place of the best, the first of equals; `None` where none could be scored.
    """

    candidates: tuple[Conversation, ...]
    scores: NDArray[np.float64]
    index: int | None

    @property
    def best(self) -> Conversation | None:
        """The best candidate, `None` where none could be scored."""
        return None if self.index is None else self.candidates[self.index]


def best_of_n(
    scorer: Scorer, prompts: Sequence[Conversation], candidates: Sequence[Sequence[Conversation]]
) -> list[Ranked]:
    """Returns the candidates of each prompt with their scores and the best of them.

    Choosing the best of n spends log n − (n − 1)/n nats of KL; how many the scorer bears is what
    [`~rmtrl.evaluation.overoptimization.measure_overoptimization`] says.

    Args:
        scorer ([`~rmtrl.types.Scorer`]): Anything that scores conversations.
        prompts (`Sequence[Conversation]`): P prompts, message lists or strings.
        candidates (`Sequence[Sequence[Conversation]]`): Candidates of each prompt; a string after a message list
            becomes the assistant's message.

    Raises:
        DataError: If a prompt has no candidates, there are not as many lists as prompts, or a candidate does not fit
            its prompt.
        ModelError: If the scorer returns another number of scores, or one that is no finite number.

    Example:

    ```python
    >>> best_of_n(scorer, ["Is the sky blue?"], [[" Yes.", " No."]])[0].best
    ' Yes.'
    ```
    """
    if len(prompts) != len(candidates):
        raise DataError(f"got {len(prompts)} prompts and {len(candidates)} lists of candidates; wanted as many")
    empty = [index for index, own in enumerate(candidates) if not len(own) or isinstance(own, str)]
    if empty:
        raise DataError(f"prompt {empty[0]} has no list of candidates; wanted one candidate or more")
    counts = [len(own) for own in candidates]
    scores = score_conversations(
        scorer, [joined(prompt, own) for prompt, some in zip(prompts, candidates, strict=True) for own in some]
    )
    parts = np.split(scores, np.cumsum(counts)[:-1])
    return [Ranked(tuple(own), part, _best(part)) for own, part in zip(candidates, parts, strict=True)]


def _best(scores: NDArray[np.float64]) -> int | None:
    return None if np.isnan(scores).all() else int(np.nanargmax(scores))
