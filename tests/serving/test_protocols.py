"""Each protocol gives the scorer's own scores in the shape its owners document, for text as their clients send it."""

import numpy as np
import pytest
from serving_http import running
from tokenizers.processors import TemplateProcessing

from rmtrl import RewardScorer
from rmtrl.serving.model import Rendered, ServedModel

START = "<|start|>"
EXACT = {"abs": 1e-5}


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


CHATS = [chat("one two", "good"), chat("sun moon sea ?", "bad bad"), chat("red", "yes thanks blue green")]


def with_start(tokenizer):
    """Makes the tokenizer add a start token, which its chat template writes too, as Llama 3's do."""
    tokenizer.add_special_tokens({"bos_token": START})
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


@pytest.fixture(params=["plain", "start"])
def scorer(request, new_model, tokenizer):
    tokenizer = with_start(tokenizer) if request.param == "start" else tokenizer
    return RewardScorer(new_model(vocab_size=len(tokenizer)), tokenizer, progress=False)


@pytest.fixture
def asked(scorer):
    """Asks a server of the scorer once; returns its whole answer."""

    def ask(path, body, status=200):
        with running(scorer) as client:
            answer = client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer

    return ask


def texts_of(scorer):
    return [scorer.tokenizer.apply_chat_template(own, tokenize=False) for own in CHATS]


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


# ---- what is added to text


def test_rendered_text_gets_what_it_lacks_and_nothing_twice(scorer):
    served, end = ServedModel(scorer), scorer.tokenizer.eos_token
    wanted = scorer.encode_all(CHATS)
    for text, ids in zip(texts_of(scorer), wanted, strict=True):
        assert text.endswith(end)
        for sent in (text, text.removesuffix(end), text.removeprefix(START), text + "\n"):
            (found, n), *_ = served.encode([Rendered(sent)])
            extra = scorer.tokenizer("\n", add_special_tokens=False)["input_ids"] if sent.endswith("\n") else []
            assert found == ids + extra and n == len(found)


def test_text_that_no_template_rendered_is_the_scorers(scorer):
    served, texts = ServedModel(scorer), ["one two ?", "red" + scorer.tokenizer.eos_token]
    wanted = scorer.encode_all(texts)
    scorer.tokenizer.chat_template = None
    assert [ids for ids, _ in served.encode(texts)] == wanted
    assert [ids for ids, _ in ServedModel(scorer).encode(list(map(Rendered, texts)))] == wanted
    assert [ids for ids, _ in served.encode([START + text for text in texts])] == (
        wanted if scorer.tokenizer.bos_token else scorer.encode_all([START + text for text in texts])
    )


# ---- vLLM

USAGE = {"prompt_tokens": int, "total_tokens": int, "completion_tokens": int, "prompt_tokens_details": type(None)}
LIST = {"id": str, "object": str, "created": int, "model": str, "data": list, "usage": dict}
CLASS = {"index": int, "label": str, "probs": list, "num_classes": int}
POOLED = {"index": int, "object": str, "data": list}


def check(value, shape):
    """The object has these fields, of these kinds, and no other."""
    assert {name: type(own) for name, own in value.items()} == shape


@pytest.mark.parametrize("path", ["/classify", "/v1/classify", "/pooling"])
def test_vllm(scorer, asked, path):
    wanted, ids = scorer.score(CHATS), scorer.encode_all(CHATS)
    name, shape = ("data", POOLED) if path == "/pooling" else ("probs", CLASS)
    bodies = {
        "text": texts_of(scorer),
        "token ids": ids,
        "stripped": [t.removeprefix(START) for t in texts_of(scorer)],
    }
    for body in bodies.values():
        answer = asked(path, {"model": "any", "input": body})
        found = answer.json()
        check(found, LIST)
        check(found["usage"], USAGE)
        for own in found["data"]:
            check(own, shape)
        assert [own["index"] for own in found["data"]] == [0, 1, 2]
        assert [own[name][0] for own in found["data"]] == pytest.approx(wanted, **EXACT)
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == sum(map(len, ids))
        assert answer.headers["x-rmtrl-activation"] == "none"


def test_vllm_takes_messages_one_text_and_one_list_of_ids(scorer, asked):
    wanted = scorer.score(CHATS)[:1]
    bodies = ({"messages": CHATS[0]}, {"input": texts_of(scorer)[0]}, {"input": scorer.encode(CHATS[0])})
    for body in bodies:
        (one,) = asked("/classify", body).json()["data"]
        assert one["probs"] == pytest.approx(wanted, **EXACT)


def test_vllm_gives_the_sigmoid_only_where_it_is_asked_for(scorer, asked):
    body = {"input": scorer.encode_all(CHATS)}
    for more, activates in (({"use_activation": True}, True), ({"use_activation": False}, False),
                            ({"activation": True}, True), ({"use_activation": None}, False)):  # fmt: skip
        answer = asked("/classify", body | more)
        values = [own["probs"][0] for own in answer.json()["data"]]
        raw = scorer.score(CHATS)
        assert values == pytest.approx(sigmoid(raw) if activates else raw, **EXACT)
        assert answer.headers["x-rmtrl-activation"] == ("sigmoid" if activates else "none")


def test_vllm_special_tokens_are_added_as_the_client_says(scorer, asked):
    text = texts_of(scorer)[0].removeprefix(START)
    (one,) = asked("/classify", {"input": text, "add_special_tokens": False}).json()["data"]
    bare = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert one["probs"][0] == pytest.approx(scorer.score_ids([bare])[0], **EXACT)
    if scorer.tokenizer.bos_token:
        line = asked("/classify", {"input": START + text, "add_special_tokens": True}, 422).json()["error"]
        assert "twice" in line


@pytest.mark.parametrize(
    "field", [{"truncate_prompt_tokens": 8}, {"chat_template": "{{ messages }}"}, {"task": "token_classify"},
              {"encoding_format": "base64"}, {"add_generation_prompt": True}, {"softmax": True}]
)  # fmt: skip
def test_vllm_fields_that_would_give_another_score_are_refused(asked, field):
    answer = asked("/pooling", {"messages": CHATS[0]} | field, 422).json()
    assert next(iter(field)) in answer["error"] and answer["type"] == "invalid"


# ---- trainers


def test_openrlhf(scorer, asked):
    texts = texts_of(scorer)
    found = asked("/get_reward", {"query": texts, "prompts": texts, "labels": ["a", None, 3]}).json()
    check(found, {"rewards": list, "scores": list, "extra_logs": dict})
    assert found["rewards"] == pytest.approx(scorer.score(CHATS), **EXACT) and found["scores"] == found["rewards"]
    assert asked("/get_reward", {"query": [], "prompts": [], "labels": []}).json() == {
        "rewards": [], "scores": [], "extra_logs": {}
    }  # fmt: skip


def test_slime(scorer, asked):
    wanted = float(scorer.score(CHATS[:1])[0])
    text = texts_of(scorer)[0]
    at = text.index("good")
    assert asked("/slime", {"prompt": text[:at], "response": text[at:], "label": None}).json() == pytest.approx(
        wanted, **EXACT
    )
    found = asked("/slime", {"prompt": CHATS[0][:1], "response": "good", "label": {"any": 1}}).json()
    assert isinstance(found, float) and found == pytest.approx(wanted, **EXACT)


def test_llama_factory(scorer, asked):
    found = asked("/v1/score/evaluation", {"model": "model", "messages": texts_of(scorer)}).json()
    check(found, {"id": str, "object": str, "model": str, "scores": list})
    assert found["object"] == "score.evaluation"
    assert found["scores"] == pytest.approx(scorer.score(CHATS), **EXACT)


def test_text_embeddings_inference(scorer, asked):
    wanted, texts = scorer.score(CHATS), texts_of(scorer)

    def ask(inputs, **more):
        return asked("/predict", {"inputs": inputs, **more}).json()

    batch = ask([[text] for text in texts], raw_scores=True, truncate=False)
    for (one,) in batch:
        check(one, {"score": float, "label": str})
    assert [one["score"] for (one,) in batch] == pytest.approx(wanted, **EXACT)
    (one,) = ask(texts[0], raw_scores=True)
    assert one["score"] == pytest.approx(wanted[0], **EXACT)
    (one,) = ask(texts[0])
    assert one["score"] == pytest.approx(sigmoid(wanted[0]), **EXACT)
    at = texts[0].index("good")
    pair = ask([texts[0][:at], texts[0][at:]], raw_scores=True)
    assert len(pair) == 1 and pair[0]["score"] == pytest.approx(wanted[0], **EXACT)
    mixed = ask([[texts[1]], [texts[0][:at], texts[0][at:]]], raw_scores=True)
    assert [one["score"] for (one,) in mixed] == pytest.approx([wanted[1], wanted[0]], **EXACT)
    asked("/predict", {"inputs": ["one", "two", "three"]}, 422)
    asked("/predict", {"inputs": texts[0], "truncate": True}, 422)
