"""Scores from a reward model, or a judge, that another process serves: over HTTP, checked, and never in part."""

import asyncio
import logging
import os
import re
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmtrl.data.messages import half_character, message_text
from rmtrl.data.provenance import checkpoint_fingerprint, is_same_model
from rmtrl.errors import ModelError, RenderingError, UsageError, extra
from rmtrl.io import read_object
from rmtrl.metrics import step_rewards
from rmtrl.models import find_file, load_tokenizer
from rmtrl.reward.checkpoint import stored_rendering
from rmtrl.reward.rendering import text_of
from rmtrl.reward.scorer import ModelScorer, RewardScorer, check_conversations
from rmtrl.types import Chat, Conversation, Scorer, checked_scores, is_url, shorten

logger = logging.getLogger(__name__)

Protocol = Literal["rmtrl", "vllm", "tei", "openrlhf", "slime"]
Aggregation = Literal["min", "product", "last"]

_PATHS: dict[str, tuple[str, ...]] = {
    "rmtrl": ("/score",), "vllm": ("/classify", "/pooling"), "tei": ("/predict",), "openrlhf": ("/get_reward",),
    "slime": ("/slime",),
}  # fmt: skip
_KEY = "RMTRL_API_KEY"
_AGAIN = (408, 429)  # and all from 500 on
_PROBED, _NOISE, _OFF = 16, 1e-3, 0.1  # texts a server is tried with; what 16 bits may do to a score, what they do not


class _Again(Exception):
    """A try that failed and may be made again, after as many seconds as the server asks for."""

    def __init__(self, said: str, after: str = "") -> None:
        super().__init__(said)
        self.after_seconds = float(after) if after.isdecimal() else 0.0


class Endpoint:
    """A URL that JSON is posted to, with bounded tries.

    Args:
        url (`str`): Where to.
        attempts (`int`): Tries of one request. Made again are those that break, time out, or are answered with 408,
            429 or 5xx, after a random time that doubles, or the time that the server asks for.
        timeout (`float`): Seconds that a server may keep silent.
        most_wait (`float`): Longest time between two tries, in seconds; one that the server asks for may be longer.
        concurrency (`int`): Requests at a time.
        api_key_env (`str`): Name of the environment variable that holds the key; only the default may be unset.

    Raises:
        UsageError: If the URL has no scheme, a setting is unknown, or the variable named is not set.
    """

    def __init__(
        self, url: str, *, attempts: int = 5, timeout: float = 120.0, most_wait: float = 30.0, concurrency: int = 4,
        api_key_env: str = _KEY, **unknown: Any,
    ) -> None:  # fmt: skip
        if unknown:
            known = "attempts, timeout, most_wait, concurrency or api_key_env"
            raise UsageError(f"got the setting {next(iter(unknown))!r}; wanted {known}")
        if not is_url(url):
            raise UsageError(f"{url} is no URL without its scheme; write http://{url}")
        if api_key_env != _KEY and not os.environ.get(api_key_env):
            raise UsageError(f"the environment variable {api_key_env} is not set or empty; put the key there")
        self.url, self.attempts, self.timeout, self.most_wait = url, attempts, timeout, most_wait
        self.concurrency, self.api_key_env = concurrency, api_key_env
        with extra("remote", url):
            import httpx  # noqa: F401
            import tenacity  # noqa: F401

    @cached_property
    def _client(self) -> Any:
        import httpx

        key = os.environ.get(self.api_key_env)
        client = httpx.Client(timeout=self.timeout, headers={"Authorization": f"Bearer {key}"} if key else {})
        weakref.finalize(self, client.close)
        return client

    def post_all(self, bodies: Sequence[Any]) -> list[Any]:
        """Returns the answer to each body; the first that fails ends them all."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self.asked, "POST", self.url, json=body) for body in bodies]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def asked(self, method: str, url: str, **request: Any) -> Any:
        """Returns the JSON that a URL answers with.

        Raises:
            ModelError: If it refuses, or does not answer in all its tries.
        """
        import tenacity

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=self.most_wait)

        def wait(state: tenacity.RetryCallState) -> float:
            asked: Any = state.outcome.exception() if state.outcome else None
            return max(backoff(state), min(asked.after_seconds, self.timeout))

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts), retry=tenacity.retry_if_exception_type(_Again), wait=wait,
            reraise=True,
        )  # fmt: skip
        try:
            return tries(self._once, method, url, **request)
        except _Again as last:
            said = f"{url} gave nothing to use in {self.attempts} tries, at last {last}"
            raise ModelError(f"{said}; see whether the server is up and what its log says") from last

    def _once(self, method: str, url: str, **request: Any) -> Any:
        import httpx

        try:
            answer = self._client.request(method, url, **request)
        except httpx.TransportError as error:
            raise _Again(f"{type(error).__name__} ({error})") from error
        status = answer.status_code
        if status in _AGAIN or status >= 500:
            raise _Again(f"HTTP {status}: {_words(answer)}", answer.headers.get("Retry-After", ""))
        if 400 <= status < 500 and method == "GET":  # what is asked of a server by the way
            return {}
        if status != 200:
            key = f"; put its key in the environment variable {self.api_key_env}" if status == 401 else ""
            raise ModelError(f"{url} refused with HTTP {status}: {_words(answer)}{key}")
        try:
            return answer.json()
        except ValueError as error:
            raise ModelError(f"{url} answered {shorten(answer.text)!r}; wanted JSON; is it a model's URL?") from error


def _words(answer: Any) -> str:
    """Returns what a server says of an error, in the form of ours, of OpenAI's, of FastAPI's or of none."""
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    for name in ("error", "message", "detail"):
        said = said.get(name, said) if isinstance(said, dict) else said
    return " ".join(str(said).split())[:300] or "no words"


@contextmanager
def sendable(samples: Sequence[Any]) -> Iterator[None]:
    """Names the sample that holds half a character, where this block fails over one."""
    try:
        yield
    except (UnicodeEncodeError, TypeError, RenderingError) as error:
        if (index := half_character(samples)) is None:
            raise
        line = f"conversation {index} holds half a character, a lone surrogate that UTF-8 cannot hold; mend its text"
        raise UsageError(line, index=index) from error


class AsyncReward:
    """What a scorer that waits for others has besides: an asynchronous form."""

    async def reward(self: Any, prompts: Any, completions: Any, **columns: Any) -> Any:
        """Returns the scores of `prompts[i] + completions[i]` as an asynchronous reward function of TRL's."""
        return await asyncio.to_thread(self, prompts, completions, **columns)


class RemoteScorer(AsyncReward, ModelScorer):
    """
    Scores conversations with a reward model that another process serves: one float32 number each, in the order given.

    What it returns is whole, or an error: a request that fails is made again a few times and then raises, and so does
    an answer that is short, long, not finite, or of another count of tokens than was sent. Before its first scores are
    taken, a server is given some texts twice, together and alone, and `rmtrl serve` is asked whether it holds `model`.

    Args:
        url (`str`):
            Of the server or its endpoint, such as `http://127.0.0.1:8000`; what stands behind a `#` is the `model`:
            `http://127.0.0.1:8000/classify#outputs/rm`.
        protocol (`str`, *optional*):
            What the server speaks: `"rmtrl"` (`rmtrl serve`), `"vllm"` (`/classify` or `/pooling`), `"tei"`
            (`/predict` of text-embeddings-inference), `"openrlhf"` (its remote URL) or `"slime"`; read off the path of
            the URL by default.
        model (`str` or `Path`, *optional*):
            Folder or hub id of the checkpoint that is served, to encode as in training: `rmtrl` and `vllm` get token
            ids, the others text with the special tokens that they do not add. Without it, `rmtrl` and `slime` get
            messages, text goes out as it is, and `holds` is true of all; `vllm` needs it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            In place of the checkpoint's own.
        steps (`str`, *optional*):
            Where the server gives a text one score a step: `"min"`, `"product"` or `"last"` of them is its reward.
        batch_size (`int`, *optional*, defaults to `32`):
            Conversations of one request.
        checks (`bool`, *optional*, defaults to `True`):
            Whether the server is tried first, and its counts of tokens are compared.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run tokenizer code from the hub.
        settings:
            As in [`Endpoint`].

    Raises:
        UsageError: If the protocol is none of these, or needs the model.

    Example:

    ```python
    >>> scorer = RemoteScorer("http://127.0.0.1:8000/classify", model="outputs/rm")
    >>> GRPOTrainer(policy, reward_funcs=scorer.reward, train_dataset=prompts)  # asynchronous, in TRL from 1.16 on
    ```
    """

    def __init__(
        self, url: str, protocol: Protocol | None = None, *, model: str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None, steps: Aggregation | None = None, batch_size: int = 32,
        checks: bool = True, trust_remote_code: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        if protocol not in (None, *_PATHS):
            raise UsageError(f"got the protocol {protocol!r}; wanted {', '.join(_PATHS)}")
        url, _, named = url.partition("#")
        self.protocol, address = _addressed(url.rstrip("/"), protocol)
        self.endpoint = Endpoint(address, **settings)
        self.steps, self.checks, self._tried = steps, checks, False
        self.checkpoint = model = model or named
        if model and tokenizer is None:
            tokenizer = load_tokenizer(model, kind="reward model", trust_remote_code=trust_remote_code)
        own: dict[str, Any] = {"batch_tokens": 0, "batch_size": batch_size, "progress": False}
        super().__init__(tokenizer, rendering=stored_rendering(model) if model else None, **own)  # type: ignore[arg-type]
        if self.protocol == "vllm" and self.tokenizer.cls_token_id is not None and model:
            config = find_file(model, "config.json")
            if config and read_object(Path(config)).get("problem_type") != "regression":
                raise UsageError(
                    f"{model} is an encoder whose config.json does not say problem_type regression, so vLLM gives no "
                    "reward of it; save it anew: RewardScorer.from_pretrained(path).model.save_pretrained(path)"
                )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model that is served.

        Raises:
            UsageError: If the model was not named.
        """
        if self._tokenizer is None:
            url = self.endpoint.url
            raise UsageError(
                f"the tokens of {url} are not known here; name the checkpoint that it serves behind a #, as in "
                f"{url}#outputs/rm"
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the server says of its model: `/info` of `rmtrl serve`, `max_tokens` of vLLM, else nothing."""
        if self.protocol == "rmtrl":
            return self._told("/info")
        if self.protocol == "vllm":
            models = self._told("/v1/models").get("data")
            return {"max_tokens": models[0].get("max_model_len")} if models else {}
        return {}

    def _told(self, path: str) -> dict[str, Any]:
        """Returns what the server says at another path, nothing where it has none."""
        base = self.endpoint.url
        for own in _PATHS[self.protocol]:
            base = base.removesuffix(own)
        return dict(self.endpoint.asked("GET", base.removesuffix("/v1") + path))

    def other_model(self) -> tuple[str, str] | None:
        """Returns the sha256 of what `rmtrl serve` holds and of the model named, where they are known to differ."""
        folder = Path(self.checkpoint or "")
        if not self.checkpoint or not any(any(folder.glob(f"*.{kind}")) for kind in ("safetensors", "bin")):
            return None
        theirs = (self.info if self.protocol == "rmtrl" else self._told("/info")).get("fingerprint")
        if not isinstance(theirs, dict) or not theirs.get("sha256"):
            return None
        own = checkpoint_fingerprint(folder)
        return (theirs["sha256"], own["sha256"]) if is_same_model(theirs, own) is False else None

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the longest conversation the server takes, `None` where it does not say."""
        return self.info.get("max_tokens")

    @property
    def renders(self) -> dict[str, Any]:
        """What becomes of conversations: as the tokenizer says, else the hash of the template that the server has."""
        return super().renders if self._tokenizer else {"chat_template_sha256": self.info.get("template")}

    @property
    def dtype(self) -> str | None:
        """Name of the type of the model's weights, where the server says it."""
        return self.info.get("dtype")

    @property
    def sends_ids(self) -> bool:
        """Whether token ids are sent: the tokenizer is known, and ids are all that the head needs."""
        if self._tokenizer is None or self.protocol not in ("rmtrl", "vllm"):
            return False
        head = self.info.get("head")
        return not (isinstance(head, dict) and head.get("pooling") == "mean")

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations can be rendered and are short enough, `(N,)`; all, where the server decides."""
        return super().holds(conversations) if self._tokenizer else Scorer.holds(self, conversations)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the reward of each conversation, `(N,)` float32.

        Raises:
            ModelError: If the server refuses, does not answer in all its tries, or answers anything but one finite
                number a conversation.
            RenderingError: If a conversation cannot be rendered as in training.
        """
        check_conversations(conversations)
        with sendable(conversations):
            if self.sends_ids:
                return self.score_ids(self.encode_all(conversations))
            return self._scored(conversations if self._tokenizer is None else self._texts(conversations))

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Returns the reward of each token sequence, `(N,)` float32.

        Raises:
            UsageError: If the server takes no token ids, or the tokenizer is not known.
            As [`RemoteScorer.score`].
        """
        if not self.sends_ids:
            raise UsageError(f"{self.endpoint.url} gets no token ids: it renders, or {self.protocol} takes text alone")
        return self._scored([ids.tolist() if hasattr(ids, "tolist") else list(ids) for ids in sequences])

    def _texts(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        """Returns what is sent to servers that take text: all rendered, but for messages that slime's may have."""
        adds, encoded = self.protocol == "tei", self.encode_all(conversations)
        return [
            own if self.protocol in ("slime", "rmtrl") and not isinstance(own, str)
            else text_of(self.tokenizer, own, ids, adds=adds)
            for own, ids in zip(conversations, encoded, strict=True)
        ]  # fmt: skip

    def _scored(self, samples: Sequence[Any]) -> NDArray[np.float32]:
        if self.checks and not self._tried and len(samples):
            self._try(list(samples[:_PROBED]))
            self._tried = True
        return self._asked(samples)

    def _try(self, samples: list[Any]) -> None:
        """Raises where another model is held or a text's score moves, and warns of what looks like a sigmoid."""
        if differ := self.other_model():
            theirs, own = (sha256[:12] for sha256 in differ)
            raise ModelError(
                f"{self.endpoint.url} holds another model (sha256 {theirs}…) than {self.checkpoint} ({own}…); name "
                "the one that it holds, or serve this"
            )
        together, alone = self._asked([*samples, samples[0]]), self._asked(samples[:1])
        off = float(np.abs(together[[0, -1]] - alone).max())
        if off > _OFF * max(1.0, abs(float(alone[0]))):
            raise ModelError(
                f"{self.endpoint.url} gave one text {together[0]:g} and {together[-1]:g} among others, {alone[0]:g} "
                "alone; wanted one score, whatever stands beside it: is it a reward model, and are its rows masked?"
            )
        if off > _NOISE:
            logger.warning("%s: the score of a text moves by %.1g: 16 bits? float32 is exact", self.endpoint.url, off)
        if len(samples) > 3 and ((together > 0) & (together < 1)).all():
            logger.warning(
                "%s: all of %d first scores lie between 0 and 1: a sigmoid? `rmtrl parity` tells", self.endpoint.url,
                len(samples),
            )  # fmt: skip

    def _asked(self, samples: Sequence[Any]) -> NDArray[np.float32]:
        """Returns what the server gives for samples, which are token ids or conversations."""
        size = 1 if self.protocol == "slime" or any(map(_variables, samples)) else self.batch_size or len(samples)
        chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
        answers = self.endpoint.post_all([self._request(chunk) for chunk in chunks])
        values = [v for chunk, told in zip(chunks, answers, strict=True) for v in self._values(chunk, told)]
        return checked_scores(values, len(samples), name=f"server {self.endpoint.url}").astype(np.float32)

    def _request(self, chunk: Sequence[Any]) -> dict[str, Any]:
        """Returns the body of a request."""
        if self.protocol == "vllm":
            task = {"task": "classify"} if self.endpoint.url.endswith("/pooling") else {}
            # by default one label goes through a sigmoid; of an encoder, this switches off its pooler's own tanh too
            raw = {"use_activation": False} if self.tokenizer.cls_token_id is None else {}
            return {"input": list(chunk), **raw, **task}
        if self.protocol == "rmtrl":
            if self.sends_ids:
                return {"token_ids": list(chunk)}
            return {"conversations": list(chunk), **(_variables(chunk[0]))}
        if self.protocol == "slime":
            (own,) = chunk
            cut = ("", own) if isinstance(own, str) else (list(own[:-1]), message_text(own[-1]))
            return {"prompt": cut[0], "response": cut[1], "label": None}
        if any(not isinstance(own, str) for own in chunk):
            raise UsageError(f"{self.protocol} takes text, got messages; name the checkpoint behind a # of the URL")
        if self.protocol == "tei":  # a list of two texts would be one pair
            return {"inputs": [[text] for text in chunk], "raw_scores": True, "truncate": False}
        return {"query": list(chunk), "prompts": [""] * len(chunk), "labels": [None] * len(chunk)}

    def _values(self, chunk: Sequence[Any], told: Any) -> list[Any]:
        """Returns the scores in an answer, one a sample."""
        try:
            values = self._read(told)
            values = step_rewards(values, self.steps).tolist() if self.steps else values
            n_tokens = told["usage"]["prompt_tokens"] if self.protocol == "vllm" else 0
            n_tokens = sum(told["n_tokens"]) if self.protocol == "rmtrl" else n_tokens
        except (KeyError, TypeError, IndexError, ValueError) as error:
            said = shorten(repr(told))
            raise ModelError(f"{self.endpoint.url} answered {said}; wanted what {self.protocol} answers") from error
        if len(values) != len(chunk):
            raise ModelError(f"{self.endpoint.url} answered {len(values)} scores for {len(chunk)}; wanted one each")
        n_sent = sum(map(len, chunk)) if self.sends_ids else n_tokens
        if self.checks and n_tokens != n_sent:
            raise ModelError(
                f"{self.endpoint.url} read {n_tokens} tokens of {len(chunk)} texts, sent were {n_sent}: a second "
                "start token, a missing end or a cut; `rmtrl parity` tells"
            )
        return values

    def _read(self, told: Any) -> list[Any]:
        if self.protocol == "vllm":
            rows = [row.get("probs", row.get("data")) for row in sorted(told["data"], key=lambda row: row["index"])]
            return rows if self.steps else [_only(row) for row in rows]
        if self.protocol == "tei":
            return [_only(row)["score"] for row in told]
        if self.protocol == "slime":
            return [told]
        return list(told["scores" if self.protocol == "rmtrl" else "rewards"])


def _addressed(url: str, protocol: str | None) -> tuple[str, str]:
    """Returns the protocol of a URL, and the URL with the path of an endpoint."""
    path = urlsplit(url).path
    found = next((name for name, known in _PATHS.items() if path.endswith(known)), "rmtrl")
    own = protocol or found
    whole = path.endswith(_PATHS[own]) or (path and own in ("openrlhf", "slime"))  # theirs are of any path
    return own, url if whole else url + _PATHS[own][0]


def _only(row: Any) -> Any:
    """Returns the one thing in a list."""
    (own,) = row
    return own


def _variables(conversation: Any) -> dict[str, Any]:
    """Returns the tools and template variables of a conversation, those that it has."""
    if not isinstance(conversation, Chat):
        return {}
    given = {"tools": conversation.tools, "chat_template_kwargs": conversation.chat_template_kwargs}
    return {name: value for name, value in given.items() if value}


def load_scorer(model: str | Path, **settings: Any) -> Any:
    """Returns the scorer of whatever names a reward model: a folder, a hub id, or the URL of a server.

    Args:
        model (`str` or `Path`): As in [`RewardScorer.from_pretrained`], or in [`RemoteScorer`].
        settings: As in [`RewardScorer.from_pretrained`]; a server has its own device, type and batches.

    Example:

    ```python
    >>> load_scorer("http://127.0.0.1:8000#outputs/rm").score(conversations).shape
    (2,)
    ```
    """
    if is_url(model):
        return RemoteScorer(str(model), trust_remote_code=settings.get("trust_remote_code", False))
    if re.fullmatch(r"[\w.-]+:\d+([/#].*)?", str(model)) and not Path(model).exists():
        raise UsageError(f"{model} is no folder or hub id; of a server write http://{model}")
    return RewardScorer.from_pretrained(model, **settings)
