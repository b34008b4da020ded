"""What stands beside a model is served with it: its calibration, and how far its scores can be trusted."""

import sys

import numpy as np
import pytest
from serving_http import running

from rmtrl import HeadEnsembleScorer, RewardScorer
from rmtrl.calibration.calibration import calibrate
from rmtrl.errors import DataError
from rmtrl.evaluation.fingerprints import model_fingerprint
from rmtrl.io import write_json
from rmtrl.reward.heads import Head, install_head
from rmtrl.serving.model import ServedModel

TEXTS = ["red green ? good blue", "one two ? bad", "sun moon sea ? yes thanks"]


def calibrated(folder, fingerprint=None):
    rng = np.random.default_rng(0)
    margins = np.where(rng.random(200) < 0.75, 1, -1) * rng.exponential(3, 200)
    made = calibrate(0.3 + margins / 2, 0.3 - margins / 2, [f"p{i}" for i in range(200)]).with_data({}, fingerprint)
    write_json(folder / "calibration.json", made.as_dict())
    return made


def test_rewards_and_probabilities_are_those_of_the_calibration_beside_the_model(checkpoint):
    made = calibrated(checkpoint, model_fingerprint(checkpoint))
    served = ServedModel.from_pretrained(checkpoint, device="cpu")
    with running(served) as client:
        answer = client.post("/score", json={"conversations": TEXTS}).json()
        info = client.get("/info").json()
        empty = client.post("/score", json={"conversations": []})
    assert empty.status_code == 200 and empty.json()["rewards"] == empty.json()["probabilities"] == []
    scores, t = np.array(answer["scores"]), made.temperature.temperature_
    np.testing.assert_allclose(scores, served.scorer.score(TEXTS), atol=1e-5)
    np.testing.assert_allclose(answer["rewards"], (scores - made.mean_reward) / t)
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-(scores - made.mean_reward) / t)))
    assert info["temperature"] == t and info["fingerprint"] == model_fingerprint(checkpoint)
    assert info["model"] == str(checkpoint)


def test_a_calibration_of_other_weights_is_not_served(checkpoint, rmtrl):
    calibrated(checkpoint, {"sha256": "0" * 64, "revision": None})
    with pytest.raises(DataError, match="is of another model"):
        ServedModel.from_pretrained(checkpoint, device="cpu")
    code, out, err = rmtrl("serve", "--model", checkpoint, "--port", 0, "--device", "cpu")
    assert (code, out) == (2, "") and "is of another model" in err.splitlines()[-1]


def test_a_url_is_nothing_to_serve(rmtrl):
    code, out, err = rmtrl("serve", "--model", "http://127.0.0.1:1", "--port", 0)
    assert (code, out) == (2, "") and "serves a folder or a hub id" in err.splitlines()[-1]
    assert "server's URL" not in rmtrl("serve", "--help")[1]


def test_a_model_of_several_heads_gives_bounds(model, tokenizer):
    head = Head(members=3)
    install_head(model, head)
    scorer = RewardScorer(model, tokenizer, head=head, progress=False)
    spread = HeadEnsembleScorer(scorer)
    served = ServedModel(scorer, uncertain=spread)
    with running(served) as client:
        answer = client.post("/score", json={"conversations": TEXTS}).json()
    found = spread.distribution(TEXTS)
    np.testing.assert_allclose(answer["scores"], scorer.score(TEXTS), atol=1e-5)
    np.testing.assert_allclose(answer["low"], found.lower, atol=1e-5)
    np.testing.assert_allclose(answer["high"], found.upper, atol=1e-5)
    assert all(low < high for low, high in zip(answer["low"], answer["high"], strict=True))


def test_a_head_that_averages_the_answer_is_given_the_messages(model, tokenizer):
    head = Head(pooling="mean")
    install_head(model, head)
    scorer = RewardScorer(model, tokenizer, head=head, progress=False)
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in TEXTS]
    wanted = scorer.score(chats)
    assert np.abs(wanted - scorer.score_ids(scorer.encode_all(chats))).max() > 1e-3  # ids alone do not say
    with running(scorer) as client:
        answer = client.post("/score", json={"conversations": chats}).json()
    np.testing.assert_allclose(answer["scores"], wanted, atol=1e-5)


def test_serving_says_what_it_lacks(rmtrl, checkpoint, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for given, words in ((("--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY, which is not set or empty"),
                         (("--host", "256.0.0.1"), "cannot listen on 256.0.0.1"),
                         (("--port", "70000"), "--port 70000"), (("--wait-ms", "x"), "--wait-ms x")):  # fmt: skip
        code, out, err = rmtrl("serve", "--model", checkpoint, *given)
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("rmtrl.serving.server")]:
        monkeypatch.delitem(sys.modules, name)
    code, out, err = rmtrl("serve", "--model", checkpoint)
    assert (code, out) == (2, "") and "rmtrl serve needs fastapi; pip install 'rmtrl[serve]'" in err
