"""Near-duplicate prompts: exact Jaccard, every planted duplicate found, nothing that depends on the order of rows."""

from itertools import combinations
from random import Random

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtrl.data import clusters as clusters_module
from rmtrl.data.clusters import (
    deduplicate,
    find_duplicates,
    linked,
    normalize_text,
    prompt_text,
    shingle_sets,
    shorten_pair,
    with_clusters,
)
from rmtrl.data.preferences import read_preferences
from rmtrl.data.synthetic import make_preferences, make_world
from rmtrl.errors import DataError, UsageError

SENTENCE = "please write a short friendly letter to my neighbour about the broken fence near the old oak tree"
WORDS = SENTENCE.split()


def clusters(texts, **settings):
    return find_duplicates(texts, **settings).cluster.tolist()


def bigrams(text):
    words = normalize_text(text).split(" ")
    return set(zip(words, words[1:], strict=False)) or {(words[0],)}


def brute_force(texts, numerator, denominator):
    """Components of Jaccard >= numerator / denominator, in whole numbers, over all pairs."""
    sets = [bigrams(text) for text in texts]
    label = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if denominator * len(sets[i] & sets[j]) >= numerator * len(sets[i] | sets[j]):
            old, new = max(label[i], label[j]), min(label[i], label[j])
            label = [new if each == old else each for each in label]
    first = {each: number for number, each in enumerate(dict.fromkeys(label))}
    return [first[each] for each in label]


def varied(n, seed, changes=(0, 1, 2, 3)):
    """Copies of a few sentences with some words replaced: many pairs on either side of any threshold."""
    rng = Random(seed)
    bases = [rng.choices(WORDS + [f"w{i}" for i in range(40)], k=rng.randint(4, 30)) for _ in range(n // 8)]
    texts = []
    for _ in range(n):
        words = list(rng.choice(bases))
        for _ in range(rng.choice(changes)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize(("threshold", "ratio"), [(0.5, (1, 2)), (0.8, (4, 5)), (0.9, (9, 10)), (1.0, (1, 1))])
def test_clusters_are_those_of_comparing_all_pairs(threshold, ratio):
    texts = varied(300, seed=0)
    assert clusters(texts, threshold=threshold) == brute_force(texts, *ratio)


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_clusters_do_not_depend_on_the_size_of_a_block(monkeypatch, block):
    texts = varied(300, seed=1)
    monkeypatch.setattr(clusters_module, "_BLOCK", block)
    found = find_duplicates(texts)
    assert found.cluster.tolist() == brute_force(texts, 4, 5) and found.skipped == 0


@pytest.mark.parametrize("block", [20, 10**6])
def test_rows_linked_across_two_sets_are_those_of_comparing_all(monkeypatch, block):
    texts = sorted({normalize_text(text) for text in varied(400, seed=3)})
    sets = [bigrams(text) for text in texts]
    left, right = range(120), range(80, len(texts))  # some are in both
    wanted = {(i, j) for i in left for j in right if i != j and near_sets(sets[i], sets[j])}
    monkeypatch.setattr(clusters_module, "_BLOCK", block)
    sides = np.zeros((2, len(texts)), bool)
    sides[0, left], sides[1, right] = True, True
    labels, skipped = linked(shingle_sets(texts), 0.8, sides)
    sizes = np.bincount(labels, minlength=len(texts))[labels]
    assert np.flatnonzero(sizes > 1).tolist() == sorted({row for pair in wanted for row in pair}) and skipped == 0
    assert len(wanted) > 10


def near_sets(a, b):
    return 5 * len(a & b) >= 4 * len(a | b)


def test_shingles_of_most_texts_are_left_out_of_the_index():
    texts = [f"{SENTENCE} {' '.join(f'q{i}w{j}' for j in range(8))}" for i in range(30)]
    assert clusters(texts, threshold=0.5) == list(range(30))  # with the template, 17 of 33 bigrams
    assert clusters([*texts, f"{texts[3]} now"], threshold=0.8)[-1] == 3  # 8 of 9 of what is left
    assert clusters(texts[:19], threshold=0.5) == [0] * 19  # too few texts to tell a template
    half = texts + [" ".join(f"o{i}w{j}" for j in range(20)) for i in range(30)]
    assert clusters(half, threshold=0.5)[:30] == [0] * 30  # half is not most


def test_a_text_of_nothing_but_template_keeps_its_shingles():
    texts = [f"{SENTENCE} {' '.join(f'q{i}w{j}' for j in range(8))}" for i in range(30)]
    assert clusters([*texts, SENTENCE, SENTENCE.upper()]) == [*range(30), 30, 30]


def test_jaccard_of_exactly_the_threshold_is_a_near_duplicate():
    nine, eight = "a b c d e f g h i j", "a b c d e f g h i"  # 9 bigrams, 8 of them: 8/9
    assert clusters([nine, eight], threshold=8 / 9) == [0, 0]
    assert clusters([nine, eight], threshold=8 / 9 + 1e-6) == [0, 1]
    four, five = "a b c d e", "a b c d e f"  # 4/5, which floats miss by rounding in 0.8 * 5
    assert clusters([four, five]) == [0, 0]


def test_counts_by_hand():
    texts = ["a b c d e", "A, b c d  E!", "a b c d e f", "x y", "a b c d e", "x y?"]
    found = find_duplicates(texts)
    assert found.cluster.tolist() == [0, 0, 0, 1, 0, 1]
    assert (found.exact, found.near, found.clusters, found.largest, found.skipped) == (3, 1, 2, 4, 0)


def test_order_does_not_matter():
    texts = varied(400, seed=2)
    order = np.random.default_rng(0).permutation(len(texts))
    straight, shuffled = np.array(clusters(texts)), np.array(clusters([texts[i] for i in order]))
    assert np.array_equal(straight[order][:, None] == straight[order][None, :], shuffled[:, None] == shuffled[None, :])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Hello,  WORLD!!", "hello world"),
        ("ﬁne Ｗｉｄｅ", "fine wide"),
        ("STRASSE straße", "strasse strasse"),
        ("1+1 = 2€ 🙂", "1 + 1 = 2 € 🙂"),
        ("你好。hello", "你 好 hello"),
        ("ไทย", "ไ ท ย"),
        ("a\u200bb\ufeff", "ab"),
        ("tab\tnull\0line\n", "tab null line"),
        (" ?! ", "?!"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normal_text(text, plain):
    assert normalize_text(text) == plain


def test_odd_texts_equal_only_their_like():
    odd = [
        "",
        "?",
        "!!",
        "word",
        "\ud800",
        "\ud800 tail",
        "你好吗朋友",
        "a" * 100_000,
        " ".join(map(str, range(50_000))),
    ]
    assert clusters(odd) == list(range(len(odd)))
    assert clusters(odd + odd) == 2 * list(range(len(odd)))


def test_scripts_without_spaces_are_compared_by_character():
    base = "请问西班牙的首都是哪里我想知道答案"
    assert clusters([base, f"{base}吗？", "请问法国的最高山是什么名字谢谢你"]) == [0, 0, 1]


@given(st.lists(st.text(st.characters(), max_size=30), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_text_is_counted(texts):
    found = find_duplicates(texts)
    assert len(found.cluster) == len(texts)
    assert len(set(found.cluster.tolist())) == len(texts) - found.exact - found.near


def test_no_texts():
    assert find_duplicates([]).cluster.shape == (0,)


@pytest.mark.parametrize("threshold", [0, 0.49, 1.01, -1, float("nan")])
def test_threshold_outside_its_bounds_is_an_error(threshold):
    with pytest.raises(UsageError, match=r"from 0\.5 to 1"):
        find_duplicates(["a"], threshold=threshold)


def test_one_template_costs_no_more_than_its_size(monkeypatch):
    # 5,000 prompts of one template and as many others, so that it does not count as most; all of it alike, then all a
    # little further apart than the threshold
    others = [" ".join(f"o{i}w{j}" for j in range(6)) for i in range(5000)]
    compared = []
    near = clusters_module.are_near

    def counted(sets, left, right, threshold):
        compared.append(len(left))
        return near(sets, left, right, threshold)

    monkeypatch.setattr(clusters_module, "are_near", counted)
    monkeypatch.setattr(clusters_module, "_BLOCK", 20_000)
    alike = find_duplicates([f"{SENTENCE} number{i}" for i in range(5000)] + others)
    assert (alike.clusters, alike.largest, alike.skipped) == (1, 5000, 0)
    assert sum(compared) < 20 * 5000
    compared.clear()
    apart = [SENTENCE.replace("short", f"s{i}").replace("broken", f"b{i}") for i in range(5000)]
    found = find_duplicates([*apart, f"{apart[7]} thanks", *others, "one more"])
    assert (found.clusters, found.near, found.skipped) == (1, 1, 0)
    assert sum(compared) < 20 * 5000


def test_pairs_left_uncompared_are_counted(monkeypatch):
    monkeypatch.setattr(clusters_module, "_BLOCK", 100)
    monkeypatch.setattr(clusters_module, "_MOST", 10)
    # lists of common words alone: no shingle is rare, so every pair is a candidate
    rng = Random(0)
    texts = [" ".join(rng.choices("abcde", k=40)) for _ in range(100)]
    assert find_duplicates(texts, threshold=0.8).skipped > 0


# ---- preference pairs


def test_every_planted_near_duplicate_shares_a_cluster():
    clustered = with_clusters(make_preferences(2000))
    cluster = dict(zip(clustered["prompt_id"], clustered["cluster_id"], strict=True))
    planted = make_world(2000).truth["near_duplicate_prompts"]
    assert len(planted) == 40
    assert all(cluster[original] == cluster[copy] for original, copy in planted)


def pairs(prompts):
    rows = [{"id": str(i), "prompt_id": name, "prompt": text} for i, (name, text) in enumerate(prompts)]
    return Dataset.from_list(rows)


def test_representative_is_the_smallest_prompt_id_whatever_the_order():
    rows = [("p2", "a b c d e f"), ("p9", "something else"), ("p1", "a b c d e"), ("p2", "A B C D E F")]
    for order in (rows, rows[::-1]):
        result = deduplicate(pairs(order))
        assert dict(zip(result.clustered["prompt_id"], result.clustered["cluster_id"], strict=True)) == {
            "p1": "p1", "p2": "p1", "p9": "p9",
        }  # fmt: skip
        assert sorted(result.kept["prompt_id"]) == ["p1", "p9"]
        counts = result.as_dict()
        assert (counts["n"], counts["prompts"], counts["kept"], counts["dropped"]) == (4, 3, 2, 2)
        assert (counts["exact"], counts["near"], counts["clusters"], counts["largest"]) == (0, 1, 1, 2)
        assert [[text.lower() for text in pair] for pair in counts["examples"]] == [["a b c d e", "a b c d e f"]]


def test_questions_under_one_system_message_stay_apart():
    system = {"role": "system", "content": f"{SENTENCE} {SENTENCE[::-1]}"}
    rows = [(f"p{i:03}", [system, {"role": "user", "content": f"What is {i} and {i}?"}]) for i in range(15)]
    result = deduplicate(pairs(rows))
    assert (result.duplicates.exact, result.duplicates.near, result.warnings) == (0, 0, [])


@pytest.mark.parametrize(("alike", "others", "warned"), [(11, 10, True), (10, 5, False), (11, 11, False)])
def test_a_cluster_of_most_prompts_is_warned_of(alike, others, warned):
    texts = ["the same question"] * alike + [f"other{i}" for i in range(others)]
    result = deduplicate(pairs([(f"p{i:02}", text) for i, text in enumerate(texts)]))
    says = ["one cluster holds 11 of 21 prompts: a template they share? raise --threshold"] if warned else []
    assert result.warnings == result.as_dict()["warnings"] == says


def test_examples_are_cut_around_the_first_difference():
    long = " ".join(f"word{i}" for i in range(60))
    first, second = shorten_pair(f"{long} left {long}", f"{long.upper()}  right {long}")
    assert " left word0 " in first and " right word0 " in second
    assert all(text.startswith("…") and text.endswith("…") and len(text) == 120 for text in (first, second))
    assert shorten_pair(long, f"{long} more")[1].endswith("word59 more")
    assert shorten_pair(long, long) == [f"{long[:119]}…"] * 2
    assert shorten_pair("你" * 300 + "a", "你" * 300 + "b")[1].endswith("你b")
    assert shorten_pair("short  one", "short two") == ["short one", "short two"]
    result = deduplicate(pairs([("p1", f"{long} left"), ("p2", f"{long} right")]))
    assert [text.split()[-1] for text in result.examples[0]] == ["left", "right"]


def test_clusters_are_replaced_when_found_again():
    once = with_clusters(pairs([("p1", "a b"), ("p2", "c d")]))
    assert with_clusters(once)["cluster_id"][:] == ["p1", "p2"]


def test_prompt_text_of_messages_and_strings():
    system, developer = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": None}]
    assert prompt_text([system, developer, *turns]) == "Why?\n"
    assert prompt_text([system, developer]) == "Be brief.\nBe kind."
    assert prompt_text("as it is ") == "as it is "


def test_pairs_without_prompts_are_an_error():
    with pytest.raises(DataError, match="without prompt_id"):
        deduplicate(Dataset.from_dict({"prompt": ["a"]}))


def public_counts(dataset):
    result = deduplicate(dataset).as_dict()
    return tuple(result[name] for name in ("n", "prompts", "exact", "near", "clusters", "largest"))


def test_duplicates_of_hh_rlhf(real_data):
    assert public_counts(read_preferences(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz")) == (
        2312,
        2310,
        1,
        7,
        8,
        2,
    )


def test_duplicates_of_llmbar(real_data):
    files = sorted((real_data / "llmbar").glob("*.json"))
    assert len(files) == 5
    assert public_counts(concatenate_datasets([read_preferences(file) for file in files])) == (419, 418, 0, 0, 0, 1)
