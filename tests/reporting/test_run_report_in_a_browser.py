"""The page in a headless Chromium, at the width of a desktop and of a phone: read, sorted and filtered."""

import html
import json
import re
import shutil
import subprocess

import pytest
from test_run_report import EASY, HOSTILE, seen_as

from rmtrl.evaluation.evidence import NAMES
from rmtrl.evaluation.gate import Thresholds, default_thresholds
from rmtrl.evaluation.scoring import WORST
from rmtrl.io import write_json, write_rows
from rmtrl.reporting.report import read_run, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"desktop": (1280, 720), "phone": (390, 844)}
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; on Debian: apt install chromium"),
]

# the page stands in a frame of the wanted size, in which the script of a test runs
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0"><pre id="found"></pre>
<iframe id="page" width="{width}" height="{height}" style="border:0" srcdoc="{page}"></iframe>
<script>document.getElementById("page").onload = function () {{
  const window_ = this.contentWindow, page = window_.document, get = id => page.getElementById(id);
  const rows = () => [...page.querySelectorAll("table.pairs tbody tr")].filter(row => !row.hidden);
  const head = name => [...page.querySelectorAll("table.pairs th button")].find(own => own.textContent === name);
  const type = (id, text) => {{ get(id).value = text; get(id).dispatchEvent(new window_.Event("input")); }};
  document.getElementById("found").textContent = JSON.stringify((() => {{ {script} }})());
}};</script>"""


@pytest.fixture
def browse(tmp_path):
    """Runs a script in the page of a run at a size; returns what it returns."""

    def run(folder, script, size="desktop", flags=(), **settings):
        width, height = SIZES[size]
        page = html.escape(write_report(read_run(folder, **settings)).read_text(encoding="utf-8"))
        file = tmp_path / "frame.html"
        file.write_text(FRAME.format(width=width, height=height, page=page, script=script), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
        command = [
            CHROMIUM,
            *flags,
            "--virtual-time-budget=5000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            file.as_uri(),
        ]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("asked", [default_thresholds(), EASY], ids=["default", "easy"])
def test_the_verdict_and_its_reasons_are_seen_without_scrolling(browse, whole_run, size, asked):
    script = (
        "return [get('verdict').getBoundingClientRect(), get('verdict').innerText, page.documentElement.scrollWidth]"
    )
    box, said, width = browse(whole_run, script, size, thresholds=asked)
    assert 0 <= box["top"] < box["bottom"] <= SIZES[size][1]
    assert "ready to train a policy" in said and ("Ready." in said or "Not ready:" in said)
    assert "Passed: " in said
    assert width <= SIZES[size][0]  # nothing makes the page wider than the screen


def test_long_names_and_fingerprints_do_not_make_a_phone_scroll_sideways(browse, run_folder, edit):
    splits = {"test": {"pairs": 9, "fingerprint": "f" * 64}}
    edit(run_folder / "rm/rmtrl.json", lambda own: own.update(splits=splits))
    edit(run_folder / "rm/audit.json", lambda own: own.update(data={"source": "d" * 90}, reasons=["r" * 90]))
    script = "return [page.documentElement.scrollWidth, window_.innerWidth]"
    width, wanted = browse(run_folder, script, "phone")
    assert width <= wanted == 390


def test_the_worst_case_fits_too(browse, run_folder, edit):
    """There is evidence for every check, and all fail."""
    bad = {"value": 0.4, "low": 0.38, "high": 0.42, "n": 500}
    write_json(run_folder / "fresh.json", {"schema": "rmtrl/fresh/1", "accuracy": bad, "reviewed_by": "human"})
    edit(run_folder / "rm/metrics.json", lambda own: own.update(spillover={"accuracy": bad}))
    edit(run_folder / "rm/audit.json", lambda own: own.update(verdict="convicted"))
    edit(run_folder / "rm/audit.json", lambda own: own["figures"].update(accuracy_matched=bad))
    ends = {name: "minimum: 0.99, n: 1" for name in NAMES if "accuracy" in name} | {"overlap": "minimum: 1"}
    ends |= {
        "ece": "maximum: 0.001",
        "nll_gain": "minimum: 9",
        "gamma": "maximum: 0.001",
        "length_audit": "passed: true",
    }
    checks = ", ".join(f"{name}: {{{end}}}" for name, end in ends.items())
    asked = Thresholds.from_yaml(f"{{schema: rmtrl/thresholds/1, checks: {{{checks}}}}}")
    script = "return [get('verdict').getBoundingClientRect().bottom, get('verdict').innerText]"
    for size, (_, height) in SIZES.items():
        bottom, said = browse(run_folder, script, size, thresholds=asked)
        assert f"Not ready: {len(ends)} of {len(ends)} checks failed." in said and len(ends) == 9
        assert said.count("wanted ") == 8 and "convicted" in said and bottom <= height


@pytest.mark.parametrize("size", SIZES)
def test_pairs_are_sorted_by_a_click_and_back_by_another(browse, whole_run, size):
    script = """
      const margins = () => rows().map(row => Number(row.cells[0].dataset.value)), seen = [margins()];
      for (const _ of [1, 2]) { head("margin").click(); seen.push(margins()); }
      head("domain").click();
      return [seen, rows().map(row => row.dataset.domain), head("domain").parentElement.getAttribute("aria-sort")]"""
    (start, up, down), domains, said = browse(whole_run, script, size)
    assert len(start) > 20 and len(set(start)) == len(start)
    assert up == sorted(start) and down == sorted(start, reverse=True) and sorted(set(start)) == sorted(start)
    assert domains == sorted(domains) and len(set(domains)) == 3 and said == "ascending"


@pytest.mark.parametrize("size", SIZES)
def test_pairs_are_filtered_by_words_and_by_domain(browse, whole_run, size):
    lines = [json.loads(line) for line in (whole_run / "rm" / WORST).read_text().splitlines()]
    word = lines[3]["prompt"].split()[-1]
    script = f"""
      const seen = () => [rows().map(row => row.innerText), get("shown").textContent];
      type("words", {json.dumps(word.upper() + " what")}); const by_word = seen();
      type("words", ""); type("domain", "law"); const by_domain = seen();
      type("words", "no such words"); const none = seen();
      type("words", ""); type("domain", ""); return [by_word, by_domain, none, seen()]"""
    by_word, by_domain, none, again = browse(whole_run, script, size)
    wanted = [line for line in lines if word in f"{line['prompt']} {line['chosen']} {line['rejected']}"]
    assert len(by_word[0]) == len(wanted) < len(lines) and all(word in text for text in by_word[0])
    law = sum(line["domain"] == "law" for line in lines)
    assert len(by_domain[0]) == law and by_domain[1] == f"{law} of {len(lines)} shown"
    assert none == [[], f"0 of {len(lines)} shown"] and len(again[0]) == len(lines)


def test_sides_stand_next_to_each_other_and_on_a_phone_one_above_the_other(browse, whole_run):
    script = "return [3, 4].map(i => rows()[0].cells[i].getBoundingClientRect())"
    chosen, rejected = browse(whole_run, script)
    assert chosen["top"] == rejected["top"] and chosen["right"] <= rejected["left"] + 1
    chosen, rejected = browse(whole_run, script, "phone")
    assert chosen["left"] == rejected["left"] and chosen["bottom"] <= rejected["top"] + 1


def test_hostile_text_runs_nothing(browse, run_folder, edit):
    row = {"id": "a", "prompt_id": "a", "scores": [0.5, 1.5]}
    texts = [*HOSTILE, "<script>window.owned = 1</script>", "<img src=x onerror='window.owned = 1'>"]
    rows = [row | {"domain": text, "prompt": text, "chosen": text, "rejected": text} for text in texts]
    write_rows(run_folder / "rm" / WORST, rows)
    edit(run_folder / "rm/rmtrl.json", lambda stored: stored["data"].update(name=texts[-1]))
    script = "return [page.title, window_.owned === undefined, rows().map(row => row.cells[2].textContent)]"
    title, clean, seen = browse(run_folder, script)
    assert (title, clean) == ("mine: report", True) and seen == [seen_as(text) for text in texts]


def test_paper_is_light_or_dark_as_the_reader_has_it(browse, whole_run):
    script = """
      const own = window_.getComputedStyle(page.body);
      return [own.backgroundColor, own.color].map(colour => Math.max(...colour.match(/\\d+/g).map(Number)))"""
    paper, ink = browse(whole_run, script)
    assert paper > 200 and ink < 100
    paper, ink = browse(whole_run, script, flags=["--blink-settings=preferredColorScheme=0"])
    assert paper < 100 and ink > 200
