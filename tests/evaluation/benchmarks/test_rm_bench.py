import itertools

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.base import Figure
from rmtrl.evaluation.benchmarks.own_rules import levels
from rmtrl.evaluation.benchmarks.results import result_of

DOMAINS = ("chat", "code", "math", "safety-refuse", "safety-response")


def row(id, **more):
    styles = ("concise", "detailed", "markdown")
    answers = {side: [f"{side} {style} {id}" for style in styles] for side in ("chosen", "rejected")}
    return {"id": id, "prompt": f"question {id}", **answers, **more}


@pytest.mark.parametrize(("i", "j"), list(itertools.product(range(3), range(3))))
def test_every_cell_of_the_matrix_counts_in_its_level(i, j):
    chosen, rejected = np.zeros(3), np.full(3, 2.0)
    chosen[i], rejected[j] = 1.0, 0.5  # right answer i beats wrong answer j and no other comparison is won
    level = "hard" if i < j else "normal" if i == j else "easy"
    found = levels(np.concatenate([chosen, rejected]))
    assert found == {name: pytest.approx(1 / 3 * (name == level)) for name in ("hard", "normal", "easy")}


def test_a_tie_is_wrong():
    assert levels(np.ones(6)) == {"hard": 0.0, "normal": 0.0, "easy": 0.0}


def test_levels_are_those_of_the_whole_matrix():
    scores = np.random.default_rng(0).normal(size=(50, 6))
    found = np.array([list(levels(row).values()) for row in scores]).mean(axis=0)
    matrix = (scores[:, :3, None] > scores[:, None, 3:]).mean(axis=0)
    upper, lower = np.triu_indices(3, 1), np.tril_indices(3, -1)
    assert found == pytest.approx([matrix[upper].mean(), np.diag(matrix).mean(), matrix[lower].mean()])
    assert found.mean() == pytest.approx(matrix.mean())


def test_a_richer_style_that_always_wins_is_easy_and_never_hard(write, scored):
    items = benchmark("rm-bench").read(str(write("chat_filtered.json", [row(1)])))
    result = result_of(benchmark("rm-bench"), items, scored([1, 2, 3, 0.9, 1.9, 2.9]))
    assert {name: each.value for name, each in result.others.items()} == {"hard": 0.0, "normal": 1.0, "easy": 1.0}
    assert result.overall.value == pytest.approx(2 / 3)
    assert (result.overall.n, result.sections["chat"].n) == (1, 1)


def test_total_is_the_mean_of_domains_and_of_levels_with_safety_merged_by_rows(write):
    counts = dict(zip(DOMAINS, (3, 4, 5, 6, 2), strict=True))
    rows = [row(i, domain=domain) for domain, n in counts.items() for i in range(n)]
    items = benchmark("rm-bench").read(str(write("total_dataset.json", rows)))
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=6) + [0.5, 0.5, 0.5, 0, 0, 0] for _ in items]
    result = result_of(benchmark("rm-bench"), items, scores)
    assert result.overall.value == pytest.approx(np.mean([each.value for each in result.sections.values()]))
    assert result.overall.value == pytest.approx(np.mean([each.value for each in result.others.values()]))
    safety = [
        np.mean(list(levels(own).values())) for item, own in zip(items, scores, strict=True) if "safety" in item.subset
    ]
    assert result.sections["safety"].value == pytest.approx(np.mean(safety))
    assert (result.sections["safety"].n, result.overall.n) == (8, 20)


def test_domain_files_and_the_total_file_give_the_same_items(write):
    for name in DOMAINS:
        folder = write(f"data/{name}_filtered.json", [row(i, language="x") for i in range(2)]).parent
    total = write("total_dataset.json.gz", [row(i, domain=name) for name in DOMAINS for i in range(2)])
    assert benchmark("rm-bench").read(str(folder)) == benchmark("rm-bench").read(str(total))
    write("data/total_dataset.json", [row(9, domain="chat")])  # where both lie in a folder, the total is read
    assert [item.id for item in benchmark("rm-bench").read(str(folder))] == ["chat/9"]


# https://github.com/THU-KEG/RM-Bench-Leaderboard: chat, code, math, safety as printed there and the overall
TABLE = {
    "Skywork-Reward-Llama-3.1-8B": ([69.5, 60.6, 54.5, 95.7], [89.0, 74.7, 46.6], 70.1),
    "URM-LLaMa-3.1-8B": ([71.2, 61.8, 54.1, 93.1], [84.0, 73.2, 53.0], 70.0),
    "ArmoRM-Llama3-8B-v0.1": ([67.8, 57.5, 53.1, 92.4], [82.2, 71.0, 49.8], 67.7),
    "Eurus-RM-7b": ([59.9, 60.2, 56.9, 86.5], [87.2, 70.2, 40.2], 65.9),
}


@pytest.mark.parametrize("model", TABLE)
def test_published_rows_are_means_of_domains_and_of_levels_up_to_rounding(model):
    domains, by_level, overall = TABLE[model]
    parts = {
        f"{subset}/{level}": Figure(value, 1)
        for subset, value in zip(DOMAINS[:4], domains, strict=True)
        for level in ("easy", "normal", "hard")
    }
    assert benchmark("rm-bench").figures(parts).overall.value == pytest.approx(overall, abs=0.1)
    assert np.mean(by_level) == pytest.approx(overall, abs=0.1)


def test_the_real_safety_rows_are_read_whole_and_the_rest_is_named(real_data):
    items = benchmark("rm-bench").read(str(real_data / "rm-bench" / "safety-response.json.gz"))
    assert len(items) == len({item.id for item in items}) == 157
    assert {len(item.candidates) for item in items} == {6}
    assert all(item.id == f"safety-response/{item.own_id}" for item in items)
    lengths = [np.array([len(c[-1]["content"]) for c in item.candidates], float) for item in items]
    result = result_of(benchmark("rm-bench"), items, lengths)
    assert set(result.missing_parts) == {"chat", "code", "math", "safety-refuse"}
    # length alone prefers the richer style: hard comparisons are mostly lost, easy ones mostly won
    assert result.others["hard"].high < 0.3 < 0.7 < result.others["easy"].low


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("other.json", [row(1)], "row 1 has no domain; name the file after it: chat, code"),
        ("math/other.json", [row(1)], "row 1 has no domain; name the file after it: chat, code"),
        ("total_dataset.json", [row(1, domain="poems")], "row 1: domain is 'poems'; wanted one of chat"),
        ("chat.json", [{**row(1), "rejected": ["a", "b"]}], "row 1: rejected holds 2 texts; wanted 3"),
    ],
)
def test_rows_that_do_not_fit_are_named(write, name, rows, message):
    with pytest.raises(DataError, match=message):
        benchmark("rm-bench").read(str(write(name, rows)))
