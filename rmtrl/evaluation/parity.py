"""Whether a served score is the trainer's, pair by pair, and where it is not, what was probably done to the text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit

from rmtrl.errors import DataError
from rmtrl.evaluation.probes import unended
from rmtrl.evaluation.scoring import SIDES, Floats, conversation
from rmtrl.metrics import mean_estimate
from rmtrl.types import Estimate, checked_scores

SHAPES: dict[str, Callable[[Floats], Floats]] = {"": lambda scores: scores, "sigmoid": expit}
_CUTS: dict[str, Callable[[list[int], int], list[int]]] = {
    "front": lambda row, n: row[-n:], "end": lambda row, n: row[:n], "middle": lambda row, n: [*row[: n - 1], row[-1]],
}  # fmt: skip
_ROUNDED = 3.0  # times what 16 bits do here, a server in 16 bits may be off
_PROBED = 64


@dataclass(frozen=True)
class Parity:
    """Served scores against a trainer's.

    Args:
        n (`int`): Pairs compared.
        not_held (`int`): Pairs left out, which the model does not hold.
        tolerance (`float`): Largest difference of scores that are taken for equal.
        largest_difference (`float`): That was found.
        flipped ([`Estimate`]): Share of the pairs whose order is another.
        causes (`tuple[str, ...]`): What explains the difference, if anything does.
        unexplained (`float`): Largest difference from what the causes give.
    """

    schema: ClassVar[str] = "rmtrl/parity/1"
    json_also: ClassVar[tuple[str, ...]] = ("equal",)
    n: int
    not_held: int
    tolerance: float
    largest_difference: float
    flipped: Estimate
    causes: tuple[str, ...]
    unexplained: float

    @property
    def equal(self) -> bool:
        """Whether all scores are equal within the tolerance."""
        return self.largest_difference <= self.tolerance


def compare(
    trained: Any, served: Any, pairs: Sequence[Mapping[str, Any]], *, tolerance: float = 1e-5,
    rounded: Callable[[str], Any] | None = None, other: str = "",
) -> Parity:  # fmt: skip
    """Returns how far the scores of a server are from those of the model that it should have.

    The trainer's model also scores what a server might have made of the texts: with a second start token, without the
    end token, cut, each also through a sigmoid. What comes nearest and explains nine tenths of the difference is
    named; what is left, or the whole, is put down to 16 bits where it is no more than three times what these do here.

    Args:
        trained ([`~rmtrl.reward.scorer.ModelScorer`]): The model, in float32.
        served ([`~rmtrl.types.Scorer`]): The server.
        pairs ([`~datasets.Dataset`] or rows): Pairs with a prompt.
        tolerance (`float`): Difference up to which scores are equal.
        rounded (`Callable`, *optional*): Loads the model in a type, `"float16"` or `"bfloat16"`.
        other (`str`, *optional*): The sha256 of what is served, where it is known to be another model.

    Raises:
        DataError: If the model holds none of the pairs.
        ModelError: If the server fails.
    """
    whole = [[conversation(row, side) for side in SIDES] for row in pairs]
    held = trained.holds([own for pair in whole for own in pair]).reshape(-1, 2).all(axis=1)
    kept = [own for pair, fits in zip(whole, held, strict=True) if fits for own in pair]
    if not kept:
        raise DataError(f"none of the {len(whole):,} pairs can be compared: the model holds none of them")
    ids = trained.encode_all(kept)
    own, theirs = (checked_scores(scorer.score(kept), len(kept)) for scorer in (trained, served))
    off = _off(own, theirs)
    prompts = [row["prompt_id"] for row, fits in zip(pairs, held, strict=True) if fits]
    flips = np.sign(_margins(own)) != np.sign(_margins(theirs))
    causes, left = ((), off) if off <= tolerance else _causes(trained, ids, own, theirs, tolerance, rounded)
    if other and off > tolerance:
        causes = (f"another model is served (sha256 {other[:12]}…)", *causes)
    flipped = mean_estimate(flips, prompts)
    return Parity(len(prompts), int((~held).sum()), tolerance, off, flipped, causes, left)


def _off(own: Floats, theirs: Floats) -> float:
    """Returns the largest difference."""
    return float(np.abs(theirs - own).max())


def _margins(scores: Floats) -> Floats:
    return scores[::2] - scores[1::2]


def _causes(
    trained: Any, ids: Sequence[list[int]], own: Floats, theirs: Floats, tolerance: float, rounded: Any
) -> tuple[tuple[str, ...], float]:
    """Returns what explains that scores differ, and the largest difference that is left."""
    off = _off(own, theirs)
    tried = [
        (_off(shape(scores), theirs), tuple(filter(None, (name, how))))
        for how, scores in [("", own), *_changed(trained, ids, own, theirs, tolerance)]
        for name, shape in SHAPES.items()
    ]
    left, causes = min(tried, key=lambda one: one[0])
    if left > max(tolerance, off / 10):
        left, causes = off, ()
    if left > tolerance and rounded is not None:
        few = ids[:_PROBED]
        for name in ("float16", "bfloat16"):
            if left <= _ROUNDED * _off(own[: len(few)], checked_scores(rounded(name).score_ids(few), len(few))):
                return (*causes, f"16 bits ({name})"), left
    return causes, left


def _changed(
    trained: Any, ids: Sequence[list[int]], own: Floats, theirs: Floats, tolerance: float
) -> Iterator[tuple[str, Floats]]:
    """Yields what a server might have made of texts, and the model's scores of it."""
    tokenizer, most = trained.tokenizer, trained.most_tokens or max(map(len, ids)) + 1
    start = next((i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if i is not None), None)
    if start is not None:
        yield "a second start token", _scores(trained, [[start, *row][:most] for row in ids])
    yield "no end token", _scores(trained, [unended(row, tokenizer.eos_token_id) or row[:-1] or row for row in ids])
    lengths = np.array([len(row) for row in ids])
    differ = [place for place in lengths.argsort().tolist() if _off(own[[place]], theirs[[place]]) > tolerance]
    row, score = ids[differ[0]], theirs[differ[0]]  # the shortest that was cut tells where
    kept = [(side, n) for side in _CUTS for n in range(1, len(row))]
    if kept:
        side, n = kept[int(np.abs(_scores(trained, [_CUTS[side](row, n) for side, n in kept]) - score).argmin())]
        cut = [_CUTS[side](row, n) if len(row) > n else row for row in ids]
        yield f"truncation to {n} tokens", _scores(trained, cut)


def _scores(trained: Any, ids: Sequence[Sequence[int]]) -> Floats:
    return checked_scores(trained.score_ids(ids), len(ids))
