"""What a chat template reads besides text, and rows that it refuses, in every command that scores conversations."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from rmtrl import RewardScorer
from rmtrl.generation import TransformersGenerator
from rmtrl.types import Chat

STRICT = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}{% if deep is defined %}<deep {{ deep }}>{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% elif m.content %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "sun"}}]
GIVEN = {"tools": TOOLS, "chat_template_kwargs": {"deep": True}}


def asked(n):
    content = f"red {n} ?"
    return [{"role": "user", "content": content if n % 2 else [{"type": "text", "text": content}]}]


def answer(text, n):
    """Every third answer is a call alone."""
    if n % 3:
        return [{"role": "assistant", "content": f"{text} {n}"}]
    return [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": f"{text}{n}"}}]}]


ROWS = [
    {"id": f"r{n}", "prompt": asked(n), "chosen": answer("good", n), "rejected": answer("bad", n), **GIVEN}
    for n in range(24)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole(row, side):
    return Chat(row["prompt"] + row[side], **GIVEN)


@pytest.fixture
def checkpoint(tmp_path, new_model, tokenizer):
    tokenizer.chat_template = STRICT
    new_model(max_position_embeddings=512).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.fixture
def scorer(checkpoint):
    return RewardScorer.from_pretrained(checkpoint, progress=False)


@pytest.fixture
def margins(scorer):
    scores = scorer.score([whole(row, side) for row in ROWS for side in ("chosen", "rejected")]).reshape(-1, 2)
    assert np.ptp(scores) > 0.01 and (scores[:, 0] != scores[:, 1]).all()
    return scores


@pytest.fixture
def seen(monkeypatch):
    """Every conversation that a reward model is asked about, and every prompt of a policy."""
    found = []

    def recorded(owner, name):
        before = getattr(owner, name)

        def ask(self, conversations, *arguments, **settings):
            found.extend(conversations)
            return before(self, conversations, *arguments, **settings)

        monkeypatch.setattr(owner, name, ask)

    recorded(RewardScorer, "score"), recorded(RewardScorer, "holds"), recorded(TransformersGenerator, "generate")
    return found


def assert_given(conversations):
    assert conversations
    for own in conversations:
        assert isinstance(own, Chat) and own.tools == TOOLS and own.chat_template_kwargs == {"deep": True}


def test_score(rmtrl, checkpoint, margins, seen, tmp_path):
    data, out = write(tmp_path / "pairs.jsonl", ROWS), tmp_path / "scores.jsonl"
    code, _, err = rmtrl("score", data, "--model", checkpoint, "--out", out)
    assert code == 0, err
    np.testing.assert_allclose([row["scores"] for row in read(out)], margins, atol=1e-5)
    assert_given(seen)


def test_calibrate(rmtrl, checkpoint, margins, seen, tmp_path):
    code, out, err = rmtrl("calibrate", write(tmp_path / "pairs.jsonl", ROWS), "--model", checkpoint, "--json")
    assert code == 0, err
    assert json.loads(out)["mean_reward"] == pytest.approx(margins.mean(), abs=1e-5)
    assert_given(seen)


def test_audit_and_its_probes(rmtrl, checkpoint, margins, seen, tmp_path):
    data = write(tmp_path / "pairs.jsonl", ROWS)
    code, out, err = rmtrl("audit", data, "--model", checkpoint, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["figures"]["mean_margin"]["value"] == pytest.approx((margins[:, 0] - margins[:, 1]).mean(), abs=1e-5)
    bold = next(one for one in found["probes"] if one["name"] == "bold")
    assert bold["unchanged"] == 8 and bold["effect"]["n"] == 16  # a call has no text to edit
    assert_given(seen)


def test_inspect(rmtrl, checkpoint, scorer, tmp_path):
    data = write(tmp_path / "pairs.jsonl", ROWS)
    code, out, err = rmtrl("inspect", data, "--model", checkpoint, "--row", 3, "--side", "rejected", "--json")
    assert code == 0, err
    assert [token["id"] for token in json.loads(out)["tokens"]] == scorer.encode(whole(ROWS[3], "rejected"))


def test_evaluate(rmtrl, checkpoint, margins, seen, tmp_path):
    write(tmp_path / "mine" / "all.jsonl", ROWS)
    settings = {"name": "mine", "kind": "calls", "rule": "pairs", "subsets": {"all": "all.jsonl"}}
    (tmp_path / "mine" / "benchmark.yaml").write_text(json.dumps(settings))
    command = ["evaluate", "--model", checkpoint, "--benchmark", tmp_path / "mine", "--out", tmp_path / "out"]
    code, _, err = rmtrl(*command)
    assert code == 0, err
    np.testing.assert_allclose(
        [r["scores"] for r in read(tmp_path / "out" / "mine" / "scores.jsonl")], margins, atol=1e-5
    )
    assert_given(seen)


def test_rerank(rmtrl, checkpoint, margins, seen, tmp_path):
    rows = [{"prompt": row["prompt"], "candidates": [row["chosen"], row["rejected"]], **GIVEN} for row in ROWS]
    data, out = write(tmp_path / "prompts.jsonl", rows), tmp_path / "best.jsonl"
    code, _, err = rmtrl("rerank", data, "--model", checkpoint, "--out", out)
    assert code == 0, err
    np.testing.assert_allclose([row["scores"] for row in read(out)], margins, atol=1e-5)
    assert {key: read(out)[0][key] for key in ("prompt", *GIVEN)} == {"prompt": ROWS[0]["prompt"], **GIVEN}
    assert_given(seen)


@pytest.fixture
def policy(tmp_path, new_model, tokenizer, checkpoint):
    torch.manual_seed(1)
    LlamaForCausalLM(new_model(max_position_embeddings=512).config).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_policy_is_asked_with_them(rmtrl, checkpoint, policy, seen, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"], **GIVEN} for row in ROWS[:3]])
    settings = ("--policy", policy, "--n", 2, "--max-new-tokens", 4)
    code, _, err = rmtrl("rerank", data, "--model", checkpoint, "--out", tmp_path / "best.jsonl", *settings)
    assert code == 0, err
    assert_given(seen)


def test_fresh_pairs_keep_them_from_sampling_to_scoring(rmtrl, checkpoint, policy, seen, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"], **GIVEN} for row in ROWS[:4]])
    review, key, verdicts = (tmp_path / name for name in ("review.jsonl", "key.json", "verdicts.jsonl"))
    command = ["sample", data, "--out", review, "--key", key, "--n", 3, "--model", policy, "--max-new-tokens", 8]
    code, _, err = rmtrl("fresh", *command)
    assert code == 0, err
    judged = [row | {"verdict": "a", "reviewer": "ann"} for row in read(review)]
    assert all(row["tools"] == TOOLS for row in judged)
    write(review, [judged[0] | {"tools": []}, *judged[1:]])
    code, _, err = rmtrl("fresh", "import", review, "--key", key, "--by", "human", "--out", verdicts)
    assert code == 2 and "is not the one that was sampled" in err
    write(review, judged)
    assert rmtrl("fresh", "import", review, "--key", key, "--by", "human", "--out", verdicts)[0] == 0
    code, out, err = rmtrl("fresh", "score", verdicts, "--model", checkpoint, "--json")
    assert code == 0 and json.loads(out)["accuracy"]["n"] == 3, err
    assert_given(seen)


def verdict(row, n):
    return {"id": f"v{n}", "prompt_id": f"p{n}", "prompt": row["prompt"], "a": row["chosen"], "b": row["rejected"],
            "verdict": "a", "reviewer": "ann", "reviewed_by": "human", "policy": ""}  # fmt: skip


@pytest.mark.parametrize("command", ["score", "calibrate", "audit", "rerank", "fresh", "inspect"])
def test_a_row_that_the_template_refuses_is_one_line_that_names_file_and_row(rmtrl, checkpoint, tmp_path, command):
    refused = {**ROWS[4], "prompt": [{"role": "system", "content": "sea"}, *asked(4)]}
    rows, out = [*ROWS[:4], refused, *ROWS[5:]], ("--out", tmp_path / "out.jsonl")
    data = tmp_path / "data.jsonl"
    if command == "rerank":
        rows = [{"prompt": row["prompt"], "candidates": [row["chosen"]]} for row in rows]
    if command == "fresh":
        rows = [verdict(row, n) for n, row in enumerate(rows)]
    write(data, rows)
    words = {
        "score": ("score", data, *out), "calibrate": ("calibrate", data), "audit": ("audit", data),
        "rerank": ("rerank", data, *out), "fresh": ("fresh", "score", data), "inspect": ("inspect", data, "--row", 4),
    }  # fmt: skip
    code, stdout, stderr = rmtrl(*words[command], "--model", checkpoint)
    last = stderr.splitlines()[-1]
    where = "data.jsonl, --row 4" if command == "inspect" else "data.jsonl row 5"
    assert (code, stdout) == (2, "") and last.startswith("rmtrl: error: ") and "Traceback" not in stderr
    assert f"{where}: the chat template fails" in last and "System role not supported" in last
    assert not (tmp_path / "out.jsonl").exists()
