"""Rows as conversations and their scores, joined from a model or a file."""

import json

import numpy as np
import pytest
from datasets import Dataset

from rmtrl import RewardScorer
from rmtrl.errors import DataError, ModelError
from rmtrl.evaluation.scoring import ScoredPairs, conversation, joined, pair_windows, read_pair_scores, score_pairs
from rmtrl.types import Chat, Scorer

TOOLS = [{"type": "function", "function": {"name": "f"}}]
ASKED, ANSWER = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Yes"}]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize("answer", ["Yes", ANSWER])
def test_a_conversation_keeps_the_tools_of_its_row(given, answer):
    found = conversation({"prompt": ASKED, "chosen": answer, "tools": given}, "chosen")
    assert found == ASKED + ANSWER and found.tools == TOOLS
    assert type(conversation({"prompt": ASKED, "chosen": answer, "tools": None}, "chosen")) is list
    assert conversation({"prompt": "Hi. ", "chosen": "Yes", "tools": given}, "chosen") == "Hi. Yes"
    assert joined(Chat(ASKED, tools=TOOLS), answer).tools == TOOLS


def test_pairs_are_scored_window_by_window_and_whole_or_not_at_all(model, tokenizer, pairs, monkeypatch):
    monkeypatch.setattr("rmtrl.evaluation.scoring._WINDOW_PAIRS", 5)
    rows = [*pairs.to_list(), {"prompt": "red", "chosen": " one" * 400, "rejected": " two"}]
    scorer = RewardScorer(model, tokenizer, progress=False)
    found = score_pairs(scorer, Dataset.from_list(rows), "pairs.jsonl")
    assert pair_windows(13) == [range(5), range(5, 10), range(10, 13)]
    wanted = scorer.score([row["prompt"] + row[side] for row in rows[:12] for side in ("chosen", "rejected")])
    np.testing.assert_allclose(found[:12], wanted.reshape(-1, 2), atol=1e-5)
    assert found.shape == (13, 2) and np.isnan(found[12]).all()
    verdicts = [{"prompt": "red", "a": " one", "b": " two"}]
    found = score_pairs(scorer, verdicts, "verdicts.jsonl", sides=("a", "b"))
    np.testing.assert_allclose(found[0], scorer.score(["red one", "red two"]), atol=1e-5)


def test_stored_scores_are_those_of_the_pairs_that_the_file_has(tmp_path):
    pairs = Dataset.from_list([{"id": id} for id in ("a", "1", "c")])
    path = write(tmp_path / "s.jsonl", {"id": "c", "scores": [1, 0.5]}, {"id": 1, "scores": None})
    found = ScoredPairs.of_file(path, pairs)
    assert found.named and found.column("id") == ["1", "c"] and found.column("domain") is None
    assert np.array_equal(found.scores, [[np.nan] * 2, [1, 0.5]], equal_nan=True)
    kept = found.where(found.whole)
    assert len(kept) == 1 and kept.pairs["id"] == ["c"] and kept.scores.tolist() == [[1, 0.5]]
    alone = ScoredPairs.of_file(path)
    assert not alone.named and alone.column("prompt_id") == alone.column("id") == ["c", "1"]
    assert read_pair_scores(path)["c"].tolist() == [1, 0.5]
    with pytest.raises(DataError, match="'z', which is none of the pairs"):
        ScoredPairs.of_file(write(tmp_path / "z.jsonl", {"id": "z", "scores": [1, 2]}), pairs)
    with pytest.raises(DataError, match="1 ids of the pairs are not unique"):
        ScoredPairs.of_file(path, Dataset.from_list([{"id": "a"}] * 2))


@pytest.mark.parametrize(
    ("error", "says"),
    [(ModelError("no", index=3), "^pairs.jsonl row 2: no$"),
     (KeyError("no"), "stopped at one of the pairs.jsonl rows 1 to 3: KeyError")],
)  # fmt: skip
def test_a_scorer_that_fails_on_pairs_names_their_rows(error, says):
    class Failing(Scorer):
        def score(self, conversations):
            raise error

    rows = [{"prompt": "red", "chosen": " one", "rejected": " two"}] * 3
    with pytest.raises((ModelError, RuntimeError), match=says):
        score_pairs(Failing(), rows, "pairs.jsonl")


def test_the_worst_pairs_are_the_wrong_ones_the_most_wrong_first_and_no_ties():
    labels = [1.0, 1.0, 0.5, 0.9, 1.0, 1.0]
    pairs = Dataset.from_list([{"id": str(i), "preference": label, "margin": 9.0} for i, label in enumerate(labels)])
    scores = np.array([[0, 1], [2, 0], [0, 9], [0, 3], [1, 1], [np.nan, np.nan]], float)
    worst = ScoredPairs(pairs, scores).worst()
    assert [row["id"] for row in worst] == ["3", "0"] and worst[0]["scores"] == [0.0, 3.0]
    assert worst[0]["margin"] == 9.0  # the user's own column
    assert len(ScoredPairs(pairs, scores).worst(1)) == 1 and ScoredPairs(pairs, -scores).worst()[0]["id"] == "1"
    assert len(ScoredPairs(pairs.remove_columns("preference"), scores).worst()) == 3
