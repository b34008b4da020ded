from collections import Counter

import numpy as np
import pytest

from rmtrl.errors import DataError
from rmtrl.evaluation.benchmarks import benchmark
from rmtrl.evaluation.benchmarks.results import result_of

ROW = {"input": "Say yes.", "output_1": "yes", "output_2": "no", "label": 1}


def test_the_real_files_are_read_whole(real_data):
    items = benchmark("llmbar").read(str(real_data / "llmbar"))
    assert Counter(item.subset for item in items) == benchmark("llmbar").expected
    result = result_of(benchmark("llmbar"), items, [np.array([1.0, 0.0])] * 419)  # always the first output
    first = sum(item.facts["correct"] == (0,) for item in items)
    assert result.overall.value == pytest.approx(first / 419)
    assert result.missing_parts == {}
    assert (result.sections["natural"].n, result.sections["adversarial"].n) == (100, 319)


def test_the_repository_s_folders_are_read_without_the_evaluators_files(write, scored):
    write("LLMBar/Natural/dataset.json", [ROW])
    write("LLMBar/Natural/evaluators/GPT-4/CoT/result.json", [{"winner": 1}])
    path = write("LLMBar/Adversarial/GPTOut/dataset.json", [{**ROW, "label": 2}, ROW])
    items = benchmark("llmbar").read(str(path.parents[2]))
    assert [item.id for item in items] == ["gptout/1", "gptout/2", "natural/1"]
    result = result_of(benchmark("llmbar"), items, scored([0, 1], [1, 1], [1, 0]))
    assert result.overall.value == pytest.approx(2 / 3)
    assert result.others["macro"].value == 0.75


def test_files_that_do_not_fit_are_named(write):
    with pytest.raises(DataError, match="rows.json is or holds no file named after one of natural, neighbor"):
        benchmark("llmbar").read(str(write("rows.json", [ROW])))
    with pytest.raises(DataError, match="row 1: label is '3'; wanted 1 or 2"):
        benchmark("llmbar").read(str(write("natural.json", [{**ROW, "label": 3}])))
    with pytest.raises(DataError, match="is another file of the set manual"):
        write("two/manual.json", [ROW])
        benchmark("llmbar").read(str(write("two/old-manual.json", [ROW]).parent))
