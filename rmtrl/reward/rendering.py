"""How text becomes tokens, and the record of it that travels with a reward model.

A reward model judges tokens, not text: another template, a second start token or a pad token that hides the end gives
other scores without any error. [`Rendering`] is stored with the checkpoint and compared by whoever scores with it.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from rmtrl.data.messages import conversation_text, is_filled, says, without_fillings
from rmtrl.data.templates import TEMPLATE_ERRORS, check_chat_template, rendered
from rmtrl.errors import RenderingError
from rmtrl.types import Chat, Conversation, Message, shorten

_PAD_NAMES = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|padding|>",
    "<|PAD_TOKEN|>",
    "<|endoftext|>",
)


_GIVEN = (
    "max_length",
    "tools",
    "chat_template_kwargs",
    "start_twice",
)  # what of a rendering does not follow from its tokenizer


@dataclass(frozen=True)
class Rendering:
    """What a reward model's scores depend on besides its weights.

    Args:
        chat_template_sha256 (`str`, *optional*): Hash of the chat template; `None` where there is none.
        bos_token_id, eos_token_id, pad_token_id (`int`, *optional*): The special tokens.
        max_length (`int`, *optional*): Longest sequence seen in training, in tokens.
        tools (`list`, *optional*): Tools that every conversation of the training set had.
        chat_template_kwargs (`dict`, *optional*): Variables of the template that every one had, likewise.
        start_twice (`bool`): Whether sequences of the training set started with the start token twice.
    """

    chat_template_sha256: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    max_length: int | None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    start_twice: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None, **variables: Any) -> "Rendering":
        """Returns the rendering that a tokenizer gives, with the template's `variables` that are always the same."""
        template = tokenizer.chat_template
        return cls(
            chat_template_sha256=hashlib.sha256(str(template).encode()).hexdigest() if template else None,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_length=max_length,
            **variables,
        )

    def completed(self, conversation: Conversation) -> Conversation:
        """Returns a conversation with the tools and template variables of training where it has none of its own."""
        if is_encoded(conversation):
            return conversation
        own = conversation if isinstance(conversation, Chat) else Chat()
        tools = self.tools if own.tools is None else own.tools
        kwargs = own.chat_template_kwargs or self.chat_template_kwargs
        return Chat.of(conversation, {"tools": tools, "chat_template_kwargs": kwargs})

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises where a tokenizer renders otherwise than the model was trained on.

        Raises:
            RenderingError: Naming what differs, with both values.
        """
        wanted = asdict(self)
        got = asdict(Rendering.of(tokenizer, **{name: wanted[name] for name in _GIVEN}))
        names = [name for name in got if got[name] != wanted[name]]
        if names:
            differs = ", ".join(f"{name} {_short(got[name])}, trained with {_short(wanted[name])}" for name in names)
            raise RenderingError(
                f"the tokenizer does not render as in training: {differs}; use the tokenizer saved with the model"
            )


def is_encoded(conversation: Any) -> bool:
    """Returns whether a conversation is token ids already, which are scored as they stand."""
    return isinstance(conversation, list) and bool(conversation) and isinstance(conversation[0], int)


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Returns the token ids of one conversation; see [`encode_all`]."""
    return encode_all(tokenizer, [conversation])[0]


def encode_all(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[list[int]]:
    """Returns the token ids of each conversation exactly as TRL's reward trainer makes them.

    Message lists go through the chat template, with the tools and template variables of a [`~rmtrl.types.Chat`]. A
    string is taken as rendered: it gets the end token if it lacks it and the tokenizer has one, and the tokenizer's
    own special tokens. Token ids stay as they are.

    Raises:
        RenderingError: If there is no chat template for a message list, the template fails, a message has no content
            and nothing in its place, or a sequence starts with the start token twice (a rendered string that already
            holds it). Its `index` says which conversation.
    """
    return all_encoded(try_encode(tokenizer, conversations))


def all_encoded(encoded: Sequence[list[int] | RenderingError]) -> list[list[int]]:
    """Returns the token ids of [`try_encode`], or raises the first error there."""
    for ids in encoded:
        if isinstance(ids, RenderingError):
            raise ids
    return encoded  # type: ignore[return-value]


def try_encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], *, start_twice: bool = False
) -> list[list[int] | RenderingError]:
    """Returns the token ids of each conversation as [`encode_all`] does, or why there are none.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Renders.
        conversations (`Sequence[Conversation]`): Message lists or strings.
        start_twice (`bool`): Whether a sequence may start with the start token twice.
    """
    found: list[Any] = [_try_text(tokenizer, own, index) for index, own in enumerate(conversations)]
    for plain in (True, False):  # a template writes the special tokens itself
        rows = [
            i for i, own in enumerate(conversations) if isinstance(own, str) == plain and isinstance(found[i], str)
        ]
        texts = [found[i] for i in rows]
        # whether a sequence is too long is for the scorer to say
        ids = tokenizer(text=texts, add_special_tokens=plain, verbose=False)["input_ids"] if texts else []
        for i, own in zip(rows, ids, strict=True):
            found[i] = own if start_twice else _one_start(tokenizer, own, i)
    return found


def text_of(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, ids: Sequence[int], *, adds: bool) -> str:
    """Returns the text that a tokenizer makes these token ids of.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Of whoever gets the text.
        conversation (`Conversation`): What the ids are of.
        ids (`Sequence[int]`): Its token ids, see [`encode_all`].
        adds (`bool`): Whether that tokenizer adds its special tokens.

    Raises:
        RenderingError: If there is none.
    """
    ended = [conversation, conversation + (tokenizer.eos_token or "")] if isinstance(conversation, str) else []
    settings: dict[str, Any] = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    decoded = (str(tokenizer.decode(list(own), **settings)) for own in (ids, ids[1:], ids[1:-1]))
    for text in (*ended, *decoded):
        if list(tokenizer(text=text, add_special_tokens=adds, verbose=False)["input_ids"]) == list(ids):
            return text
    start = shorten(conversation_text(conversation))
    raise RenderingError(f"no text gives the tokens of {start!r}; send them to a server that takes token ids")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, *, index: int = 0, continues: bool = False
) -> list[int]:
    """Returns the token ids that a policy continues: text as it stands, messages with their generation prompt.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The policy's.
        prompt (`Conversation`): Rendered text, whose own start token is not doubled, or messages.
        index (`int`): What to call the prompt in errors.
        continues (`bool`): Whether a last message of the assistant's is gone on with.

    Raises:
        RenderingError: As [`encode_all`].
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(text=prompt, verbose=False)["input_ids"])
        return ids[1:] if _starts_twice(tokenizer, ids) else ids
    opened = continues and prompt[-1]["role"] == "assistant"
    text = _render(tokenizer, prompt, index, "prompt", add_generation_prompt=not opened, continue_final_message=opened)
    return list(tokenizer(text=text, add_special_tokens=False, verbose=False)["input_ids"])


def _try_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, index: int) -> Any:
    """Returns a conversation as the text that is tokenised, or why there is none; token ids as they are."""
    if is_encoded(conversation):
        return conversation
    if isinstance(conversation, str):
        eos = tokenizer.eos_token or ""
        return conversation if conversation.endswith(eos) else conversation + eos
    try:
        return _render(tokenizer, conversation, index)
    except RenderingError as error:
        return error


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], index: int, name: str = "conversation",
    **settings: Any,
) -> str:  # fmt: skip
    """Returns what the chat template makes of messages."""
    check_chat_template(tokenizer)
    for place, message in enumerate(messages):
        if not says(message):
            raise RenderingError(f"message {place} of {name} {index} has no content; give it text", index=index)
    try:
        return rendered(tokenizer, messages, **settings)
    except TEMPLATE_ERRORS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise RenderingError(
            f"the chat template fails on {name} {index}: {said}; give roles and content that it takes", index=index
        ) from error


def _one_start(tokenizer: PreTrainedTokenizerBase, ids: list[int], index: int) -> list[int] | RenderingError:
    if not _starts_twice(tokenizer, ids):
        return ids
    return RenderingError(starts_twice(tokenizer, f"conversation {index} starts"), index=index)


def starts_twice(tokenizer: PreTrainedTokenizerBase, what: str) -> str:
    """Returns what to say of texts with two start tokens; `what` is which and the verb, such as `"3 pairs start"`."""
    return (
        f"{what} with {tokenizer.bos_token!r} twice: the text holds the start token and the tokenizer adds another; "
        "give message lists, or strings without the start token"
    )


def _starts_twice(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    start = tokenizer.bos_token_id
    return start is not None and list(ids[:2]) == [start, start]


def values_of(dataset: Dataset, name: str) -> list[Any]:
    """Returns a column as it was given: Arrow writes null for every key of an object that other rows have.

    Example:

    ```python
    >>> values_of(Dataset.from_dict({"m": [[{"role": "user"}, {"role": "tool", "name": "f"}]]}), "m")
    [[{'role': 'user'}, {'role': 'tool', 'name': 'f'}]]
    ```
    """
    values = list(dataset[name])
    feature = dataset.features[name]
    return without_fillings(values, [feature]) if is_filled(feature) else values


def completion_starts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], sequences: Sequence[Sequence[int]]
) -> list[int]:
    """Returns the position of the first token of each conversation's last message; 0 for a string or token ids.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Renders.
        conversations (`Sequence[Conversation]`): Message lists or strings.
        sequences (`Sequence[Sequence[int]]`): Their token ids, see [`encode_all`].
    """
    starts = []
    for conversation, ids in zip(conversations, sequences, strict=True):
        head: list[int] = []
        if not (isinstance(conversation, str) or is_encoded(conversation)) and len(conversation) > 1:
            head = encode_prompt(tokenizer, conversation[:-1])
        shared = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), min(len(head), len(ids)))
        starts.append(min(shared, len(ids) - 1))
    return starts


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, *, below: int = sys.maxsize) -> str:
    """Returns a token below an id to pad with that is not the end token, adding `<|pad|>` if the tokenizer has none.

    Preferred are tokens made for it, then the unknown and the start token: none of them ends a sequence, and padded
    positions are masked. Other special tokens may end a turn.
    """
    vocabulary = tokenizer.get_vocab()
    for token in (*_PAD_NAMES, tokenizer.unk_token, tokenizer.bos_token):
        if vocabulary.get(token, below) < below and token != tokenizer.eos_token:
            return str(token)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return "<|pad|>"


def _short(value: object) -> str:
    return f"{value[:8]}…" if isinstance(value, str) and len(value) > 12 else str(value)
