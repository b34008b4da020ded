"""A reward model as a server holds it: text to tokens, tokens to scores, and what it says of itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtrl import __version__
from rmtrl.calibration.calibration import FILE as CALIBRATION
from rmtrl.calibration.calibration import Calibration, read_calibration
from rmtrl.data.messages import half_character
from rmtrl.data.templates import TEMPLATE_ERRORS, rendered
from rmtrl.errors import DataError, RenderingError, RmtrlError
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.models import check_tokens
from rmtrl.reward.laplace import FILE as LAPLACE
from rmtrl.reward.laplace import LaplaceScorer
from rmtrl.reward.rendering import Rendering, starts_twice
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.uncertainty import HeadEnsembleScorer, UncertainScorer
from rmtrl.types import shorten

Floats = NDArray[np.float64]

_PROBE = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


class Rendered(str):
    """Text that another program has rendered: what the chat template writes at its start and end is there or is added.

    Args:
        text (`str`): The text.
        special (`bool`, *optional*): Whether the tokenizer adds its special tokens, where the program says so.
    """

    special: bool | None

    def __new__(cls, text: str, special: bool | None = None) -> "Rendered":
        own = super().__new__(cls, text)
        own.special = special
        return own


@dataclass(frozen=True)
class Scored:
    """Scores of N conversations, bounds where the model has them, and the tokens that were read.

    Args:
        scores (`(N,)` float64): What [`RewardScorer`] gives.
        bounds (`(2, N)` float64, *optional*): Lower and upper ones.
        n_tokens (`list[int]`): Tokens of each conversation.
    """

    scores: Floats
    bounds: Floats | None
    n_tokens: list[int]

    def part(self, start: int, stop: int) -> "Scored":
        """Returns the scores of some of the conversations."""
        bounds = None if self.bounds is None else self.bounds[:, start:stop]
        return Scored(self.scores[start:stop], bounds, self.n_tokens[start:stop])


class ServedModel:
    """
    A reward model to serve. It is not safe to use from several threads at once: a [`Batcher`] owns it.

    Args:
        scorer ([`RewardScorer`]):
            The model.
        name (`str`, *optional*, defaults to `"reward model"`):
            What answers call it.
        calibration ([`~rmtrl.calibration.calibration.Calibration`], *optional*):
            Gives calibrated rewards and probabilities.
        uncertain ([`UncertainScorer`], *optional*):
            Gives bounds, on the same model.
        fingerprint (`dict`, *optional*):
            From [`~rmtrl.evaluation.fingerprints.model_fingerprint`].
        max_tokens (`int`, *optional*):
            Longest conversation to take; the model's own limit by default.

    Example:

    ```python
    >>> served = ServedModel.from_pretrained("outputs/tiny/rm")
    >>> served.score(served.encode(["Hi. Hello!"])).scores.shape
    (1,)
    ```
    """

    def __init__(
        self, scorer: RewardScorer, *, name: str = "reward model", calibration: Calibration | None = None,
        uncertain: UncertainScorer | None = None, fingerprint: dict[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.scorer = scorer
        self.name = name
        self.calibration = calibration
        self.uncertain = uncertain
        self.fingerprint = fingerprint
        self.max_tokens = min(filter(None, (max_tokens, scorer.most_tokens)), default=None)
        tokenizer = scorer.tokenizer
        self._start, self._end = tokenizer.bos_token or tokenizer.cls_token or "", tokenizer.eos_token or ""
        probe = rendered(tokenizer, _PROBE) if tokenizer.chat_template else None
        # whether the chat template writes the start and the end
        self._template = probe and (self._has_start(probe), self._has_end(probe))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, name: str | None = None, max_tokens: int | None = None, **settings: Any
    ) -> "ServedModel":
        """Returns the model of a checkpoint folder or hub id with what stands beside it: calibration, posterior.

        Args:
            path (`str` or `Path`): Folder or hub id.
            name, max_tokens (*optional*): As in [`ServedModel`]; the name is the path by default.
            settings: As in [`RewardScorer.from_pretrained`].

        Raises:
            ModelError: If there is no reward model.
            DataError: If a calibration stands there that is of another model.
        """
        scorer = RewardScorer.from_pretrained(path, progress=False, **settings)
        fingerprint, folder = model_fingerprint(path), Path(path)
        uncertain: UncertainScorer | None = HeadEnsembleScorer(scorer) if scorer.head.members > 1 else None
        if (folder / LAPLACE).is_file():
            uncertain = LaplaceScorer.load(scorer, folder)
        found = read_calibration(folder, model_fingerprint=fingerprint) if (folder / CALIBRATION).is_file() else None
        return cls(
            scorer, name=name or str(path), calibration=found, uncertain=uncertain, fingerprint=fingerprint,
            max_tokens=max_tokens,
        )  # fmt: skip

    def encode(self, conversations: Sequence[Any]) -> list[tuple[Any, int]]:
        """Returns each conversation as [`ServedModel.score`] takes it, with its number of tokens.

        Args:
            conversations: Messages and text as [`RewardScorer`] takes them, [`Rendered`] text, or token ids.

        Raises:
            DataError: If one is empty, longer than the model holds, or cannot be tokenised.
            RenderingError: If it cannot be rendered as in training.
        """
        for index, given in enumerate(conversations):
            if not isinstance(given, str) and not given:
                raise DataError(f"conversation {index} is empty; wanted messages, text or token ids")
        try:
            own = [self._own_ids(given) if isinstance(given, str) else given for given in conversations]
            encoded = self.scorer.encode_all(own)
        except RmtrlError:
            raise
        except (*TEMPLATE_ERRORS, RecursionError) as error:  # of a template or a tokenizer, over what was sent
            if (place := half_character(conversations)) is not None:
                raise DataError(f"conversation {place} holds half a character, a lone surrogate; mend it") from error
            raise DataError(f"a conversation cannot be tokenised: {shorten(str(error) or repr(error))}") from error
        for index, ids in enumerate(encoded):
            if len(ids) > (self.max_tokens or len(ids)):
                got = f"conversation {index} has {len(ids):,} tokens"
                raise DataError(f"{got}; wanted at most {self.max_tokens:,} (nothing is cut)")
        check_tokens(self.scorer.model, encoded, "conversation", self.scorer.tokenizer)
        by_answer = self.scorer.head.pooling == "mean"  # where the answer starts is read from the messages
        return [(given if by_answer else ids, len(ids)) for given, ids in zip(own, encoded, strict=True)]

    def _own_ids(self, text: str) -> Any:
        """Returns the token ids of text of which it is known what to add; else the text, which the scorer knows."""
        rendering, has_start = self.scorer.rendering, self._has_start(text)
        if rendering is not None and rendering.start_twice:
            return str(text)
        told = text.special if isinstance(text, Rendered) else None
        starts, ends = False, True  # what belongs there
        if isinstance(text, Rendered) and self._template:
            starts, ends = self._template
        elif not has_start and told is None:
            return str(text)
        whole = text + self._end if ends and not self._has_end(text) else text
        add = starts and not has_start if told is None else told
        ids = list(self.scorer.tokenizer(text=str(whole), add_special_tokens=add, verbose=False)["input_ids"])
        if ids[:2] == [self.scorer.tokenizer.bos_token_id] * 2:
            raise RenderingError(starts_twice(self.scorer.tokenizer, "a text starts"))
        return ids

    def _has_start(self, text: str) -> bool:
        return bool(self._start) and text.startswith(self._start)

    def _has_end(self, text: str) -> bool:
        return text.rstrip().endswith(self._end)

    def score(self, encoded: Sequence[tuple[Any, int]]) -> Scored:
        """Returns the scores of conversations that [`ServedModel.encode`] made ready."""
        conversations = [own for own, _ in encoded]
        scores, bounds = self.scorer.score(conversations).astype(np.float64), None
        if self.uncertain is not None and conversations:
            half = self.uncertain.k * self.uncertain.distribution(conversations).std
            bounds = np.stack([scores - half, scores + half])
        return Scored(scores, bounds, [n for _, n in encoded])

    def info(self) -> dict[str, Any]:
        """Returns what a client may know of the model."""
        scorer, calibration = self.scorer, self.calibration
        rendering = scorer.rendering or Rendering.of(scorer.tokenizer, max_length=None)
        return {
            "schema": "rmtrl/served-model/1", "model": self.name, "fingerprint": self.fingerprint,
            "template": rendering.chat_template_sha256, "head": asdict(scorer.head),
            "temperature": None if calibration is None else calibration.reward.scale,
            "max_tokens": self.max_tokens, "dtype": str(scorer.model.dtype).removeprefix("torch."),
            "version": __version__,
        }  # fmt: skip
