"""A model behind a URL gives the scores of the model, or one clear error: against servers that this file plays."""

import asyncio
import json
import logging
import sys
import threading

import numpy as np
import pytest

from rmtrl import RemoteScorer, RewardScorer
from rmtrl.errors import DataError, ModelError, RenderingError, UsageError
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.reward.remote import load_scorer

FAST = {"attempts": 3, "most_wait": 0.01, "timeout": 5.0}
CHATS = [
    [{"role": "user", "content": "red ?"}, {"role": "assistant", "content": " ".join(["good"] * n)}]
    for n in (1, 4, 2, 9, 3)
]
TEXTS = ["red ? good", "blue ? bad sea", "sun ? yes yes yes no", "moon ? no"]


def n_scores(path, body):
    """Answers as `rmtrl serve` does: a text's score is its number of characters, of token ids their sum."""
    if path == "/info":
        return {"max_tokens": 40, "head": None}
    samples = body.get("token_ids") or body["conversations"]
    scores = [
        len(s) if isinstance(s, str) else sum(s) if isinstance(s[0], int) else len(s[-1]["content"]) for s in samples
    ]
    return {"scores": [float(score) for score in scores], "n_tokens": [len(s) for s in samples]}


def of_model(scorer):
    """Answers as each kind of server does that serves this reward model."""
    lock = threading.Lock()

    def rewards(sequences):
        with lock:
            return [float(score) for score in scorer.score_ids(sequences)]

    def ids(texts, adds):
        return [scorer.tokenizer(text, add_special_tokens=adds)["input_ids"] for text in texts]

    def answer(path, body):
        if path == "/v1/models":
            return {"data": [{"id": "rm", "max_model_len": 256}]}
        if path == "/info":
            return {"max_tokens": 256, "head": None}
        if path == "/score":
            sequences = body.get("token_ids") or scorer.encode_all(body["conversations"])
            return {"scores": rewards(sequences), "n_tokens": list(map(len, sequences))}
        if path in ("/classify", "/pooling"):
            assert body["use_activation"] is False and "truncate_prompt_tokens" not in body
            key, data = ("probs", rewards(body["input"])) if path == "/classify" else ("data", rewards(body["input"]))
            rows = [{"index": i, key: [score]} for i, score in enumerate(data)]
            return {"data": rows[::-1], "usage": {"prompt_tokens": sum(map(len, body["input"]))}}
        if path == "/predict":
            assert body["raw_scores"] and not body["truncate"]
            return [
                [{"score": s, "label": "LABEL_0"}] for s in rewards(ids([text for (text,) in body["inputs"]], True))
            ]
        if path == "/get_reward":
            assert len(body["query"]) == len(body["prompts"]) == len(body["labels"])
            return {"rewards": rewards(ids(body["query"], False)), "scores": [], "extra_logs": {}}
        if isinstance(body["prompt"], list):
            whole = [*body["prompt"], {"role": "assistant", "content": body["response"]}]
            return rewards(scorer.encode_all([whole]))[0]
        return rewards(ids([body["prompt"] + body["response"]], False))[0]

    return answer


@pytest.mark.parametrize("path", ["", "/score", "/classify", "/pooling", "/predict", "/get_reward", "/slime"])
@pytest.mark.parametrize("conversations", [CHATS, TEXTS], ids=["messages", "text"])
def test_every_protocol_gives_the_scores_of_the_model(path, conversations, serve, checkpoint):
    local = RewardScorer.from_pretrained(checkpoint)
    server = serve(of_model(local))
    scorer = RemoteScorer(f"{server.url}{path}#{checkpoint}", batch_size=2, **FAST)
    expected = local.score(conversations)
    scores = scorer.score(conversations)
    assert scores.dtype == np.float32 and np.abs(scores - expected).max() < 1e-5
    called = scorer(prompts=[c[:-1] for c in conversations], completions=[c[-1:] for c in conversations])
    assert np.abs(called - expected).max() < 1e-5 and isinstance(called[0], float)
    waited = asyncio.run(scorer.reward([c[:-1] for c in conversations], [c[-1:] for c in conversations], column=[1]))
    assert waited == called and asyncio.iscoroutinefunction(scorer.reward)
    assert scorer.score([]).shape == (0,)


def test_token_ids_of_our_own_encoding_are_sent_where_the_server_takes_them(serve, checkpoint):
    server = serve(n_scores)
    scorer = RemoteScorer(server.url, model=checkpoint, checks=False, **FAST)
    encoded = RewardScorer.from_pretrained(checkpoint).encode_all([*CHATS, *TEXTS])
    assert scorer.score([*CHATS, *TEXTS]).tolist() == list(map(sum, encoded)) == scorer.score_ids(encoded).tolist()
    assert server.calls[-1].body == {"token_ids": encoded}
    assert scorer.holds([CHATS[0], "good " * 60, [{"role": "user"}]]).tolist() == [True, False, False]
    assert scorer.most_tokens == 40
    plain = RemoteScorer(server.url, **FAST)
    assert plain.score(CHATS).tolist() == [len(chat[-1]["content"]) for chat in CHATS] and plain.holds(CHATS).all()
    for ask in (lambda: plain.encode(CHATS[0]), lambda: RemoteScorer(f"{server.url}/classify")):
        with pytest.raises(UsageError, match="name the checkpoint that it serves behind a #"):
            ask()
    with pytest.raises(UsageError, match="no token ids"):
        RemoteScorer(f"{server.url}/predict#{checkpoint}").score_ids(encoded)


def test_tools_and_template_variables_go_beside_the_messages(serve):
    from rmtrl.types import Chat

    server = serve(n_scores)
    tools = [{"type": "function"}]
    chats = [Chat(CHATS[0], tools=tools), CHATS[1], Chat(CHATS[2], chat_template_kwargs={"thinking": False})]
    RemoteScorer(server.url, checks=False, **FAST).score(chats)
    sent = sorted((call.body for call in server.calls), key=lambda body: len(json.dumps(body)))
    assert {"conversations": [CHATS[0]], "tools": tools} in sent and {"conversations": [CHATS[1]]} in sent
    assert {"conversations": [CHATS[2]], "chat_template_kwargs": {"thinking": False}} in sent


FAULTS = {
    "short": ({"scores": [1.0]}, "answered 1 scores for 2"),
    "long": ({"scores": [1.0, 2.0, 3.0]}, "answered 3 scores for 2"),
    "nan": ({"scores": [1.0, float("nan")]}, "returned nan for conversation 1"),
    "infinite": ({"scores": [float("inf"), 1.0]}, "returned inf for conversation 0"),
    "none": ({"scores": [None, 1.0]}, "returned None for conversation 0"),
    "a list": ({"scores": [[0.1], 1.0]}, r"returned \[0.1\] for conversation 0"),
    "no scores": ({"result": 3}, "wanted what rmtrl answers"),
    "no object": (3, "wanted what rmtrl answers"),
    "no json": (b"<html>hello</html>", "wanted JSON"),
    "a redirect": ((307, b"", {"Location": "/elsewhere"}), "HTTP 307"),
    "a refusal": ((422, {"error": "conversation 1 is empty"}, {}), "HTTP 422: conversation 1 is empty"),
    "a refusal of OpenAI's": ((400, {"error": {"message": "no template"}}, {}), "HTTP 400: no template"),
    "a refusal of FastAPI's": ((401, {"detail": "who?"}, {}), r"HTTP 401: who\?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_not_one_finite_number_each_raises_at_once(fault, serve):
    told, said = FAULTS[fault]
    told = told | {"n_tokens": [1, 1]} if isinstance(told, dict) else told
    server = serve(lambda path, body: told)
    with pytest.raises(ModelError, match=said) as failed:
        RemoteScorer(server.url, checks=False, **FAST).score(TEXTS[:2])
    assert len(server.calls) == 1 and server.url in str(failed.value) and "\n" not in str(failed.value)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_scores_under_an_error_are_not_taken_and_a_request_is_made_again_as_often_as_said(status, serve):
    answers = [(status, {"scores": [7.0], "n_tokens": [1]}, {})] * 2
    server = serve(lambda path, body: answers.pop() if answers else n_scores(path, body))
    assert RemoteScorer(server.url, checks=False, **FAST).score(TEXTS[:1]).tolist() == [len(TEXTS[0])]
    assert len(server.calls) == 3
    answers += [(status, {"error": "no room"}, {})] * 3
    with pytest.raises(ModelError, match=f"in 3 tries, at last HTTP {status}: no room; see whether"):
        RemoteScorer(server.url, checks=False, **FAST).score(TEXTS[:1])
    assert len(server.calls) == 6


def test_a_server_that_asks_for_time_gets_it(serve, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    answers = [(429, {}, {"Retry-After": after}) for after in ("3", "Wed, 21 Oct 2026 07:28:00 GMT", "9999")]
    server = serve(lambda path, body: answers.pop() if answers else n_scores(path, body))
    RemoteScorer(server.url, checks=False, attempts=4, most_wait=0.01, timeout=5.0).score(TEXTS[:1])
    assert waits[0] == 5.0 and waits[1] <= 0.01 and waits[2] == 3.0


def test_a_server_that_stalls_or_is_gone_is_one_error_after_the_tries(serve):
    gate = threading.Event()
    server = serve(lambda path, body: gate.wait(20) and {})
    with pytest.raises(ModelError, match=r"in 2 tries, at last ReadTimeout"):
        RemoteScorer(server.url, checks=False, attempts=2, most_wait=0.01, timeout=0.1).score(TEXTS)
    gate.set()
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(ModelError, match=r"in 3 tries, at last ConnectError"):
        RemoteScorer(server.url, checks=False, **FAST).score(TEXTS)


def test_one_failed_chunk_fails_the_whole(serve):
    def answer(path, body):
        return (500, {}, {}) if body["conversations"] == TEXTS[2:3] else n_scores(path, body)

    with pytest.raises(ModelError, match="in 3 tries"):
        RemoteScorer(serve(answer).url, checks=False, batch_size=1, **FAST).score(TEXTS)


def test_the_server_is_tried_before_its_scores_are_taken(serve, caplog):
    caplog.set_level(logging.WARNING)
    calls = iter(range(1000))

    def moving(path, body):
        told = n_scores(path, body)
        return told | {"scores": [score + next(calls) for score in told["scores"]]}

    with pytest.raises(ModelError, match="wanted one score, whatever stands beside it"):
        RemoteScorer(serve(moving).url, **FAST).score(TEXTS)

    def rounded(path, body):
        told = n_scores(path, body)
        return told | {"scores": [score + 0.01 * len(told["scores"]) for score in told["scores"]]}

    RemoteScorer(serve(rounded).url, **FAST).score(TEXTS)
    assert "16 bits" in caplog.text and "sigmoid" not in caplog.text

    def squashed(path, body):
        told = n_scores(path, body)
        return told | {"scores": [1 / (1 + np.exp(-0.1 * score)) for score in told["scores"]]}

    server = serve(squashed)
    scorer = RemoteScorer(server.url, **FAST)
    first, second = scorer.score(TEXTS), scorer.score(TEXTS)
    assert "a sigmoid?" in caplog.text and (first == second).all()
    assert [len(call.body["conversations"]) for call in server.calls] == [5, 1, 4, 4]  # tried once


def test_a_count_of_tokens_that_is_not_ours_raises(serve, checkpoint):
    def answer(path, body):
        told = of_model(RewardScorer.from_pretrained(checkpoint))(path, body)
        return told if "usage" not in told else told | {"usage": {"prompt_tokens": told["usage"]["prompt_tokens"] + 5}}

    scorer = RemoteScorer(f"{serve(answer).url}/classify", model=checkpoint, **FAST)
    with pytest.raises(ModelError, match="read 33 tokens of 2 texts, sent were 28: a second start token"):
        scorer.score_ids([[5] * 14, [6] * 15][:1])


def test_the_key_is_read_from_the_environment_and_never_shown(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret")
    server = serve(lambda path, body: n_scores(path, body) if len(server.calls) < 2 else (401, {"error": "no"}, {}))
    scorer = RemoteScorer(server.url, api_key_env="MY_KEY", checks=False, **FAST)
    scorer.score(TEXTS)
    assert server.calls[0].headers["Authorization"] == "Bearer s3cret"
    with pytest.raises(ModelError) as failed:
        scorer.score(TEXTS)
    assert "s3cret" not in str(failed.value) + repr(vars(scorer.endpoint)) + repr(scorer)
    RemoteScorer(server.url, checks=False, **FAST)
    with pytest.raises(ModelError):
        RemoteScorer(server.url, checks=False, **FAST).score(TEXTS)
    assert "Authorization" not in server.calls[-1].headers


def test_a_score_a_step_becomes_the_reward_of_the_answer(serve):
    server = serve(lambda path, body: {"scores": [[0.5, 0.2, 0.4]] * len(body["conversations"]), "n_tokens": [1]})
    for steps, expected in {"min": 0.2, "product": 0.04, "last": 0.4}.items():
        scorer = RemoteScorer(server.url, steps=steps, checks=False, **FAST)
        assert scorer.score(TEXTS[:1]) == pytest.approx([expected])


def test_a_url_is_loaded_as_a_model_is(serve, checkpoint):
    assert isinstance(load_scorer("http://127.0.0.1:1/pooling#" + str(checkpoint), device="cpu"), RemoteScorer)
    assert isinstance(load_scorer(checkpoint, progress=False), RewardScorer)
    with pytest.raises(UsageError, match="wanted rmtrl, vllm"):
        RemoteScorer("http://127.0.0.1:1", "sglang")


@pytest.mark.parametrize("path", ["", "/classify", "/predict"])
def test_a_server_that_holds_another_model_than_the_folder_is_refused(path, serve, checkpoint):
    own, local = model_fingerprint(checkpoint), of_model(RewardScorer.from_pretrained(checkpoint))
    held = dict(own)

    def answer(path, body):
        return {"max_tokens": 256, "head": None, "fingerprint": held} if path == "/info" else local(path, body)

    server = serve(answer)
    assert len(RemoteScorer(f"{server.url}{path}", model=checkpoint, **FAST).score(CHATS)) == len(CHATS)
    held["sha256"] = "72d3" * 16
    line = rf"holds another model \(sha256 72d372d372d3…\) than {checkpoint} \({own['sha256'][:12]}…\)"
    with pytest.raises(ModelError, match=line):
        RemoteScorer(f"{server.url}{path}#{checkpoint}", **FAST).score(CHATS)
    for weights in checkpoint.glob("*.safetensors"):  # of the tokenizer alone nothing can be told
        weights.unlink()
    assert len(RemoteScorer(f"{server.url}{path}", model=checkpoint, **FAST).score(CHATS)) == len(CHATS)


@pytest.mark.parametrize("path", ["", "#", "/classify#", "/get_reward"])
def test_half_a_character_is_one_line_with_the_place_of_its_conversation(path, serve, checkpoint):
    url = serve(of_model(RewardScorer.from_pretrained(checkpoint))).url + path
    scorer = RemoteScorer(url + str(checkpoint) if "#" in path else url, checks=False, **FAST)
    with pytest.raises(UsageError, match="conversation 1 holds half a character") as failed:
        scorer.score([TEXTS[0], "a \ud83d b", TEXTS[1]])
    assert failed.value.index == 1


@pytest.mark.parametrize("url", ["localhost:18700", "127.0.0.1:18700/classify", "rm.local:80#outputs/rm"])
def test_a_url_without_its_scheme_is_said_at_once(url, rmtrl, tmp_path):
    for named in (lambda: RemoteScorer(url), lambda: load_scorer(url)):
        with pytest.raises(UsageError, match=f"write http://{url.partition('#')[0]}"):
            named()
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a ", "chosen": "good", "rejected": "bad"}))
    code, _, err = rmtrl("score", tmp_path / "pairs.jsonl", "--model", url, "--out", tmp_path / "scores.jsonl")
    assert code == 2 and f"write http://{url.partition('#')[0]}" in err, err


def test_keys_that_are_named_must_be_set_and_a_401_says_where_the_key_goes(serve, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    url = serve(lambda path, body: (401, {"error": "got no key"}, {})).url
    with pytest.raises(UsageError, match="MY_KEY is not set or empty"):
        RemoteScorer(url, api_key_env="MY_KEY")
    with pytest.raises(ModelError, match="got no key; .*in the environment variable RMTRL_API_KEY"):
        RemoteScorer(url, checks=False, **FAST).score(TEXTS)


def test_what_is_no_list_of_conversations_or_no_setting_is_one_line(serve):
    url = serve(n_scores).url
    with pytest.raises(DataError, match="takes a list of them"):
        RemoteScorer(url, **FAST).score("abc")
    with pytest.raises(UsageError, match="got 2 prompts and 1 completions"):
        RemoteScorer(url, **FAST)(prompts=["a", "b"], completions=["c"])
    with pytest.raises(UsageError, match="got the setting 'tries'; wanted attempts, "):
        RemoteScorer(url, tries=3)


def test_text_that_no_tokenizer_makes_tokens_of_is_refused(tokenizer):
    from rmtrl.reward.rendering import text_of

    with pytest.raises(RenderingError, match="no text gives the tokens of 'good'"):
        text_of(tokenizer, "good", [5, 3, 5, 0, 17, 300], adds=False)


def test_without_the_extra_a_url_is_one_line_that_says_how_to_get_it(monkeypatch):
    for missing in ("httpx", "tenacity"):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match=rf"needs {missing}.*rmtrl\[remote\]"):
            patch.setitem(sys.modules, missing, None)
            RemoteScorer("http://127.0.0.1:1")


def test_an_encoder_behind_vllm_is_asked_for_its_own_activation_which_has_to_be_none(serve, checkpoint, tokenizer):
    tokenizer.add_special_tokens({"cls_token": "<|user|>"})
    tokenizer.save_pretrained(checkpoint)
    server = serve(lambda path, body: {"data": [{"index": 0, "probs": [2.0]}], "usage": {"prompt_tokens": 1}})
    with pytest.raises(UsageError, match="does not say problem_type regression"):
        RemoteScorer(f"{server.url}/classify", model=checkpoint, **FAST)
    config = json.loads((checkpoint / "config.json").read_text()) | {"problem_type": "regression"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    scorer = RemoteScorer(f"{server.url}/classify", model=checkpoint, checks=False, **FAST)
    assert scorer.score_ids([[5, 6]]).tolist() == [2.0] and server.calls[-1].body == {"input": [[5, 6]]}
