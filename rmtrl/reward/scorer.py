"""Scores conversations with a trained reward model, the same number whatever stands beside them in the batch."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel
from peft.utils.save_and_load import load_peft_weights
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging
from transformers.utils import cached_file

from rmtrl.errors import DataError, FreshHeadError, ModelError, RenderingError, RmtrlError
from rmtrl.reward.heads import base_model, compute_head_in_float32, head_layers
from rmtrl.reward.rendering import Rendering, encode
from rmtrl.types import Conversation, Scorer

logger = logging.getLogger(__name__)


class RewardScorer(Scorer):
    """
    Scores conversations with a reward model: one float32 number each, in the order given.

    Sequences are sorted by length and batched up to a token budget, so padding is small and batch composition follows
    from the texts, not from their order; in float32 a score does not depend on it (within 1e-5). Nothing is truncated.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A sequence classification model with one label; see [`RewardScorer.from_pretrained`] for folders and ids.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer the model was trained with.
        rendering ([`Rendering`], *optional*):
            How the model's training data was rendered; the tokenizer is checked against it.
        batch_tokens (`int`, *optional*, defaults to `8192`):
            Tokens in one forward pass, padding included.
        batch_size (`int`, *optional*):
            Largest number of conversations in one forward pass.

    Raises:
        RenderingError: If the tokenizer does not render as in training.
        ModelError: If the model does not end in one scalar.

    Example:

    ```python
    >>> from rmtrl import RewardScorer
    >>> scorer = RewardScorer.from_pretrained("outputs/tiny/rm")
    >>> scorer.score([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]]).shape
    (1,)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rendering: Rendering | None = None,
        batch_tokens: int = 8192,
        batch_size: int | None = None,
    ) -> None:
        if rendering is not None:
            rendering.check(tokenizer)
        compute_head_in_float32(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.rendering = rendering
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self._agree_on_pad_token()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None, device: str | None = None,
        dtype: str | torch.dtype = "auto", trust_remote_code: bool = False, **settings: Any,
    ) -> "RewardScorer":  # fmt: skip
        """Returns a scorer for a checkpoint folder or hub id, of a whole model or of an adapter.

        Args:
            path (`str` or `Path`): Folder or hub id.
            tokenizer (*optional*): Replaces the checkpoint's own; it must render the same.
            device (`str`, *optional*): Defaults to the accelerator, else the CPU.
            dtype: As in transformers; `"auto"` is the checkpoint's own.
            trust_remote_code (`bool`): Whether to run model code from the hub.
            settings: Passed to [`RewardScorer`].

        Raises:
            ModelError: If there is no model at `path`, or it does not have one label.
            FreshHeadError: If the checkpoint has no trained score head.
        """
        common = {"trust_remote_code": trust_remote_code}
        try:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, **common)
            model: Any = _load_model(str(path), tokenizer, dtype=dtype, **common)
        except RmtrlError:
            raise
        except (OSError, ValueError) as error:
            raise ModelError(
                f"no reward model at {path}: {str(error).splitlines()[0]}; give a checkpoint folder or a hub id"
            ) from error
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model.to(torch.device(device or accelerator or "cpu"))
        return cls(model, tokenizer, rendering=stored_rendering(path), **settings)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the reward of each conversation, `(N,)` float32.

        Raises:
            DataError: If a conversation is longer than the model's positions.
            RenderingError: If a conversation cannot be rendered as in training.
        """
        _check_conversations(conversations)
        return self.score_ids([self.encode(conversation) for conversation in conversations])

    def encode(self, conversation: Conversation) -> list[int]:
        """Returns the token ids that are scored; see [`rmtrl.reward.rendering.encode`]."""
        return encode(self.tokenizer, conversation)

    def scored_position(self, ids: Sequence[int]) -> int:
        """Returns the position whose hidden state becomes the score: the last token that is no padding.

        Encoders with a pooler read their first token.
        """
        if not self._reads_last_token:
            return 0
        return max((i for i, token in enumerate(ids) if token != self.tokenizer.pad_token_id), default=len(ids) - 1)

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Returns the reward of each token sequence, `(N,)` float32."""
        self._check_lengths(sequences)
        rewards = np.empty(len(sequences), dtype=np.float32)
        batches = self._batches([len(ids) for ids in sequences])
        for batch in tqdm(batches, desc="Scoring", unit="batch", disable=len(batches) < 20):
            rewards[batch] = self._forward([sequences[i] for i in batch])
        return rewards

    @property
    def _reads_last_token(self) -> bool:
        return hasattr(base_model(self.model), "score")  # the name of the head in every decoder; encoders: classifier

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            longest = lengths[batches[-1][0]] if batches else 0
            full = not batches or longest * (len(batches[-1]) + 1) > self.batch_tokens
            if full or len(batches[-1]) == self.batch_size:
                batches.append([])
            batches[-1].append(index)
        return batches

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        longest = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*s, *[pad] * (longest - len(s))] for s in sequences], device=self.model.device)
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences], device=self.model.device)
        rewards: NDArray[np.float32] = (
            self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu().numpy()
        )
        if not np.isfinite(rewards).all():
            raise ModelError(
                f"the reward model returned {rewards[~np.isfinite(rewards)][0]}; check its weights and dtype"
            )
        return rewards

    def _check_lengths(self, sequences: Sequence[Sequence[int]]) -> None:
        limit = _position_limit(base_model(self.model))
        for index, ids in enumerate(sequences):
            if limit is not None and len(ids) > limit:
                raise DataError(
                    f"conversation {index} has {len(ids):,} tokens, the model holds {limit:,}; shorten it or leave it "
                    "out (nothing is truncated)"
                )
            if not ids:
                raise DataError(f"conversation {index} has no tokens; there is nothing to score")
        trained = self.rendering.max_length if self.rendering else None
        longer = sum(len(ids) > trained for ids in sequences) if trained else 0
        if longer:
            logger.warning("%d of %d texts are longer than any seen in training (%d)", longer, len(sequences), trained)

    def _agree_on_pad_token(self) -> None:
        """Where the tokenizer pads, the model must look for the last token that is no padding."""
        config = base_model(self.model).config.get_text_config()
        if self.tokenizer.pad_token_id is None:
            pad_id = self.tokenizer.eos_token_id if config.pad_token_id is None else config.pad_token_id
            if pad_id is None:
                raise RenderingError("the tokenizer has neither a pad nor an end token; set tokenizer.pad_token")
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(pad_id)
        if self.tokenizer.pad_token_id == self.tokenizer.eos_token_id and self._reads_last_token:
            logger.warning(
                "pad token and end token are both %r: this model reads the token before the end, as it was probably "
                "trained to", self.tokenizer.eos_token,
            )  # fmt: skip
        config.pad_token_id = self.tokenizer.pad_token_id


def stored_rendering(path: str | Path) -> Rendering | None:
    """Returns the rendering stored in a checkpoint folder, `None` where none is (a model from elsewhere)."""
    file = _file_of(path, "rmtrl.json")
    stored = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return Rendering(**stored["rendering"]) if "rendering" in stored else None


def _file_of(path: str | Path, name: str) -> str | None:
    """Returns where a file of a checkpoint folder or hub id stands on this machine, `None` where it has none."""
    found: str | None = cached_file(
        str(path), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return found


def _check_conversations(conversations: Any) -> None:
    if isinstance(conversations, str) or (len(conversations) and isinstance(conversations[0], dict)):
        raise DataError("got one conversation; score() takes a list of them: score([conversation])")
    for index, conversation in enumerate(conversations):
        if not (isinstance(conversation, str) or _is_messages(conversation)):
            raise DataError(f"conversation {index} is {str(conversation)[:40]!r}; wanted a string or messages")


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


def _position_limit(model: Any) -> int | None:
    """Returns the tokens a model holds; RoBERTa's first positions, up to its padding index, are never used."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def _load_model(path: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel | PeftModel:
    if _file_of(path, "adapter_config.json"):
        return _load_adapter(path, tokenizer, **settings)
    model, info = _from_pretrained(path, **settings)
    heads = [f"{name}.weight" for name, _ in head_layers(model)]
    for key, *shapes in info["mismatched_keys"]:
        raise ModelError(f"{path} has {shapes[0][0]} labels ({key}); a reward model has one")
    fresh = sorted(set(heads) & set(info["missing_keys"]))
    if fresh:
        raise FreshHeadError(
            f"{path} holds no trained score head ({fresh[0]} is missing), so its scores would be random; give a "
            "reward model, or train one with recipes/rm_llama.py"
        )
    return model


def _load_adapter(path: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PeftModel:
    base = str(PeftConfig.from_pretrained(path).base_model_name_or_path)
    try:
        model, info = _from_pretrained(base, **settings)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the base model {base} of the adapter at {path} cannot be loaded: {reason}") from error
    saved = load_peft_weights(path, device="cpu")
    fresh = [key for key in sorted(info["missing_keys"]) if not any(name.endswith(f".{key}") for name in saved)]
    if fresh:
        raise FreshHeadError(
            f"the adapter at {path} holds no trained score head ({fresh[0]} is missing), so its scores would be "
            "random; train it with rmtrl.RewardTrainer, which saves the head"
        )
    embeddings: Any = model.get_input_embeddings()
    if any("embed" in name or ".wte." in name for name in saved) and len(tokenizer) > embeddings.num_embeddings:
        model.resize_token_embeddings(len(tokenizer))  # training added a token
    return PeftModel.from_pretrained(model, path)


def _from_pretrained(path: str, **settings: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a missing head is an error of ours, not a table of keys
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    return loaded[0], loaded[1]
