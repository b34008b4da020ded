"""The verdicts of audit and gate on reward models whose fault is known: 40 Llamas trained here, 20 of each kind.

About 18 minutes on one core: one for the supervised start, then 30 s for each debiased model and 20 s for each
length-loving one, training, scoring and audit.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from random import Random

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from rmtrl import RewardConfig, RewardScorer, RewardTrainer
from rmtrl.data.synthetic import ANNOTATORS, gold_score
from rmtrl.data.synthetic.world import PERFECT, write_pairs
from rmtrl.data.synthetic.writing import write_prompts
from rmtrl.evaluation.audit import ACQUITTED, CONVICTED, audit_length
from rmtrl.evaluation.evidence import collect
from rmtrl.evaluation.gate import Thresholds, judge
from rmtrl.types import json_ready

RECIPE = Path(__file__).parents[2] / "recipes" / "sft_llama.py"
SEEDS = 20
SIDES = ("chosen", "rejected")
LONG_WINDED = next(annotator for annotator in ANNOTATORS if annotator.name == "long-winded")
THRESHOLDS = Thresholds.from_yaml("{schema: rmtrl/thresholds/1, checks: {length_audit: {passed: true}}}")


def judged(seed, n_prompts, annotator):
    """Pairs labelled by one annotator; ties are left out."""
    rng = Random(f"audit {annotator.name} {seed}")
    rows = [row for prompt in write_prompts(rng, n_prompts) for row in write_pairs(rng, prompt, (annotator,)).rows]
    return [row for row in rows if row["preference"] != 0.5]


def text(row, side):
    return row[side][0]["content"]


def words(row, side):
    return len(text(row, side).split())


def balanced(rows):
    """As many pairs whose chosen side is longer as pairs whose chosen side is shorter."""
    kinds = [[row for row in rows if sign * (words(row, "chosen") - words(row, "rejected")) > 0] for sign in (1, -1)]
    n = min(map(len, kinds))
    return kinds[0][:n] + kinds[1][:n]


@cache
def held_out():
    """Pairs labelled by the gold score, as many with the longer side chosen as with the shorter, on other prompts."""
    return balanced(judged("held out", 800, PERFECT))


@cache
def quality():
    """The gold scores of the held-out pairs, by side."""
    return [[gold_score(text(row, "prompt"), text(row, side)) for row in held_out()] for side in SIDES]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of the embedded world's supervised start, from which every reward model is trained."""
    folder = tmp_path_factory.mktemp("start") / "sft"
    subprocess.run([sys.executable, RECIPE, "--output_dir", folder], check=True, timeout=600)
    return folder


def training_pairs(seed, annotator):
    """About 830 pairs of the length-loving annotator, or 1,400 debiased ones; no prompt of the held-out pairs."""
    rows = balanced(judged(seed, 1000, PERFECT)) if annotator is PERFECT else judged(seed, 600, annotator)
    known = {text(row, "prompt") for row in held_out()}
    return [row for row in rows if text(row, "prompt") not in known]


def train(start, rows, seed, folder):
    """The reward model of the tiny recipe's settings, on these pairs."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    args = RewardConfig(
        str(folder), seed=seed, num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.01, adam_beta2=0.95, max_length=256,
        train_sampling_strategy="group_by_length", gradient_checkpointing=False, bf16=False, use_cpu=True,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    pairs = Dataset.from_list([{name: row[name] for name in ("prompt", *SIDES)} for row in rows])
    RewardTrainer(model, args, train_dataset=pairs, processing_class=tokenizer).train()
    return RewardScorer(model, tokenizer, progress=False)


def audited(scorer):
    rows = held_out()
    scores = [scorer.score([row["prompt"] + row[side] for row in rows]) for side in SIDES]
    lengths = [[words(row, side) for row in rows] for side in SIDES]
    return audit_length(
        *scores, *lengths, [row["prompt_id"] for row in rows], unit="words", chosen_quality=quality()[0],
        rejected_quality=quality()[1], n_resamples=500,
    )  # fmt: skip


def gated(audit):
    """What the gate says where it asks for the length audit alone and reads the audit's file."""
    return judge(collect({"audit.json": json.loads(json.dumps(json_ready(audit)))}), THRESHOLDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verdict", "annotator"), [(CONVICTED, LONG_WINDED), (ACQUITTED, PERFECT)], ids=["long-winded", "debiased"]
)
def test_audit_and_gate_know_the_length_loving_reward_model(verdict, annotator, start, tmp_path, capsys):
    """At least 19 of 20 seeds get the right verdict of both, each with pairs, head and order of training of its own.

    Convicted: trained on pairs labelled by the length-loving annotator. Acquitted: on pairs labelled by the gold
    score, as many with the longer side chosen as with the shorter.
    """
    right = []
    for seed in range(SEEDS):
        rows = training_pairs(seed, annotator)
        audit = audited(train(start, rows, seed, tmp_path / str(seed)))
        decision, figures = gated(audit), audit.figures
        [reason] = decision.reasons
        assert reason.got == "; ".join((audit.verdict, *audit.reasons))
        if annotator is PERFECT:
            assert figures["accuracy"].value > 0.65  # acquitted for what it has learnt, not for having learnt nothing
        else:
            assert figures["partial_spearman"].low > 0.3
        right.append(audit.verdict == verdict and decision.ready == (verdict == ACQUITTED))
        shown = ", ".join(f"{name} {figures[name]}" for name in ("length_gap", "accuracy", "partial_spearman"))
        with capsys.disabled():
            print(f"\n{seed}: {len(rows)} pairs: {audit.verdict}, ready {decision.ready}; {shown}", end="")
    assert sum(right) >= 19, right
