"""Policies on fixed prompts, best of n, and samples for overoptimization from a live policy."""

import numpy as np
import pytest

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.evaluation.overoptimization import measure_overoptimization
from rmtrl.evaluation.policy import (
    best_of_n,
    compare_policies,
    evaluate_policies,
    exact_match,
    sample_scores,
    word_f1,
)
from rmtrl.generation import Completion, Generator
from rmtrl.types import Chat, Scorer

PROMPTS = [f"question {i}: " for i in range(40)]


class Numbers(Generator):
    """Answers with numbers around a mean; the same noise for every mean."""

    def __init__(self, mean):
        self.mean, self.calls = mean, 0

    def generate(self, prompts, n=1, *, seed=0):
        self.calls += 1
        made = []
        for prompt in prompts:
            rng = np.random.default_rng([seed, *str(prompt).encode()])
            made.append([Completion(f"{self.mean + rng.normal():.6f}", truncated=i == 0) for i in range(n)])
        return made


class LastNumber(Scorer):
    def __init__(self, noise=0.0, limit=None):
        self.noise, self.limit = noise, limit

    def score(self, conversations):
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in conversations]
        noise = [self.noise * np.random.default_rng(list(text.encode())).normal() for text in texts]
        return np.array([float(text.split(": ")[-1]) for text in texts], np.float32) + np.array(noise, np.float32)

    def holds(self, conversations):
        return np.array([self.limit is None or len(c) <= self.limit for c in conversations], bool)


def test_policies_are_judged_on_the_same_prompts():
    results = evaluate_policies({"a": Numbers(0), "b": Numbers(0.5)}, PROMPTS, LastNumber(), n=4)
    assert results["a"].scores.shape == (40, 4)
    for name, mean in (("a", 0), ("b", 0.5)):
        assert results[name].mean.low < mean < results[name].mean.high
        assert results[name].mean.value == pytest.approx(results[name].scores.mean())
        assert results[name].mean.n == 40 and results[name].truncated.value == 0.25
    lengths = [len(one.text) for own in results["a"].completions for one in own]
    assert results["a"].length_chars.value == pytest.approx(np.mean(lengths))


def test_a_paired_comparison_sees_what_two_means_do_not():
    results = evaluate_policies({"a": Numbers(0), "b": Numbers(0.05)}, PROMPTS, LastNumber())
    assert results["b"].mean.low < results["a"].mean.value  # the intervals of the means overlap
    compared = compare_policies(results)
    assert list(compared) == ["b"]
    difference = compared["b"].difference
    assert 0 < difference.low <= 0.05 <= difference.high + 1e-6 and difference.n == 40
    assert difference.value == pytest.approx(0.05, abs=1e-5)
    assert compare_policies(results, "b")["a"].difference.value == pytest.approx(-0.05, abs=1e-5)


def test_the_win_rate_counts_all_pairs_of_completions_and_half_a_tie():
    results = evaluate_policies({"a": Numbers(0), "b": Numbers(1)}, PROMPTS[:6], LastNumber(), n=3)
    a, b = results["a"].scores, results["b"].scores
    by_hand = np.mean([[(x > y) + (x == y) / 2 for x in b[p] for y in a[p]] for p in range(6)])
    assert compare_policies(results)["b"].win_rate.value == pytest.approx(by_hand)
    same = {"a": results["a"], "again": results["a"]}
    assert compare_policies(same)["again"].win_rate.value == 0.5
    assert compare_policies(same)["again"].difference.value == 0


def test_a_reference_metric_judges_too():
    references = [f"{i}" for i in range(40)]

    def near(text, reference):
        return -abs(float(text) - float(reference))

    result = evaluate_policies({"a": Numbers(0)}, PROMPTS, near, references=references, n=2)["a"]
    wanted = [[near(one.text, reference) for one in own]
              for own, reference in zip(result.completions, references, strict=True)]  # fmt: skip
    np.testing.assert_allclose(result.scores, wanted)
    with pytest.raises(DataError, match="got 0 references for 40 prompts"):
        evaluate_policies({"a": Numbers(0)}, PROMPTS, near)


def test_what_cannot_be_compared_is_refused():
    results = evaluate_policies({"a": Numbers(0)}, PROMPTS, LastNumber())
    with pytest.raises(UsageError, match="baseline c; wanted one of a"):
        compare_policies(results, "c")
    fewer = evaluate_policies({"b": Numbers(0)}, PROMPTS[:9], LastNumber())
    with pytest.raises(DataError, match="b has 9 prompts and a 40"):
        compare_policies(results | fewer)
    with pytest.raises(DataError, match="prompts 0 and 1 are equal"):
        evaluate_policies({"a": Numbers(0)}, ["x", "x"], LastNumber())
    with pytest.raises(DataError, match="no prompts"):
        evaluate_policies({"a": Numbers(0)}, [], LastNumber())
    with pytest.raises(DataError, match="40 of 40 conversations are longer"):
        evaluate_policies({"a": Numbers(0)}, PROMPTS, LastNumber(limit=3))


def test_live_samples_give_the_gamma_of_their_noise():
    """A proxy that adds noise of its own size to gold has correlation 1/√2."""
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    generator = Numbers(0)
    samples = sample_scores(generator, chats, 128, LastNumber(noise=1), LastNumber(), domains=["x"] * 40)
    assert len(samples) == 40 * 128 and samples.truncated.sum() == 40 and generator.calls > 1
    again = sample_scores(Numbers(0), chats, 128, LastNumber(noise=1), LastNumber())
    np.testing.assert_array_equal(samples.proxy, again.proxy)
    result = measure_overoptimization(samples)
    assert result.whole.gamma.low < 1 - np.sqrt(0.5) < result.whole.gamma.high
    assert any("40 of 5,120 samples were cut off" in note for note in result.notes)


def test_best_of_n_takes_the_highest_score():
    ranked = best_of_n(LastNumber(), ["q: ", [{"role": "user", "content": "q"}]], [["1", "3", "2"], ["5", "5"]])
    assert [own.best for own in ranked] == ["3", "5"] and [own.index for own in ranked] == [1, 0]
    assert ranked[0].scores.tolist() == [1, 3, 2]


def test_candidates_that_are_too_long_are_left_out_not_guessed():
    ranked = best_of_n(LastNumber(limit=5), ["q: ", "q: "], [["9999", "1", "2"], ["5555"]])
    assert ranked[0].best == "2" and np.isnan(ranked[0].scores[0])
    assert ranked[1].best is None and ranked[1].index is None


def test_best_of_n_refuses_what_does_not_fit():
    with pytest.raises(DataError, match="got 1 prompts and 2 lists"):
        best_of_n(LastNumber(), ["q: "], [["1"], ["2"]])
    with pytest.raises(DataError, match="prompt 1 has no list of candidates"):
        best_of_n(LastNumber(), ["q: ", "q: "], [["1"], []])
    with pytest.raises(DataError, match="as text and its completion as messages"):
        best_of_n(LastNumber(), ["q: "], [[[{"role": "assistant", "content": "1"}]]])

    class Broken(LastNumber):
        def score(self, conversations):
            return np.full(len(conversations), np.nan, np.float32)

    with pytest.raises(ModelError, match="returned nan"):
        best_of_n(Broken(), ["q: "], [["1"]])

    class Short(LastNumber):
        def score(self, conversations):
            return np.zeros(1, np.float32)

    with pytest.raises(ModelError, match="1 values for 2 conversations"):
        best_of_n(Short(), ["q: "], [["1", "2"]])


def test_prompts_of_other_tools_are_other_prompts_and_keep_them():
    asked, seen = [{"role": "user", "content": "q: 1"}], []

    class Seen(LastNumber):
        def score(self, conversations):
            seen.extend(conversations)
            return np.zeros(len(conversations), np.float32)

    class Echo(Generator):
        def generate(self, prompts, n=1, *, seed=0):
            return [[Completion("1")] * n for _ in prompts]

    prompts = [Chat(asked, tools=[{"name": name}]) for name in "ab"]
    evaluate_policies({"p": Echo()}, prompts, Seen())
    assert [own.tools for own in seen] == [[{"name": "a"}], [{"name": "b"}]]
    with pytest.raises(DataError, match="prompts 0 and 1 are equal"):
        evaluate_policies({"p": Echo()}, [prompts[0], Chat(asked, tools=[{"name": "a"}])], Seen())


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("Paris, France", "Paris", 0, 2 / 3),  # precision 1/2, recall 1
        ("yes yes no", "yes no no", 0, 2 / 3),  # two of three words are shared, each as often as both have it
        ("", "Paris", 0, 0),
        ("", "the", 1, 1),
    ],
)
def test_words_are_compared_as_squad_compares_them(text, reference, exact, f1):
    assert (exact_match(text, reference), word_f1(text, reference)) == (exact, pytest.approx(f1))
    assert word_f1(reference, text) == word_f1(text, reference)
