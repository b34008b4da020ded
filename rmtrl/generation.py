"""`Generator`, the door through which every policy is asked for completions, and one over transformers' `generate`.

Sampling is Gumbel-max whose noise follows from what is sampled, not from when: the same key gives the same sample
whatever the batch, the order, the number of processes or a resume in between.
"""

import hashlib
import math
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
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.models import base_model, device_or_best, load_language_model, load_tokenizer, n_embeddings, position_limit
from rmtrl.reward.rendering import encode_prompt
from rmtrl.types import Conversation


def sampling_key(*parts: Any) -> int:
    """Returns a 64-bit key that follows from the parts alone, on every machine: what a sample's noise is made from.

    Args:
        parts: What names the sample, such as seed, prompt tokens and sample number; compared by `repr`.

    Example:

    ```python
    >>> sampling_key(0, [5, 7], 1) == sampling_key(0, [5, 7], 1) != sampling_key(0, [5, 7], 2)
    True
    ```
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014); int64 wraps round, and its shifts keep the sign."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * _FIRST
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * _SECOND
    return x ^ (x >> 31 & (1 << 33) - 1)


def gumbel_noise(keys: torch.Tensor, positions: torch.Tensor | int, size: int) -> torch.Tensor:
    """Returns standard Gumbel noise that follows from key and position alone, `(B, size)` float32.

    Counter-based: the same on CPU and GPU up to the rounding of a logarithm, with no state to save or resume.

    Args:
        keys (`(B,)` int64 tensor): From [`sampling_key`].
        positions (`(B,)` int64 tensor or `int`): Position of the token within the completion.
        size (`int`): Noise values a row: the vocabulary.

    Example:

    ```python
    >>> gumbel_noise(torch.tensor([1, 2]), 0, 4).shape
    torch.Size([2, 4])
    ```
    """
    rows = _mix(_mix(keys) + torch.as_tensor(positions, dtype=torch.int64, device=keys.device) * _GOLDEN)
    bits = _mix(rows[:, None] + torch.arange(1, size + 1, device=keys.device) * _GOLDEN)
    # 32 bits, finest near 0, which is where the largest noise comes from; never 0 and never 1
    uniform = ((bits >> 32 & 0xFFFFFFFF).float() + 0.5) * 2**-32
    return -torch.log(-torch.log1p(-uniform.clamp(max=1 - 2**-24)))


def gumbel_max(scores: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor | int) -> torch.Tensor:
    """Returns a sample of softmax(scores) a row, `(B,)` int64, that follows from scores, key and position alone.

    Drawn in two stages, each by Gumbel-max and together exact: a block of about √V tokens by its share of the
    probability, then a token within it. That takes 2 √V noise values a row instead of V.

    Args:
        scores (`(B, V)` float tensor): Logits; −∞ is a token that cannot be drawn.
        keys (`(B,)` int64 tensor): From [`sampling_key`].
        positions (`(B,)` int64 tensor or `int`): Position of the token within the completion.

    Example:

    ```python
    >>> gumbel_max(torch.tensor([[0.0, 9.0, -float("inf")]]), torch.tensor([1]), 0)
    tensor([1])
    ```
    """
    size = math.isqrt(scores.shape[1] - 1) + 1
    blocks = torch.nn.functional.pad(scores, (0, -scores.shape[1] % size), value=-torch.inf).unflatten(1, (-1, size))
    of_blocks, within = gumbel_noise(keys, positions, blocks.shape[1] + size).split([blocks.shape[1], size], dim=1)
    block = (blocks.logsumexp(dim=2) + of_blocks).argmax(dim=1)
    chosen = blocks[torch.arange(len(block), device=block.device), block]
    return block * size + (chosen + within).argmax(dim=1)


class SeededSampling(LogitsProcessor):
    """Leaves a score of 0 at a sample of softmax(scores), [`gumbel_max`], and −∞ at every other token.

    Stands last among the processors, with `do_sample=False`. The sample of a row follows from its scores, its key and
    the position, not from the rows beside it.

    Args:
        keys (`Sequence[int]` or `(B,)` int64 tensor): One [`sampling_key`] a row.
        prompt_length_tokens (`int`): Width of the prompts, padding included: where position 0 is.

    Example:

    ```python
    >>> keys = [sampling_key(seed, episode) for episode in episodes]
    >>> sampling = SeededSampling(keys, prompt_length_tokens=input_ids.shape[1])
    >>> model.generate(input_ids, do_sample=False, logits_processor=LogitsProcessorList([sampling]))
    ```
    """

    def __init__(self, keys: Sequence[int] | torch.Tensor, prompt_length_tokens: int) -> None:
        self.keys = torch.as_tensor(keys, dtype=torch.int64)
        self.prompt_length_tokens = prompt_length_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Returns 0 at the token drawn and −∞ elsewhere, `(B, V)` float32."""
        self.keys = self.keys.to(scores.device)
        tokens = gumbel_max(scores.float(), self.keys, input_ids.shape[1] - self.prompt_length_tokens)
        only = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return only.scatter_(1, tokens[:, None], 0)  # type: ignore[return-value]


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
    >>> len(generator.generate([[{"role": "user", "content": "Hi"}]], n=4)[0])
    4
    ```
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int = 256,
        temperature: float = 1.0, top_p: float = 1.0, batch_size: int = 32, progress: bool = True,
        end_token_ids: Sequence[int] | None = None, generation_kwargs: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        _check_count("max_new_tokens", max_new_tokens)
        _check_count("batch_size", batch_size)
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
        _check_count("n", n)
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
        if pad is None or pad >= n_embeddings(self.model):
            pad = next(iter(self.end_token_ids), 0)  # any token with an embedding: padding is masked
        rows = [torch.tensor(own) for own in prompts]
        layout: Any = {"batch_first": True, "padding_side": "left"}
        ids = pad_sequence(rows, padding_value=pad, **layout).to(self.model.device)
        mask = pad_sequence([torch.ones_like(own) for own in rows], **layout).to(self.model.device)
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "use_cache": True}
        config = GenerationConfig(
            **settings | self.generation_kwargs, eos_token_id=self.end_token_ids or None, pad_token_id=int(pad)
        )
        processors = LogitsProcessorList()
        if self.temperature:
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
            processors.extend([TopPLogitsWarper(self.top_p)] if self.top_p < 1 else [])
            processors.append(SeededSampling(keys, ids.shape[1]))
        with torch.inference_mode(), _bare_settings(self.model):
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors
            )
        return [self._completion(own) for own in made[:, ids.shape[1] :].tolist()]

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
    base = base_model(model)
    stored = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = stored


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"got {name} {value}; wanted 1 or more")


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that end a completion: the tokenizer's and the checkpoint's own, such as an end of turn."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    found = [token for token in (tokenizer.eos_token_id, *listed) if token is not None]
    if not found:
        raise ModelError("neither tokenizer nor model has an end token, so no completion would end; set eos_token")
    return list(dict.fromkeys(int(token) for token in found))
