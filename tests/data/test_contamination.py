"""Contamination: what was planted is found, by its kind; what only looks alike is not."""

import pytest
from datasets import Dataset, concatenate_datasets
from scipy.stats import binomtest

from rmtrl.data import clusters
from rmtrl.data.contamination import KINDS, contamination
from rmtrl.data.preferences import read_preferences, to_normal_form
from rmtrl.data.splits import make_splits
from rmtrl.data.synthetic import make_preferences, make_world
from rmtrl.errors import DataError, UsageError

RUN = "a quick brown fox jumps over the lazy dog while thirteen cats watch"  # 13 words
ANSWER = "the answer is long enough to be no accident when it stands there twice"  # 14 words

TRAIN = [
    {"id": "t0", "prompt": "Name the capital of Spain.", "chosen": "Madrid.", "rejected": "Rome."},
    {"id": "t1", "prompt": "a b c d e", "chosen": "x", "rejected": "y"},
    {"id": "t2", "prompt": "Tell me a story.", "chosen": f"Once {RUN}, and so on.", "rejected": "No."},
    {"id": "t3", "prompt": "Why?", "chosen": "Because.", "rejected": ANSWER},
    {"id": "t4", "prompt": "What is left?", "chosen": "This row.", "rejected": "Nothing."},
]
EVAL = [
    {"id": "e0", "prompt": "name the capital of SPAIN", "chosen": "Madrid, Spain.", "rejected": "Lisbon."},
    {"id": "e1", "prompt": "A b c d e f!", "chosen": "p", "rejected": "q"},
    {"id": "e2", "prompt": f"Continue: {RUN.upper()} them.", "chosen": "r", "rejected": "s"},
    {"id": "e3", "prompt": "How so, then?", "chosen": ANSWER.capitalize() + ".", "rejected": "Because."},
    {"id": "e4", "prompt": "Which row is left over?", "chosen": "This row.", "rejected": "Nothing."},
]


def normal(rows):
    return to_normal_form(Dataset.from_list([row | {"prompt_id": f"prompt-{row['id']}"} for row in rows]))


def check(train, evaluations, **settings):
    return contamination(train, evaluations, **settings)


def test_each_kind_finds_its_row_and_no_other():
    report = check(normal(TRAIN), {"eval": normal(EVAL)})
    result = report.evaluations["eval"]
    found = {kind: result.overlaps[kind].prompt_ids for kind in KINDS}
    assert found == {
        "exact": ["prompt-e0"], "near": ["prompt-e1"], "ngram": ["prompt-e2"], "response": ["prompt-e3"],
    }  # fmt: skip
    assert result.rows == ["e0", "e1", "e2", "e3"] and result.overlaps["any"].count == 4
    assert report.found and report.clean["id"][:] == ["t4"]
    example = result.overlaps["ngram"].examples[0]
    assert example["train"].startswith("Once a quick") and example["evaluation"].startswith("Continue: A QUICK")


def test_shares_are_of_what_could_be_judged_with_the_exact_interval():
    result = check(normal(TRAIN), {"eval": normal(EVAL)}).evaluations["eval"]
    assert {kind: overlap.n for kind, overlap in result.overlaps.items()} == {
        "exact": 5, "near": 5, "ngram": 1, "response": 1, "any": 5,
    }  # fmt: skip
    share, wanted = result.overlaps["any"].share, binomtest(4, 5).proportion_ci()
    assert [share.value, share.low, share.high] == pytest.approx([0.8, wanted.low, wanted.high], abs=1e-12)


def test_clean_sets_have_nothing_in_common():
    report = check(normal(TRAIN[-1:]), {"eval": normal(EVAL)})
    assert not report.found and len(report.clean) == report.n == 1
    result = report.evaluations["eval"]
    assert result.rows == [] and all(overlap.count == 0 for overlap in result.overlaps.values())
    assert result.overlaps["exact"].share.low == 0 and result.overlaps["exact"].share.high > 0.5


def test_share_is_unknown_where_nothing_can_be_judged():
    result = check(normal(TRAIN), {"eval": normal(EVAL[:1])}).evaluations["eval"]
    assert (result.overlaps["ngram"].n, result.overlaps["ngram"].share) == (0, None)
    assert result.as_dict()["ngram"]["share"] is None


def test_word_run_has_the_length_asked_for():
    found = [
        check(normal(TRAIN), {"eval": normal(EVAL[2:3])}, ngram=n).evaluations["eval"].overlaps["ngram"].count
        for n in (2, 13, 14)
    ]
    assert found == [1, 1, 0]


def test_every_set_is_judged_as_if_alone():
    first, second = normal(EVAL[:2]), normal(EVAL[2:])
    both = check(normal(TRAIN), {"first": first, "second": second})
    assert list(both.evaluations) == ["first", "second"]
    for name, dataset in {"first": first, "second": second}.items():
        assert both.evaluations[name] == check(normal(TRAIN), {name: dataset}).evaluations[name]
    assert both.clean["id"][:] == ["t4"]


def test_rows_of_one_prompt_count_once():
    twice = normal([EVAL[0], EVAL[0] | {"id": "e9"}]).map(lambda row: {"prompt_id": "one"})
    result = check(normal(TRAIN), {"eval": twice}).evaluations["eval"]
    assert (result.n, result.prompts, result.overlaps["exact"].count, result.rows) == (2, 1, 1, ["e0", "e9"])


def test_near_prompts_do_not_depend_on_the_order_of_rows():
    train, evaluation = make_preferences(300), make_preferences(200, seed=1)
    straight = check(train, {"eval": evaluation}).evaluations["eval"].overlaps["near"].prompt_ids
    shuffled = check(train.shuffle(seed=0), {"eval": evaluation.shuffle(seed=0)}).evaluations["eval"]
    assert straight and straight == shuffled.overlaps["near"].prompt_ids


def test_every_planted_near_duplicate_across_a_split_is_found():
    dataset, planted = make_preferences(600), make_world(600).truth["near_duplicate_prompts"]
    copies = {copy for _, copy in planted}
    evaluation = dataset.filter(lambda row: row["prompt_id"] in copies)
    train = dataset.filter(lambda row: row["prompt_id"] not in copies)
    report = check(train, {"eval": evaluation})
    overlaps = report.evaluations["eval"].overlaps
    assert len(copies) == 12
    assert {*overlaps["exact"].prompt_ids, *overlaps["near"].prompt_ids} == copies
    assert not {original for original, _ in planted} & set(report.clean["prompt_id"])
    assert check(report.clean, {"eval": evaluation}).found is False


def asking(n, template, tag, start=0):
    rows = [f"{template} what is {tag}{i} and {tag}{i + 1} worth" for i in range(start, start + n)]
    return normal([{"id": f"{tag}{i}", "prompt": p, "chosen": "yes", "rejected": "no"} for i, p in enumerate(rows)])


def counts(report):
    overlaps = report.evaluations["eval"].overlaps
    return [overlaps[kind].count for kind in KINDS]


def test_a_template_of_most_training_prompts_is_no_overlap():
    template = f"{RUN} {ANSWER}"
    # the run of twelve template words and "what" is on both sides too, in a third of the training prompts
    others = asking(10, template.replace("twice", "often"), "x").map(lambda row: {"id": f"o{row['id']}"})
    train = concatenate_datasets([asking(30, template, "t"), others.select(range(5))])
    report = check(train, {"eval": asking(30, template, "e")})
    assert counts(report) == [0, 0, 0, 0] and len(report.clean) == 35
    few = train.select(range(19))
    assert counts(check(few, {"eval": asking(30, template, "e")}, threshold=0.7)) == [0, 30, 30, 0]
    leaked = asking(1, template, "t", start=3)
    report = check(train, {"eval": leaked.map(lambda row: {"prompt": row["prompt"] + f" {ANSWER[::-1]}"})})
    assert counts(report) == [0, 0, 0, 0]
    assert counts(check(train, {"eval": leaked})) == [1, 0, 0, 0]


def test_many_alike_prompts_are_found_whole():
    # three templates, none in most prompts: every evaluation prompt is near a third of the training prompts
    train, evaluation = (
        concatenate_datasets([asking(500, " ".join(f"{name}{i}" for i in range(60)), tag + name) for name in "abc"])
        for tag in "te"
    )
    report = check(train, {"eval": evaluation})
    assert counts(report) == [0, 1500, 1500, 0] and len(report.clean) == 0 and report.skipped == 0
    examples = report.evaluations["eval"].overlaps["near"].examples
    assert [example["train"].split()[-4] for example in examples] == ["ta0"] * 3


def test_comparisons_left_out_are_counted(monkeypatch):
    monkeypatch.setattr(clusters, "_BLOCK", 1)
    monkeypatch.setattr(clusters, "_MOST", 0)
    many = {name: asking(15, " ".join(f"w{i}" for i in range(60)), name) for name in "te"}
    assert check(many["t"], {"eval": many["e"]}).skipped > 0


def test_clean_training_data_of_hh_rlhf_has_no_overlap(real_data):
    splits = make_splits(read_preferences(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"))
    report = check(splits.train, {"test": splits.test})
    assert report.evaluations["test"].overlaps["exact"].count == 0
    assert report.evaluations["test"].overlaps["ngram"].n > 100
    assert len(report.clean) <= report.n
    assert not check(report.clean, {"test": splits.test}).found


def test_llmbar_is_not_in_hh_rlhf(real_data):
    train = read_preferences(real_data / "hh-rlhf" / "harmless-base-test.jsonl.gz")
    report = check(train, {"llmbar": read_preferences(real_data / "llmbar" / "natural.json")})
    assert report.evaluations["llmbar"].n == 100 and not report.found


def test_empty_prompts_and_odd_text_are_judged():
    odd = [
        {"id": str(i), "prompt": text, "chosen": "\ufffd a", "rejected": ""}
        for i, text in enumerate(["", "?!", "你好"])
    ]
    dataset = Dataset.from_list([row | {"prompt_id": row["id"]} for row in odd])
    assert check(dataset, {"eval": dataset}).evaluations["eval"].overlaps["exact"].count == 3


def test_sets_without_rows_have_nothing_in_common():
    some = normal(TRAIN)
    none = some.select([])
    assert not check(none, {"eval": some}).found
    result = check(some, {"eval": none}).evaluations["eval"]
    assert (result.n, result.overlaps["any"].share, result.rows) == (0, None, [])


def test_what_cannot_be_used_is_an_error():
    with pytest.raises(DataError, match="eval lacks chosen, rejected"):
        check(normal(TRAIN), {"eval": normal(EVAL).remove_columns(["chosen", "rejected"])})
    with pytest.raises(UsageError, match="ngram 1"):
        check(normal(TRAIN), {"eval": normal(EVAL)}, ngram=1)
    with pytest.raises(UsageError, match="0 evaluation sets"):
        check(normal(TRAIN), {})
    with pytest.raises(UsageError, match="threshold 2"):
        check(normal(TRAIN), {"eval": normal(EVAL)}, threshold=2)
