"""Scores conversations with a trained reward model, the same number whatever stands beside them in the batch."""

import logging
import sys
from collections.abc import Iterable, Sequence, Sized
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmtrl.errors import DataError, ModelError, RenderingError, UsageError
from rmtrl.models import (
    base_model,
    beyond_embeddings,
    check_tokens,
    device_or_best,
    inside,
    load_tokenizer,
    position_limit,
    whole,
)
from rmtrl.reward.batching import Costs, plan_jobs
from rmtrl.reward.checkpoint import load_reward_model, stored_head, stored_rendering
from rmtrl.reward.heads import Head, compute_head_in_float32, last_layers, reads_last_token, set_dropout
from rmtrl.reward.rendering import Rendering, all_encoded, completion_starts, is_encoded, try_encode
from rmtrl.reward.scoring import kinds_of_rows, run_job, why_padding_differs, why_sharing_differs
from rmtrl.reward.shared_prefix.forward import cell_cost, why_not_shared
from rmtrl.types import Conversation, Scorer, checked_scores, shorten

logger = logging.getLogger(__name__)

_CALL_TOKENS = {"cpu": 32.0, "accelerator": 2048.0}  # what a pass takes before its first token, in tokens

_LOADING = ("device", "dtype", "trust_remote_code", "quantization_config")


class ModelScorer(Scorer):
    """What scorers with a model in this process share: its limit, batches up to a token budget, a bar.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's.
        batch_tokens (`int`): Tokens in one forward pass, padding included.
        batch_size (`int`, *optional*): Largest number of rows in one forward pass.
        progress (`bool`): Whether long passes show a bar on stderr.
        rendering ([`Rendering`], *optional*): How the model's training data was rendered.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, batch_tokens: int, batch_size: int | None, progress: bool,
        rendering: Rendering | None = None,
    ) -> None:  # fmt: skip
        if rendering is not None:
            rendering.check(tokenizer)
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self.progress = progress
        self.rendering = rendering

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest conversation that can be scored, `None` where there is no limit."""
        raise NotImplementedError

    @property
    def renders(self) -> dict[str, Any]:
        """What the tokenizer makes of conversations, ready for JSON; see [`Rendering`]."""
        return asdict(Rendering.of(self.tokenizer, max_length=None))

    def try_encode(self, conversations: Sequence[Conversation]) -> list[list[int] | RenderingError]:
        """Returns the token ids of each conversation, or why there are none, rendered as in training."""
        start_twice = self.rendering is not None and self.rendering.start_twice
        return try_encode(self.tokenizer, self._completed(conversations), start_twice=start_twice)

    def _completed(self, conversations: Sequence[Conversation]) -> Sequence[Conversation]:
        """Returns the conversations with what the training set's always had besides their messages."""
        rendering = self.rendering
        return conversations if rendering is None else [rendering.completed(own) for own in conversations]

    def encode(self, conversation: Conversation) -> list[int]:
        """Returns the token ids that are scored; see [`rmtrl.reward.rendering.encode_all`]."""
        return self.encode_all([conversation])[0]

    def encode_all(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Returns the token ids of each conversation, as they are scored."""
        return all_encoded(self.try_encode(conversations))

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations can be rendered and are within the model's positions, `(N,)`."""
        limit, rendered = self.most_tokens or sys.maxsize, self.try_encode(conversations)
        return np.array([isinstance(ids, list) and len(ids) <= limit for ids in rendered], dtype=np.bool_)

    def _check_lengths(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raises for a sequence that is empty or longer than the model's positions."""
        limit = self.most_tokens or sys.maxsize
        for index, ids in enumerate(sequences):
            if not len(ids):
                raise DataError(f"conversation {index} has no tokens; there is nothing to score")
            if len(ids) > limit:
                raise DataError(
                    f"conversation {index} has {len(ids):,} tokens, the model holds {limit:,}; shorten it or leave it "
                    "out (nothing is truncated)"
                )

    def _bar(self, jobs: Sized) -> Iterable[Any]:
        """Returns the jobs, with a bar where they are many."""
        return tqdm(jobs, desc="Scoring", unit="batch", disable=not self.progress or len(jobs) < 20)


class RewardScorer(ModelScorer):
    """
    Scores conversations with a reward model: one float32 number each, in the order given.

    A shared prompt is computed once: two answers stand in one row behind a mask, many over the prompt's cache, by
    whichever takes the least modelled time. Rows of like length stand together up to a token budget, so padding is
    small. Batches follow from the texts, not from their order; in float32 a score does not depend on them (within
    1e-5). Nothing is truncated.

    Args:
        model (`str`, `Path`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Folder or hub id of a reward model or adapter, or a sequence classification model with one label.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer the model was trained with; the folder's own where there is one.
        rendering ([`Rendering`], *optional*):
            How the model's training data was rendered; the tokenizer is checked against it.
        head ([`Head`], *optional*):
            What the model's outputs mean, where it is not the standard head.
        batch_tokens (`int`, *optional*, defaults to `8192`):
            Tokens in one forward pass, padding included.
        batch_size (`int`, *optional*):
            Largest number of rows in one forward pass.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Whether tokens that several conversations start with are computed once, where the model can.
        progress (`bool`, *optional*, defaults to `True`):
            Whether long passes show a bar on stderr.
        loading:
            How a folder is loaded: see [`RewardScorer.from_pretrained`].

    Raises:
        RenderingError: If the tokenizer does not render as in training.
        ModelError: If the model does not end in one scalar.
        UsageError: If a model that is loaded comes without its tokenizer, or with settings to load one.

    Example:

    ```python
    >>> from rmtrl import RewardScorer
    >>> scorer = RewardScorer("outputs/tiny/rm")
    >>> scorer([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]]).shape
    (1,)
    ```
    """

    def __init__(
        self, model: str | Path | PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase | None = None, *,
        rendering: Rendering | None = None, head: Head | None = None, batch_tokens: int = 8192,
        batch_size: int | None = None, shared_prefix: bool = True, progress: bool = True, **loading: Any,
    ) -> None:  # fmt: skip
        if unknown := loading.keys() - _LOADING:
            raise UsageError(f"RewardScorer takes no {', '.join(sorted(unknown))}; what loads: {', '.join(_LOADING)}")
        whole_model: Any = model
        if isinstance(model, str | Path):
            whole_model, tokenizer = _loaded(model, tokenizer, **loading)
            rendering, head = rendering or stored_rendering(model), head or stored_head(model)
        elif tokenizer is None or loading:
            got = f"{', '.join(loading)} with" if loading else "no tokenizer with"
            raise UsageError(f"got {got} a model that is loaded; wanted RewardScorer(model, tokenizer), or its folder")
        settings: dict[str, Any] = {"batch_tokens": batch_tokens, "batch_size": batch_size, "progress": progress}
        super().__init__(tokenizer, rendering=rendering, **settings)
        compute_head_in_float32(whole_model)
        self.model = whole_model.eval()
        self.head = head or Head()
        if self.head.dropout:
            set_dropout(whole_model, self.head.dropout)
        self.shared_prefix = shared_prefix
        self._said_longer = False
        self._agree_on_pad_token()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any
    ) -> "RewardScorer":
        """Returns a scorer for a checkpoint folder or hub id, of a whole model or of an adapter.

        Args:
            path (`str` or `Path`): Folder or hub id.
            tokenizer (*optional*): Replaces the checkpoint's own; it must render the same.
            device (`str`, *optional*): Defaults to the accelerator, else the CPU.
            dtype: As in transformers; `"auto"` is the checkpoint's own.
            trust_remote_code (`bool`): Whether to run model code from the hub.
            quantization_config (*optional*): As in transformers; an adapter trained on a quantised base scores the
                same on one quantised alike.
            settings: Passed to [`RewardScorer`].

        Raises:
            ModelError: If there is no model at `path`, or it does not have one label.
            FreshHeadError: If the checkpoint has no trained score head.
        """
        return cls(path, tokenizer, **settings)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the reward of each conversation, `(N,)` float32; a list of token ids is scored as it stands.

        Raises:
            DataError: If a conversation is longer than the model's positions.
            RenderingError: If a conversation cannot be rendered as in training.
        """
        return self._rewards(self.outputs(conversations))

    def outputs(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns all that the head gives for each conversation, `(N, n_outputs)`: members, criteria or the reward.

        Raises:
            As [`RewardScorer.score`].
        """
        check_conversations(conversations)
        sequences = self.encode_all(conversations)
        if self.head.pooling != "mean":
            return self._run(sequences, None)
        return self._run(sequences, completion_starts(self.tokenizer, self._completed(conversations), sequences))

    def parts(self, conversations: Sequence[Conversation]) -> dict[str, NDArray[np.float32]]:
        """Returns the scores by criterion, `(N,)` each, of a model trained with `loss_type="attributes"`.

        Raises:
            ModelError: If the model has one reward and no criteria.
        """
        if not self.head.criteria:
            raise ModelError("the model gives one reward and no parts; parts come from loss_type='attributes'")
        return dict(zip(self.head.criteria, self.outputs(conversations).T, strict=True))

    def features(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns what enters the last layer of the head, `(N, d)`: the reward is linear in it.

        Raises:
            ModelError: If the head has several members, each with features of its own.
        """
        layers = last_layers(self.model)
        if len(layers) > 1:
            raise ModelError(f"the head has {len(layers)} members with features of their own; wanted one")
        handle = layers[0].register_forward_hook(lambda layer, args, output: args[0].float())
        try:
            return self.outputs(conversations)
        finally:
            handle.remove()

    def scored_position(self, ids: Sequence[int]) -> int:
        """Returns the position whose hidden state becomes the score: the last token that is no padding.

        Encoders with a pooler read their first token, encoder-decoders their last end token.
        """
        end = self.tokenizer.eos_token_id
        if base_model(self.model).config.is_encoder_decoder and end in ids:
            return len(ids) - 1 - list(ids)[::-1].index(end)
        if not reads_last_token(self.model):
            return 0
        return max((i for i, token in enumerate(ids) if token != self.tokenizer.pad_token_id), default=len(ids) - 1)

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest conversation the model holds, `None` where there is no limit."""
        return position_limit(self.model)

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Returns the reward of each token sequence, `(N,)` float32; a head that averages takes all its tokens."""
        sequences = [ids.tolist() if hasattr(ids, "tolist") else ids for ids in sequences]
        return self._rewards(self._run(sequences, [0] * len(sequences) if self.head.pooling == "mean" else None))

    def _rewards(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.head.reward(torch.from_numpy(outputs)).numpy()

    def _run(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None) -> NDArray[np.float32]:
        """Returns what the head gives for each sequence, in the fewest passes."""
        self._check_lengths(sequences)
        pad, costs = int(self.tokenizer.pad_token_id), self._costs
        kinds = kinds_of_rows(self.model, sequences, self._pads)
        jobs = plan_jobs(sequences, pad_token_id=pad, costs=costs, share=self._shares, kinds=kinds)
        outputs = np.empty((len(sequences), self.head.n_outputs), dtype=np.float32)
        for job in self._bar(jobs):
            for members, values in run_job(
                self.model, job, sequences, pad_token_id=pad, costs=costs, starts=starts
            ):  # fmt: skip
                if values.shape[1] != outputs.shape[1]:  # features, by their hook
                    outputs = np.empty((len(sequences), values.shape[1]), dtype=np.float32)
                outputs[members] = values
        sums = outputs.sum(axis=1, dtype=np.float64)
        checked_scores(sums, len(sums), name="reward model", shown=lambda _: "; check the model's weights and dtype")
        return outputs

    @property
    def dtype(self) -> str:
        """Name of the type of the model's weights."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def _costs(self) -> Costs:
        call = _CALL_TOKENS["cpu" if self.model.device.type == "cpu" else "accelerator"]
        return Costs(cell_cost(self.model), call, self.batch_tokens, self.batch_size)

    @cached_property
    def _shares(self) -> bool:
        """Whether shared prefixes are computed once: found out on a fixed probe, once."""
        if not self.shared_prefix:
            return False
        reason = why_not_shared(self.model) or why_sharing_differs(self.model, int(self.tokenizer.pad_token_id))
        if reason:
            logger.warning("shared prompts are computed each time: %s", reason)
        return reason is None

    @cached_property
    def _pads(self) -> bool:
        """Whether rows of several lengths may stand together: found out on a fixed probe, once."""
        reason = why_padding_differs(self.model, int(self.tokenizer.pad_token_id))
        if reason:
            logger.warning("only texts of one length are scored together: %s", reason)
        return reason is None

    def _check_lengths(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raises for what the model cannot take, and says once what it was not trained on."""
        check_tokens(self.model, sequences, "conversation", self.tokenizer)
        super()._check_lengths(sequences)
        trained = self.rendering.max_length if self.rendering else None
        longer = sum(len(ids) > trained for ids in sequences) if trained else 0
        if longer and not self._said_longer:
            self._said_longer = True
            logger.warning("%d of %d texts are longer than any seen in training (%d)", longer, len(sequences), trained)

    def _agree_on_pad_token(self) -> None:
        """Where the tokenizer pads, the model must look for the last token that is no padding."""
        config, tokenizer = base_model(self.model).config.get_text_config(), self.tokenizer
        if tokenizer.pad_token_id is None:
            pad_id = tokenizer.eos_token_id if config.pad_token_id is None else config.pad_token_id
            if pad_id is None:
                raise RenderingError("the tokenizer has neither a pad nor an end token; set tokenizer.pad_token")
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
        if tokenizer.pad_token_id == tokenizer.eos_token_id and reads_last_token(self.model):
            logger.warning(
                "pad token and end token are both %r: this model reads the token before the end, as it was probably "
                "trained to", tokenizer.eos_token,
            )  # fmt: skip
        config.pad_token_id = inside(self.model, int(tokenizer.pad_token_id))
        if said := beyond_embeddings(self.model, tokenizer):
            logger.warning(said)


def check_conversations(conversations: Any) -> None:
    """Raises for what is no list of conversations."""
    if isinstance(conversations, dict) or not hasattr(conversations, "__len__"):
        raise DataError(f"got {shorten(repr(conversations))}; wanted a list of conversations, each a text or messages")
    if isinstance(conversations, str) or (len(conversations) and isinstance(conversations[0], dict)):
        raise DataError("got one conversation; score() takes a list of them: score([conversation])")
    for index, conversation in enumerate(conversations):
        if not (isinstance(conversation, str) or is_encoded(conversation) or _is_messages(conversation)):
            raise DataError(f"conversation {index} is {str(conversation)[:40]!r}; wanted a string or messages")


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


@whole()
def _loaded(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None, *, device: str | None = None,
    dtype: str | torch.dtype = "auto", trust_remote_code: bool = False, quantization_config: Any = None,
) -> tuple[Any, PreTrainedTokenizerBase]:  # fmt: skip
    """Returns the model at a folder or hub id, on its device, and its tokenizer."""
    target, settings = device_or_best(device), dict[str, Any](trust_remote_code=trust_remote_code)
    tokenizer = tokenizer or load_tokenizer(path, kind="reward model", **settings)
    if quantization_config is not None:
        settings["quantization_config"] = quantization_config
    return load_reward_model(path, tokenizer, dtype=dtype, **settings).to(target), tokenizer
