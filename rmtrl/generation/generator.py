"""`Generator`: prompts in, completions out, whatever makes them; and one over transformers' `generate`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.generation.sampling import SeededSampling, sampling_key
from rmtrl.models import device_or_best, load_language_model, load_tokenizer, position_limit
from rmtrl.reward.rendering import encode_prompt
from rmtrl.types import Conversation


@dataclass(frozen=True)
class Completion:
    """What a policy answered.

    Args:
        text (`str`): The answer, special tokens left out.
        token_ids (`tuple[int, ...]`): Its tokens, the end token included; empty where the generator has none.
        truncated (`bool`): Whether it was cut off before its end token.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    truncated: bool = False


class Generator:
    """Turns prompts into completions: a policy, a remote service, a file of stored answers.

    Subclasses define [`Generator.generate`].

    Example:

    ```python
    >>> class Echo(Generator):
    ...     def generate(self, prompts, n=1, *, seed=0):
    ...         return [[Completion(f"{prompt} {sample}") for sample in range(n)] for prompt in prompts]
    >>> Echo().generate(["Hi"], 2)[0][1].text
    'Hi 1'
    ```
    """

    def generate(self, prompts: Sequence[Conversation], n: int = 1, *, seed: int = 0) -> list[list[Completion]]:
        """Returns n completions of each prompt, in the order given.

        Args:
            prompts (`Sequence[Conversation]`): Message lists, or strings that are continued as they stand.
            n (`int`): Completions of each prompt.
            seed (`int`): Seed of the sampling.
        """
        raise NotImplementedError


class TransformersGenerator(Generator):
    """
    Samples completions with transformers' `generate`; a prompt's completions depend on its tokens and the seed alone.

    In float32 they do not depend on batch size and order either, as long as rounding does not decide between two
    tokens. Equal prompts get equal completions. Of the checkpoint's own generation settings only the end tokens count.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest completion, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits; 0 takes the likeliest token.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass of the likeliest tokens that are sampled from.
        batch_size (`int`, *optional*, defaults to `32`):
            Completions generated at a time.
        end_token_ids (`Sequence[int]`, *optional*):
            Tokens that end a completion, none where empty; where absent the tokenizer's and the checkpoint's own.
        generation_kwargs (`Mapping`, *optional*):
            More settings of [`~transformers.GenerationConfig`].
        progress (`bool`, *optional*, defaults to `True`):
            Whether long passes show a bar on stderr.

    Raises:
        UsageError: If a setting is out of its range.
        ModelError: If there is no end token.

    Example:

    ```python
    >>> generator = TransformersGenerator.from_pretrained("outputs/tiny/sft", max_new_tokens=32)
    >>> generator.generate([[{"role": "user", "content": "Hi"}]], n=4)[0][0].text
    'Hello!'
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        batch_size: int = 32,
        end_token_ids: Sequence[int] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        _check_at_least("max_new_tokens", max_new_tokens, 1)
        _check_at_least("batch_size", batch_size, 1)
        if not 0 <= temperature < float("inf"):
            raise UsageError(f"got temperature {temperature}; wanted 0 or more")
        if not 0 < top_p <= 1:
            raise UsageError(f"got top_p {top_p}; wanted a share above 0, up to 1")
        self.model: Any = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.batch_size = batch_size
        self.progress = progress
        self.end_token_ids = _end_tokens(model, tokenizer) if end_token_ids is None else list(end_token_ids)
        self.generation_kwargs = dict(generation_kwargs or {})

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | None = None, dtype: str | torch.dtype = "auto",
                        trust_remote_code: bool = False, **settings: Any) -> "TransformersGenerator":  # fmt: skip
        """Returns a generator for a checkpoint folder or hub id, of a whole model or of an adapter.

        Args:
            path (`str` or `Path`): Folder or hub id.
            device (`str`, *optional*): Defaults to the accelerator, else the CPU.
            dtype: As in transformers; `"auto"` is the checkpoint's own.
            trust_remote_code (`bool`): Whether to run model code from the hub.
            settings: Passed to [`TransformersGenerator`].

        Raises:
            ModelError: If there is no language model at `path`.
            FreshHeadError: If the checkpoint holds no language model head, as a reward model's.
        """
        code = {"trust_remote_code": trust_remote_code}
        tokenizer = load_tokenizer(path, kind="language model", **code)
        model = load_language_model(path, n_tokens=len(tokenizer), dtype=dtype, **code)
        return cls(model.to(device_or_best(device)).eval(), tokenizer, **settings)

    def generate(self, prompts: Sequence[Conversation], n: int = 1, *, seed: int = 0) -> list[list[Completion]]:
        """Returns n completions of each prompt, in the order given.

        Raises:
            UsageError: If `n` is below 1.
            DataError: If a prompt is empty, or leaves no room for a completion.
            RenderingError: If there is no chat template for a message list.
        """
        _check_at_least("n", n, 1)
        encoded = [encode_prompt(self.tokenizer, prompt, index=index) for index, prompt in enumerate(prompts)]
        self._check_room(encoded)
        names = [sampling_key(ids) for ids in encoded]
        keys = [sampling_key(seed, name, sample) for name in names for sample in range(n)]
        made = self.complete([ids for ids in encoded for _ in range(n)], keys)
        return [made[start : start + n] for start in range(0, len(made), n)]

    def complete(self, prompt_ids: Sequence[Sequence[int]], keys: Sequence[int]) -> list[Completion]:
        """Returns one completion of each tokenised prompt, in the order given; it follows from prompt and key alone.

        Args:
            prompt_ids (`Sequence[Sequence[int]]`): Token ids of each prompt, see [`TransformersGenerator.encode`].
            keys (`Sequence[int]`): A [`sampling_key`] each.
        """
        completions: dict[int, Completion] = {}
        # of like length together, so that little is padding
        order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]))
        was_training = self.model.training
        self.model.eval()
        try:
            for batch in self._batches(order):
                made = self._complete([prompt_ids[row] for row in batch], [keys[row] for row in batch])
                completions |= zip(batch, made, strict=True)
        finally:
            self.model.train(was_training)
        return [completions[row] for row in range(len(prompt_ids))]

    def encode(self, prompt: Conversation) -> list[int]:
        """Returns the token ids that are continued: a rendered prompt, with its generation prompt where it is a chat.

        Raises:
            RenderingError: If there is no chat template for a message list.
        """
        return encode_prompt(self.tokenizer, prompt)

    def _batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        with tqdm(total=len(rows), desc="Generating", unit="completion", delay=2, disable=not self.progress) as bar:
            for start in range(0, len(rows), self.batch_size):
                yield (batch := rows[start : start + self.batch_size])
                bar.update(len(batch))

    def _complete(self, prompts: Sequence[Sequence[int]], keys: Sequence[int]) -> list[Completion]:
        pad = self.tokenizer.pad_token_id
        if pad is None or pad >= self.model.get_input_embeddings().weight.shape[0]:
            pad = next(iter(self.end_token_ids), 0)  # any token with an embedding: padding is masked
        rows = [torch.tensor(own) for own in prompts]
        layout: Any = {"batch_first": True, "padding_side": "left"}
        ids = pad_sequence(rows, padding_value=pad, **layout).to(self.model.device)
        mask = pad_sequence([torch.ones_like(own) for own in rows], **layout).to(self.model.device)
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "use_cache": True}
        config = GenerationConfig(
            **settings | self.generation_kwargs, eos_token_id=self.end_token_ids or None, pad_token_id=int(pad)
        )
        processors = self._processors(keys, ids.shape[1])
        with torch.inference_mode(), _bare_settings(self.model):
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
            )
        return [self._completion(own) for own in made[:, ids.shape[1] :].tolist()]

    def _processors(self, keys: Sequence[int], width: int) -> LogitsProcessorList:
        if not self.temperature:
            return LogitsProcessorList()
        top_p = [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        return LogitsProcessorList(
            [TemperatureLogitsWarper(float(self.temperature)), *top_p, SeededSampling(keys, width)]
        )

    def _completion(self, ids: Sequence[int]) -> Completion:
        end = next((place for place, token in enumerate(ids) if token in self.end_token_ids), None)
        own = tuple(ids if end is None else ids[: end + 1])
        text = str(self.tokenizer.decode(list(own), skip_special_tokens=True))
        return Completion(text, own, truncated=end is None)

    def _check_room(self, encoded: Sequence[Sequence[int]]) -> None:
        limit = position_limit(self.model)
        for index, ids in enumerate(encoded):
            if not ids:
                raise DataError(f"prompt {index} has no tokens; there is nothing to continue")
            if limit is not None and len(ids) + self.max_new_tokens > limit:
                raise DataError(
                    f"prompt {index} has {len(ids):,} tokens and the model holds {limit:,}: no room for "
                    f"{self.max_new_tokens:,} more; shorten it or lower max_new_tokens"
                )


@contextmanager
def _bare_settings(model: Any) -> Iterator[None]:
    """Takes the checkpoint's settings away for a while: `generate` reads from them what its own config leaves open."""
    # an adapter's generate copies what it finds on itself, which is its base's, into the base
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    stored = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = stored


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"got {name} {value}; wanted {least} or more")


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that end a completion: the tokenizer's and the checkpoint's own, such as an end of turn."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    found = [token for token in (tokenizer.eos_token_id, *listed) if token is not None]
    if not found:
        raise ModelError("neither tokenizer nor model has an end token, so no completion would end; set eos_token")
    return list(dict.fromkeys(int(token) for token in found))
