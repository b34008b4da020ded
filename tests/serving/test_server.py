"""Over HTTP the scores are the scorer's own, whatever comes at the same time; what cannot be answered is said."""

import asyncio
import random

import httpx
import numpy as np
import pytest
from serving_http import running

from rmtrl import RewardScorer

EXACT = {"abs": 1e-5}


@pytest.fixture
def scorer(model, tokenizer):
    return RewardScorer(model, tokenizer, progress=False)


@pytest.fixture
def texts(rows):
    return [row["prompt"] + row[side] for row in rows(20) for side in ("chosen", "rejected")]


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_scores_are_the_scorers(scorer, texts):
    conversations = [*texts[:6], *(chat(text, "yes") for text in texts[6:12])]
    wanted = scorer.score(conversations)
    with running(scorer) as client:
        answer = client.post("/score", json={"conversations": conversations}).json()
        ids = client.post("/score", json={"token_ids": scorer.encode_all(conversations)}).json()
    assert answer["scores"] == pytest.approx(wanted, **EXACT) and ids["scores"] == pytest.approx(wanted, **EXACT)
    assert answer["n_tokens"] == list(map(len, scorer.encode_all(conversations)))
    assert answer["schema"] == "rmtrl/served-scores/1" and answer["model"] == "reward model"
    assert [answer[name] for name in ("rewards", "probabilities", "low", "high")] == [None] * 4


def test_neighbours_and_order_change_no_score(scorer, rows):
    """64 clients at once, each with texts of several lengths, in an order of its own."""
    texts = [" ".join([row["prompt"], row["chosen"]] * (1 + i % 9)) for i, row in enumerate(rows(128))]
    alone = {text: float(scorer.score([text])[0]) for text in texts}
    random.Random(0).shuffle(texts)

    async def ask(client, own):
        return [(text, (await client.post("/score", json={"conversations": [text]})).json()) for text in own]

    async def all_at_once(url):
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, texts[i::64]) for i in range(64)))

    with running(scorer) as client:
        answers = [found for own in asyncio.run(all_at_once(str(client.base_url))) for found in own]
        figures = client.get("/metrics").text
    assert len(answers) == 128
    assert [answer["scores"][0] for _, answer in answers] == pytest.approx(
        [alone[text] for text, _ in answers], **EXACT
    )
    calls = float(figures.split("rmtrl_scored_together_count ")[1].split()[0])
    assert calls < 64  # they were scored together


def test_a_prompt_and_its_candidates(scorer):
    prompt, candidates = chat("one two three", "four")[:1], ["good", "bad moon", "yes yes"]
    wanted = scorer.score([prompt + [{"role": "assistant", "content": text}] for text in candidates])
    with running(scorer) as client:
        scored = client.post("/score", json={"prompt": prompt, "candidates": candidates}).json()
        ranked = client.post("/rank", json={"prompt": prompt, "candidates": candidates}).json()
        text = client.post("/score", json={"prompt": "one ? ", "candidates": candidates}).json()
    assert scored["scores"] == pytest.approx(wanted, **EXACT)
    assert ranked["order"] == np.argsort(-wanted).tolist() and ranked["best"] == ranked["order"][0]
    assert text["scores"] == pytest.approx(scorer.score(["one ? " + own for own in candidates]), **EXACT)


def test_health_and_info(scorer):
    with running(scorer) as client:
        health, info = client.get("/health").json(), client.get("/info").json()
    assert health == {"status": "ok"}
    assert info["schema"] == "rmtrl/served-model/1" and info["max_tokens"] == 256 and info["dtype"] == "float32"
    assert len(info["template"]) == 64 and info["temperature"] is None and info["head"]["pooling"] == "last"
