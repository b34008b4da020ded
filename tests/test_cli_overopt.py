"""`rmtrl overopt`: what it prints and writes, and input it cannot use."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from rmtrl.evaluation.overoptimization import measure_overoptimization, scored_samples
from rmtrl.types import json_ready


def frame(prompts=40, n=32, rho=0.6, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=prompts * n)
    proxy = rho * gold + np.sqrt(1 - rho**2) * rng.normal(size=prompts * n)
    names = [f"p{i}" for i in np.repeat(np.arange(prompts), n)]
    return pd.DataFrame({"prompt_id": names, "proxy": proxy, "gold": gold})


def write(path, rows):
    rows = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else rows
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.parquet"])
def test_figures_are_those_of_the_function_and_are_written(rmtrl, tmp_path, name):
    rows = frame()
    path = tmp_path / name
    if name.endswith("parquet"):
        rows.to_parquet(path)
    else:
        write(path, rows)
    code, stdout, stderr = rmtrl("overopt", path, "--out", tmp_path / "out", "--json")
    whole = json.loads(stdout)
    assert code == 0, stderr
    assert whole["schema"] == "rmtrl/overoptimization/1"
    assert json.loads((tmp_path / "out" / "overoptimization.json").read_text()) == whole
    assert (tmp_path / "out" / "overoptimization.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "overoptimization.json",
        "overoptimization.png",
    ]
    direct = measure_overoptimization(scored_samples(*(rows[column].to_numpy() for column in rows)))
    assert whole["whole"] == json.loads(json.dumps(json_ready(direct.whole)))
    assert whole["verdict"].startswith("gamma 0.") and whole["data"]["rows"] == 1280
    assert len(whole["data"]["fingerprint"]) == 64 and whole["settings"]["n_resamples"] == 1000


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_correctness_counts_as_0_and_1(rmtrl, tmp_path, suffix):
    rows = frame()
    figures = []
    for name, gold in (("flags", rows.gold > 0), ("numbers", (rows.gold > 0).astype(int))):
        path = tmp_path / f"{name}.{suffix}"
        own = rows.assign(gold=gold)
        if suffix == "parquet":
            own.to_parquet(path)
        else:
            write(path, own)
        code, stdout, stderr = rmtrl("overopt", path, "--json", "--n-resamples", 100)
        assert code == 0, stderr
        figures.append(json.loads(stdout)["whole"])
    assert figures[0] == figures[1] and figures[0]["gamma"]["value"] > 0


def test_people_get_a_table_and_a_verdict(rmtrl, tmp_path):
    rows = frame()
    rows["area"] = np.where(rows.prompt_id.str[-1] < "5", "maths", "chat")
    path = write(tmp_path / "s.jsonl", rows.rename(columns={"proxy": "rm_score", "gold": "human"}))
    code, stdout, _ = rmtrl("overopt", path, "--map", "proxy=rm_score", "--map", "gold=human", "--map", "domain=area",
                            "--held-out", "maths", "--n-max", 16)  # fmt: skip
    assert code == 0
    for text in ("gold chosen by proxy", "n_max 16", "f: gold chosen by gold; g:", "held out", "chat",
                 "Gold has not turned over up to n = 16"):  # fmt: skip
        assert text in stdout, text


def test_the_figure_shows_the_curves_and_the_peak():
    from rmtrl.reporting.plots import overoptimization_plot

    rng = np.random.default_rng(0)
    gold = rng.normal(size=(100, 256))
    proxy = gold + 0.8 * rng.standard_t(2, size=gold.shape)
    part = measure_overoptimization(scored_samples(np.repeat(np.arange(100), 256), proxy.ravel(), gold.ravel())).whole
    left, right = overoptimization_plot(part, title="a proxy").axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["gold chosen by proxy", "gold chosen by gold", "peak (fit)", "proxy chosen by proxy"]
    drawn = {line.get_label(): line for axes in (left, right) for line in axes.lines}
    for name, points in part.gains.items():
        np.testing.assert_allclose(drawn[name].get_xdata(), np.sqrt(part.kl))
        np.testing.assert_allclose(drawn[name].get_ydata(), [point.value for point in points])
    fit = part.fits["gold chosen by proxy"]
    assert drawn["peak (fit)"].get_xdata()[0] == pytest.approx(fit.peak_d, abs=0.02)


def test_the_peak_stands_where_the_fit_has_it_on_a_coarse_grid_too():
    from rmtrl.reporting.plots import overoptimization_plot

    rng = np.random.default_rng(0)
    gold = rng.normal(size=(100, 256))
    proxy = gold + 0.8 * rng.standard_t(2, size=gold.shape)
    samples = scored_samples(np.repeat(np.arange(100), 256), proxy.ravel(), gold.ravel())
    part = measure_overoptimization(samples, points=5).whole
    left, _ = overoptimization_plot(part).axes
    (line,) = (line for line in left.lines if line.get_label() == "peak (fit)")
    assert line.get_xdata()[0] == pytest.approx(part.fits["gold chosen by proxy"].peak_d, abs=1e-6)


def broken(**cells):
    rows = frame(prompts=4, n=8).to_dict("records")
    for row in rows:
        row.update(
            {name: value for name, value in cells.items() if row["prompt_id"] == "p1" or name.startswith("all_")}
        )
    return rows


@pytest.mark.parametrize(
    ("rows", "options", "wanted"),
    [
        ([{"prompt_id": "a", "proxy": 1.0}], (), "has no column gold"),
        (broken(gold=None), (), "8 of 32 samples have no finite gold"),
        (broken(proxy=float("nan")), (), "have no finite proxy"),
        (broken(proxy="high"), (), None),
        (
            [row | {"gold": "good"} for row in broken()],
            (),
            "has the gold 'good'; wanted a number, or true or false, in every row",
        ),
        ([row | {"gold": True} for row in broken()], (), "all 32 gold scores are 1.0"),
        ([row | {"gold": row["gold"] > 0 or None} for row in broken()], (), "have no finite gold"),
        ([row | {"kl": True} for row in broken()], (), "has the kl 'True'; wanted a number"),
        ([row | {"proxy": row["proxy"] * 1e300} for row in broken()], (), "rescale them"),
        ([row | {"proxy": 2} for row in broken()], (), "all 32 proxy scores are 2.0"),
        ([row | {"gold": None} for row in broken()], (), "32 of 32 samples have no finite gold"),
        ([row | {"prompt_id": "same"} for row in broken()], (), "samples of 1 prompt"),
        (broken(prompt_id=None), (), "8 rows without prompt_id"),
        ([row | {"prompt_id": 0.5} for row in broken()], (), "wanted a text or a whole number"),
        (broken(), ("--n-max", 9), "got n_max 9, and 4 of 4 prompts have fewer samples"),
        (broken(), ("--n-max", 2), "got n up to 2"),
        (broken()[:1] + broken()[8:], (), "prompt p0 has 1 samples"),
        (broken(), ("--held-out", "x"), "no sample is of the held-out domain x"),
        (broken(), ("--map", "proxy"), "wanted new=old"),
        (broken(), ("--map", "proxy=other"), "has the columns prompt_id, proxy, gold"),
        ([], (), "empty"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_exit_code_2(rmtrl, tmp_path, rows, options, wanted):
    path = write(tmp_path / "s.jsonl", rows)
    code, stdout, stderr = rmtrl("overopt", path, *options)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("rmtrl: error: ") and stderr.count("\n") == 1, stderr
    assert wanted is None or wanted in stderr, stderr


def test_a_missing_file_and_a_folder_that_cannot_be_written(rmtrl, tmp_path):
    code, _, stderr = rmtrl("overopt", tmp_path / "none.jsonl")
    assert code == 2 and "no such file" in stderr and stderr.count("\n") == 1
    (tmp_path / "file").write_text("")
    code, _, stderr = rmtrl("overopt", write(tmp_path / "s.jsonl", frame()), "--out", tmp_path / "file" / "deep")
    assert code == 2 and "cannot write" in stderr and stderr.count("\n") == 1
