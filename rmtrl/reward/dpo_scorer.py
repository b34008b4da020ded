"""The reward that a policy trained by DPO implies: how much likelier it finds an answer than its reference does."""

import inspect
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rmtrl.data.messages import says
from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.models import (
    AdapterSwitch,
    base_model,
    device_or_best,
    find_file,
    load_language_model,
    load_tokenizer,
    position_limit,
)
from rmtrl.reward.batching import Costs, like_lengths
from rmtrl.reward.rendering import encode_all, encode_prompt
from rmtrl.reward.scorer import ModelScorer
from rmtrl.reward.scoring import padded
from rmtrl.types import Conversation, chats, checked_scores

logger = logging.getLogger(__name__)


class DPOScorer(ModelScorer):
    """
    Scores an answer y to a prompt x with β (log π(y|x) − log π_ref(y|x)), summed over the tokens of y (Rafailov et al.
    2023, https://huggingface.co/papers/2305.18290, eq. 5 without the term that depends on x alone).

    So it ranks answers to one prompt; scores of different prompts do not compare. Tokens and their count are those of
    TRL's `DPOTrainer`: the answer is what follows the prompt rendered with its generation prompt, its end token
    included; nothing is truncated. Without a reference the score is β log π(y|x), which falls with length.

    `score` takes message lists whose last message is the answer. Strings have no boundary: give them in TRL's form,
    `scorer(prompts=…, completions=…)`.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The trained language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        ref_policy ([`~transformers.PreTrainedModel`], *optional*):
            The reference. Where absent, an adapter's is its base (or its adapter named `ref`, as in TRL), and a whole
            model has none.
        beta (`float`, *optional*, defaults to `0.1`):
            β, as in training.
        batch_tokens (`int`, *optional*, defaults to `4096`):
            Tokens in one forward pass, padding included.
        batch_size (`int`, *optional*):
            Largest number of rows in one forward pass.
        progress (`bool`, *optional*, defaults to `True`):
            Whether long passes show a bar on stderr.

    Raises:
        ModelError: If a model is not a language model.
        UsageError: If β is not above 0.

    Example:

    ```python
    >>> scorer = DPOScorer.from_pretrained("outputs/dpo", "outputs/sft")
    >>> scorer([[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]]).shape
    (1,)
    ```
    """

    def __init__(
        self, policy: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase,
        ref_policy: PreTrainedModel | PeftModel | None = None, *, beta: float = 0.1, batch_tokens: int = 4096,
        batch_size: int | None = None, progress: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, batch_tokens=batch_tokens, batch_size=batch_size, progress=progress)
        if not (np.isfinite(beta) and beta > 0):
            raise UsageError(f"got beta={beta}; wanted a number above 0")
        self.policy: Any = policy.eval()
        self.ref_policy: Any = None if ref_policy is None else ref_policy.eval()
        for inner in map(base_model, self._models):
            if inner.get_output_embeddings() is None:
                raise ModelError(f"got {type(inner).__name__}, which gives no token probabilities; "
                                 "load a language model with AutoModelForCausalLM")  # fmt: skip
        self.beta = beta
        self._said_boundary = False

    @classmethod
    def from_pretrained(
        cls, policy_path: str | Path, ref_path: str | Path | None = None, *, device: str | None = None,
        dtype: str | torch.dtype = "auto", trust_remote_code: bool = False, **settings: Any,
    ) -> "DPOScorer":  # fmt: skip
        """Returns a scorer for folders or hub ids, of whole models or of adapters.

        Args:
            policy_path (`str` or `Path`): The trained policy, with its tokenizer.
            ref_path (`str` or `Path`, *optional*): The reference; see [`DPOScorer`] for what is taken where absent.
            device (`str`, *optional*): Defaults to the accelerator, else the CPU.
            dtype: As in transformers; `"auto"` is the checkpoint's own.
            trust_remote_code (`bool`): Whether to run model code from the hub.
            settings: Passed to [`DPOScorer`].

        Raises:
            ModelError: If there is no language model at a path.
            FreshHeadError: If a checkpoint holds no language model head.
        """
        tokenizer = load_tokenizer(policy_path, kind="language model", trust_remote_code=trust_remote_code)
        loading: Any = {"n_tokens": len(tokenizer), "dtype": dtype, "trust_remote_code": trust_remote_code}
        policy = load_language_model(policy_path, **loading)
        # TRL went on training an adapter, and this is where from
        if isinstance(policy, PeftModel) and find_file(policy_path, "ref/adapter_config.json"):
            policy.load_adapter(str(policy_path), adapter_name="ref", subfolder="ref")
        reference = load_language_model(ref_path, **loading) if ref_path else None
        target = device_or_best(device)
        return cls(policy.to(target), tokenizer, reference and reference.to(target), **settings)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the implicit reward of each conversation's last message, `(N,)` float32.

        Raises:
            DataError: If a conversation is a string, does not end in an answer to something, or is too long.
            RenderingError: If there is no chat template.
        """
        for index, conversation in enumerate(conversations):
            if isinstance(conversation, str):
                raise DataError(
                    f"conversation {index} is a string, and where its prompt ends is not known; give messages, or "
                    "call scorer(prompts=..., completions=...)"
                )
            if not _is_answered(conversation):
                raise DataError(
                    f"conversation {index} is {str(conversation)[:60]!r}; wanted messages of which the last is the "
                    "assistant's answer to those before"
                )
        return self._score([c[:-1] for c in conversations], [c[-1:] for c in conversations])

    def score_completions(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float]:
        """Returns the implicit rewards of `completions` as TRL's trainers expect them; strings or messages."""
        return [float(score) for score in self._score(chats(prompts, columns), completions)]

    def log_probs(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Returns log π(y|x) and log π_ref(y|x) in nats, `(N,)` each; `None` for a reference that is not there."""
        sequences, starts = self._encode(prompts, completions)
        costs = Costs(cell=0.0, call=0.0, most_tokens=self.batch_tokens, most_rows=self.batch_size)
        policy, reference = np.empty((2, len(sequences)), dtype=np.float32)
        for batch in self._bar(like_lengths([len(ids) for ids in sequences], costs)):
            rows, first = [sequences[i] for i in batch], [starts[i] for i in batch]
            policy[batch] = _log_probs(self.policy, rows, first)
            if self._has_reference:
                with self._reference_adapter():
                    reference[batch] = _log_probs(self.ref_policy or self.policy, rows, first)
        return policy, reference if self._has_reference else None

    def _score(self, prompts: Sequence[Conversation], completions: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns β times the difference of the two log probabilities, `(N,)`."""
        policy, reference = self.log_probs(prompts, completions)
        scores = np.float32(self.beta) * (policy if reference is None else policy - reference)
        check = "; check the models' weights and dtype"
        return checked_scores(scores, len(prompts), name="model", shown=lambda _: check).astype(np.float32)

    def _encode(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation]
    ) -> tuple[list[list[int]], list[int]]:
        """Returns the tokens of prompt and completion, and where the completion starts, as TRL's `DPOTrainer` does."""
        whole: list[Any] = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if isinstance(prompt, str) != isinstance(completion, str) or not isinstance(prompt, str | list):
                raise DataError(f"prompt and completion {index} are {type(prompt).__name__} and "
                                f"{type(completion).__name__}; wanted two strings or two message lists")  # fmt: skip
            if isinstance(prompt, list) and not prompt:
                raise DataError(f"prompt {index} has no messages; a completion answers one")
            whole.append(prompt + completion)  # type: ignore[operator]
        sequences = encode_all(self.tokenizer, whole)
        starts = []
        for index, (prompt, ids) in enumerate(zip(prompts, sequences, strict=True)):
            before = encode_prompt(self.tokenizer, prompt, index=index)
            if ids[: len(before)] != before and not self._said_boundary:
                self._said_boundary = True
                logger.warning("prompt %d is tokenised otherwise with its completion; counting starts at token %d, as "
                               "in TRL", index, len(before))  # fmt: skip
            if len(before) >= len(ids):
                raise DataError(f"completion {index} has no tokens; there is nothing to score")
            starts.append(len(before))
        self._check_lengths(sequences)
        return sequences, starts

    @property
    def _models(self) -> list[Any]:
        return [self.policy] if self.ref_policy is None else [self.policy, self.ref_policy]

    @property
    def _has_reference(self) -> bool:
        return self.ref_policy is not None or isinstance(self.policy, PeftModel)

    def _reference_adapter(self) -> AbstractContextManager[None]:
        """Switches a policy's adapter to its reference, where no model stands for it."""
        if self.ref_policy is not None:
            return nullcontext()
        return AdapterSwitch(self.policy)("ref" if "ref" in self.policy.peft_config else None)

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest conversation that both models hold, `None` where there is no limit."""
        limits = [limit for limit in map(position_limit, self._models) if limit is not None]
        return min(limits, default=None)


@torch.inference_mode()
def _log_probs(model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> NDArray[np.float32]:
    """Returns Σ log p of each row's tokens from its start on, `(B,)`; logits before the first start are not made."""
    ids, mask = padded(model, rows, 0)  # what is behind a row is never seen by what is before it
    width, first = ids.shape[1], max(min(starts) - 1, 0)
    kept: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(base_model(model).forward).parameters:
        kept["logits_to_keep"] = width - first
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits[:, first - width :]
    sums = []
    for row, start, row_logits in zip(rows, starts, logits, strict=True):
        begin = max(start, 1)  # nothing predicts the first token
        predicted = row_logits[begin - 1 - first : len(row) - 1 - first].float()
        labels = torch.tensor(row[begin:], device=predicted.device)
        sums.append(-cross_entropy(predicted, labels, reduction="sum"))
    return torch.stack(sums).cpu().numpy()


def _is_answered(conversation: Any) -> bool:
    messages = isinstance(conversation, list) and all(isinstance(turn, dict) and says(turn) for turn in conversation)
    return messages and len(conversation) > 1 and conversation[-1].get("role") == "assistant"
