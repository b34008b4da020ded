"""Served scores against the trainer's: equal where nothing is done to a text, and each thing done is named."""

import json
import threading

import numpy as np
import pytest
from scipy.special import expit
from tokenizers.processors import TemplateProcessing

from rmtrl import RewardScorer
from rmtrl.evaluation.parity import compare


@pytest.fixture
def folder(tmp_path, tokenizer, new_model):
    """A reward model whose tokenizer adds a start token."""
    tokenizer.add_special_tokens({"bos_token": "<|s|>"})
    template = TemplateProcessing(single="<|s|> $A", special_tokens=[("<|s|>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    new_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.fixture
def pairs_file(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    return path


def classify(scorer, change=lambda ids: ids, shape=lambda score: score, fingerprint=None):
    """Answers as vLLM's /classify does, whatever it is asked for: token ids changed, scores shaped."""
    lock = threading.Lock()

    def answer(path, body):
        if path == "/v1/models":
            return {"data": [{"id": "rm", "max_model_len": 256}]}
        if path == "/info":
            return (404, {}, {}) if fingerprint is None else {"fingerprint": fingerprint}
        with lock:
            scores = scorer.score_ids([change(ids) for ids in body["input"]])
        rows = [{"index": i, "probs": [float(shape(score))]} for i, score in enumerate(scores.tolist())]
        return {"data": rows, "usage": {"prompt_tokens": 1}}

    return answer


PLANTED = {
    "sigmoid": (dict(shape=expit), ["sigmoid"]),
    "start": (dict(change=lambda ids: [ids[0], *ids]), ["a second start token"]),
    "end": (dict(change=lambda ids: ids[:-1]), ["no end token"]),
    "right": (dict(change=lambda ids: ids[:8]), ["truncation to 8 tokens"]),
    "left": (dict(change=lambda ids: ids[-9:]), ["truncation to 9 tokens"]),
    "middle": (dict(change=lambda ids: ids if len(ids) < 8 else [*ids[:6], ids[-1]]), ["truncation to 7 tokens"]),
    "two": (dict(change=lambda ids: [ids[0], *ids], shape=expit), ["sigmoid", "a second start token"]),
    "float16": (dict(dtype="float16"), ["16 bits (float16)"]),
    "bfloat16": (dict(dtype="bfloat16"), ["16 bits (bfloat16)"]),
    "start in bfloat16": (
        dict(change=lambda ids: [ids[0], *ids], dtype="bfloat16"), ["a second start token", "16 bits (bfloat16)"]
    ),
    "noise": (dict(shape=lambda score: score * 1.7 - 0.4), []),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
def test_each_cause_is_found_and_named(planted, rmtrl, serve, folder, pairs_file):
    settings, causes = PLANTED[planted]
    settings = dict(settings)
    scorer = RewardScorer.from_pretrained(folder, dtype=settings.pop("dtype", "float32"))
    server = serve(classify(scorer, **settings))
    command = ["parity", pairs_file, "--model", folder, "--url", f"{server.url}/classify", "--rows", 32]
    code, out, err = rmtrl(*command, "--json")
    found = json.loads(out)
    assert code == 1 and found["causes"] == causes, err
    assert found["schema"] == "rmtrl/parity/1" and not found["equal"] and found["n"] == 32
    assert found["largest_difference"] > 1e-4
    if causes and "16 bits" not in causes[-1]:
        assert found["unexplained"] < 1e-5
    code, out, _ = rmtrl(*command)
    assert code == 1 and (", ".join(causes) or "for no reason that is known") in out


def test_the_models_own_scores_are_equal(rmtrl, serve, folder, pairs_file):
    server = serve(classify(RewardScorer.from_pretrained(folder)))
    command = ["parity", pairs_file, "--model", folder, "--url", f"{server.url}/classify", "--tolerance", 1e-5]
    code, out, _ = rmtrl(*command, "--json")
    found = json.loads(out)
    assert code == 0 and found["equal"] and found["causes"] == [] and found["n"] == 40
    assert " ".join(sorted(found)) == (
        "causes data equal flipped largest_difference model n not_held schema tolerance unexplained url"
    )
    assert found["flipped"]["value"] == 0 and found["flipped"]["n"] == 40


def test_another_model_is_named_and_small_differences_are_seen_and_absolute(rmtrl, serve, folder, pairs_file):
    other = {"sha256": "72d3" * 16, "revision": None}
    scorer = RewardScorer.from_pretrained(folder)
    server = serve(classify(scorer, shape=lambda score: score * 1.7 - 40, fingerprint=other))
    command = ["parity", pairs_file, "--model", folder, "--url", f"{server.url}/classify"]
    code, out, _ = rmtrl(*command, "--json")
    assert code == 1 and json.loads(out)["causes"] == ["another model is served (sha256 72d372d372d3…)"]
    shifted = serve(classify(scorer, shape=lambda score: score + 2e-4))
    command[-1] = f"{shifted.url}/classify"
    code, out, _ = rmtrl(*command)
    assert code == 1 and "0.0002" in out and "0.000 " not in out.split("flipped")[0]

    class Far(RewardScorer):
        """Scores far from 0, where relative differences are small ones."""

        far = 1000.0

        def score(self, conversations):
            return super().score(conversations) + self.far

    class Farther(Far):
        far = 1000.5

    given = [{"prompt": "red ? ", "chosen": "good", "rejected": "bad", "prompt_id": "a"}]
    found = compare(Far(scorer.model, scorer.tokenizer), Farther(scorer.model, scorer.tokenizer), given)
    assert found.largest_difference == pytest.approx(0.5, abs=1e-3) and found.tolerance == 1e-5


def test_flipped_pairs_are_counted_and_pairs_not_held_left_out(folder, rows):
    local = RewardScorer.from_pretrained(folder)

    class Turned(RewardScorer):
        def score(self, conversations):
            return -super().score(conversations)

    given = [row | {"prompt_id": str(n)} for n, row in enumerate(rows(30))]
    long = {"prompt": "one " * 300, "chosen": "good", "rejected": "bad", "prompt_id": "long"}
    found = compare(local, Turned(local.model, local.tokenizer), [*given, long])
    assert (found.n, found.not_held, found.flipped.value) == (30, 1, 1.0) and found.causes == ()
    assert found.largest_difference == found.unexplained > 0.1 and not found.equal
    margins = np.diff(local.score([row["prompt"] + row[side] for row in given for side in ("chosen", "rejected")]))
    assert len(margins) == 59
