"""What requests and answers look like: our own form, and those that trainers and other servers already speak.

A form knows two things: the conversations it asks for, and the answer that its scores make.
"""

import inspect
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import expit
from transformers import PreTrainedTokenizerBase

from rmtrl.errors import DataError
from rmtrl.serving.model import Rendered, Scored, ServedModel
from rmtrl.types import Chat

TokenIds = list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]]


class Form(BaseModel):
    """A request whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Message(BaseModel):
    """One turn of a conversation, with whatever else its chat template reads."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class _Templated(Form):
    """A request with messages, and what their chat template reads besides."""

    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def chat(self, messages: Sequence[Message]) -> Any:
        """Returns messages as a conversation."""
        taken = sorted(_TEMPLATE_ARGUMENTS & (self.chat_template_kwargs or {}).keys())
        if taken:
            raise DataError(f"chat_template_kwargs holds {taken[0]!r}, which is no variable of a chat template")
        columns = {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}
        return Chat.of([message.model_dump(exclude_unset=True) for message in messages], columns)


_TEMPLATE_ARGUMENTS = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys()


# ---- ours


class ScoreRequest(_Templated):
    """Conversations, or a prompt and its candidates, or token ids: one of the three."""

    conversations: list[str | list[Message]] | None = None
    prompt: str | list[Message] | None = None
    candidates: list[str | list[Message]] | None = None
    token_ids: list[TokenIds] | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> "ScoreRequest":
        given = [self.conversations is not None, self.token_ids is not None, self.prompt is not None]
        if sum(given) != 1 or (self.prompt is None) != (self.candidates is None):
            raise ValueError("wanted conversations, or prompt and candidates, or token_ids: one of the three")
        return self

    def asked(self) -> list[Any]:
        """Returns the conversations to score."""
        if self.prompt is not None:
            return joined(self, self.prompt, self.candidates or [])
        if self.token_ids is not None:
            return list(self.token_ids)
        return [own if isinstance(own, str) else self.chat(own) for own in self.conversations or []]


class RankRequest(_Templated):
    """A prompt and its candidates."""

    prompt: str | list[Message]
    candidates: list[str | list[Message]] = Field(min_length=1)


def joined(form: _Templated, prompt: str | list[Message], candidates: Sequence[str | list[Message]]) -> list[Any]:
    """Returns the prompt with each of its candidates.

    Raises:
        DataError: If the prompt is text and a candidate messages.
    """
    if not isinstance(prompt, str):
        asked = form.chat(prompt)
        return [
            asked + ([{"role": "assistant", "content": own}] if isinstance(own, str) else list(form.chat(own)))
            for own in candidates
        ]
    if not all(isinstance(own, str) for own in candidates):
        raise DataError("the prompt is text and a candidate messages; wanted both in one form")
    return [prompt + str(own) for own in candidates]


class Scores(BaseModel):
    """Scores, and what calibration makes of them where there is one."""

    model_config = ConfigDict(protected_namespaces=())

    schema_: Literal["rmtrl/served-scores/1"] = Field(alias="schema")
    scores: list[float]
    rewards: list[float] | None
    probabilities: list[float] | None
    low: list[float] | None
    high: list[float] | None
    n_tokens: list[int]
    model: str


class Ranks(BaseModel):
    """The candidates in order, best first."""

    schema_: Literal["rmtrl/served-ranks/1"] = Field(alias="schema")
    order: list[int]
    scores: list[float]
    best: int


def scores_of(scored: Scored, served: ServedModel) -> dict[str, Any]:
    """Returns the answer of `/score`; a probability is that of beating an answer of average reward."""
    calibration = served.calibration
    low, high = (None, None) if scored.bounds is None else scored.bounds.tolist()
    rewards: list[float] | None = None if calibration is None else []
    probabilities = rewards
    if calibration is not None and scored.n_tokens:
        rewards = calibration.reward(scored.scores).tolist()
        probabilities = calibration.calibrator.predict_proba(scored.scores - calibration.mean_reward).tolist()
    return {
        "schema": "rmtrl/served-scores/1", "scores": scored.scores.tolist(), "rewards": rewards,
        "probabilities": probabilities, "low": low, "high": high, "n_tokens": scored.n_tokens, "model": served.name,
    }  # fmt: skip


def ranks_of(scored: Scored) -> dict[str, Any]:
    """Returns the answer of `/rank`; of equal scores the first stands first."""
    order = (-scored.scores).argsort(kind="stable").tolist()
    return {"schema": "rmtrl/served-ranks/1", "order": order, "scores": scored.scores.tolist(), "best": order[0]}


# ---- vLLM


class VLLMRequest(_Templated):
    """What `/classify` and `/pooling` of vLLM take. Rewards are raw unless `use_activation` is true."""

    input: str | list[str] | TokenIds | list[TokenIds] | None = None
    messages: list[Message] | None = None
    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = Field(None, description="Older name of use_activation.")
    add_special_tokens: bool | None = Field(None, description="By default they are added where they are missing.")
    task: Literal["classify"] | None = None
    encoding_format: Literal["float"] = "float"
    # taken, and of no effect on a score
    user: str | None = None
    request_id: str | None = None
    priority: int = 0
    cache_salt: str | None = None
    truncation_side: Literal["left", "right"] | None = None
    # known, and refused where they would change the text: nothing is cut, and the template is the model's own
    truncate_prompt_tokens: None = None
    chat_template: None = None
    add_generation_prompt: Literal[False] = False
    continue_final_message: Literal[False] = False

    @model_validator(mode="after")
    def _one_of_two(self) -> "VLLMRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("wanted input or messages, and one of them")
        return self

    @property
    def activates(self) -> bool:
        """Whether the sigmoid of the rewards is asked for."""
        return bool(self.activation if self.use_activation is None else self.use_activation)

    def asked(self) -> list[Any]:
        """Returns the conversations to score."""
        if self.messages is not None:
            return [self.chat(self.messages)]
        given: Any = self.input
        given = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        return [Rendered(own, self.add_special_tokens) if isinstance(own, str) else own for own in given]


def vllm_answer(values: Sequence[float], scored: Scored, served: ServedModel, *, pooling: bool) -> dict[str, Any]:
    """Returns vLLM's answer of `/classify` or `/pooling`."""
    label, n = {"label": "LABEL_0", "num_classes": 1}, sum(scored.n_tokens)
    data = [
        {"index": i, "object": "pooling", "data": [own]} if pooling else {"index": i, "probs": [own], **label}
        for i, own in enumerate(values)
    ]
    return {
        "id": f"{'pool' if pooling else 'classify'}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()),
        "model": served.name, "data": data,
        "usage": {"prompt_tokens": n, "total_tokens": n, "completion_tokens": 0, "prompt_tokens_details": None},
    }  # fmt: skip


# ---- trainers that post rendered text


class OpenRLHFRequest(Form):
    """What OpenRLHF posts to its remote URL; `prompts` and `labels` are for rewards by rule."""

    query: list[str]
    prompts: list[Any] | None = None
    labels: list[Any] | None = None


class SlimeRequest(Form):
    """What slime's `remote_rm` posts: one answer; the label is for rewards by rule."""

    prompt: str | list[Message]
    response: str
    label: Any = None

    def asked(self) -> list[Any]:
        """Returns the conversation to score."""
        if isinstance(self.prompt, str):
            return [Rendered(self.prompt + self.response)]
        return joined(_Templated(), self.prompt, [self.response])


class LlamaFactoryRequest(Form):
    """What LLaMA-Factory posts where `reward_model_type` is `api`: rendered texts, by the name of messages."""

    messages: list[str]
    model: str | None = None
    max_length: None = None


# ---- text-embeddings-inference

_Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
_OneOrPair = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(Form):
    """What `/predict` of text-embeddings-inference takes; a list of two texts is one pair, prompt and answer."""

    inputs: str | _Pair | list[_OneOrPair]
    raw_scores: bool = False
    truncate: Literal[False] | None = Field(False, description="Nothing is cut.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = "Right"

    @property
    def is_batch(self) -> bool:
        """Whether several are asked for, and so answered."""
        return not isinstance(self.inputs, str) and not (self.inputs and isinstance(self.inputs[0], str))

    def asked(self) -> list[Any]:
        """Returns the conversations to score."""
        texts: Any = self.inputs if self.is_batch else [self.inputs]
        return [Rendered("".join(own)) for own in texts]


def predictions_of(form: PredictRequest, values: Sequence[float]) -> Any:
    """Returns the answer of `/predict` in the shape of what was asked."""
    found = [[{"score": value, "label": "LABEL_0"}] for value in values]
    return found if form.is_batch else found[0]


def activated(scored: Scored, activates: bool) -> list[float]:
    """Returns rewards as they are, or their sigmoids."""
    return (expit(scored.scores) if activates else scored.scores).tolist()
