"""What the benchmarks of speed compute on: a Llama and its tokenizer made in place, public pairs, made-up ones."""

import gzip
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rmtrl.data.preferences import read_preferences
from rmtrl.data.synthetic import make_preferences
from rmtrl.data.validation import validate
from rmtrl.reward.batching import Costs, like_lengths, row_length
from rmtrl.tiny import make_tiny_tokenizer

RESULTS = Path(__file__).with_name("RESULTS.md")
SIZES = {
    "tiny": dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=4),
    "small": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
                  num_key_value_heads=4),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
               num_key_value_heads=8),
}  # fmt: skip


def data_folder() -> Path | None:
    """The folder of public data sets that `RMTRL_DATA` names."""
    return Path(os.environ["RMTRL_DATA"]) if "RMTRL_DATA" in os.environ else None


def human_pairs(n: int | None = None) -> list[dict[str, str]]:
    """Sound hh-rlhf pairs as text, the first n of a shuffled order; pairs of the embedded world without the data."""
    folder = data_folder()
    if folder is None:
        pairs = [{name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")}
                 for row in make_preferences(2000, clean=True)]  # fmt: skip
    else:
        kept = validate(read_preferences(folder / "hh-rlhf" / "harmless-base-test.jsonl.gz")).kept
        pairs = kept.select_columns(["prompt", "chosen", "rejected"]).to_list()
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i] for i in order[:n]]


def make_tokenizer(pairs: list[dict[str, str]], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the pairs' own texts."""
    return make_tiny_tokenizer([row[name] for row in pairs for name in ("prompt", "chosen")], vocab_size=vocab_size)


def make_model(tokenizer: PreTrainedTokenizerFast, size: str = "small", **settings) -> LlamaForSequenceClassification:
    """A randomly initialised Llama with a scalar head."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, num_labels=1,
                         pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
                         **SIZES[size], **settings)  # fmt: skip
    return LlamaForSequenceClassification(config)


def long_prompt_pairs(n: int, prompt_tokens: int, response_tokens: int, vocab_size: int) -> list[dict[str, list[int]]]:
    """Pairs of random token ids under prompts of one length."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> list[int]:
        return rng.integers(10, vocab_size, length).tolist()

    return [
        {"chosen_ids": prompt + ids(response_tokens), "rejected_ids": prompt + ids(response_tokens)}
        for prompt in (ids(prompt_tokens) for _ in range(n))
    ]


def judged_texts(name: str, n: int | None = None) -> list[str]:
    """Texts of a benchmark in the order of its rows, the two (RM-Bench: six) answers of a prompt one after another."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("set RMTRL_DATA to the folder of public data sets")
    if name == "rm-bench":
        with gzip.open(folder / "rm-bench" / "safety-response.json.gz", "rt") as file:
            rows = json.load(file)
        sets = [[f"{row['prompt']}\n\n{answer}" for answer in (*row["chosen"], *row["rejected"])] for row in rows]
    else:
        patterns = {"hh-rlhf": "hh-rlhf/*.jsonl.gz", "judgebench": "judgebench/*.jsonl.gz", "llmbar": "llmbar/*.json"}
        pairs = [row for file in sorted(folder.glob(patterns[name])) for row in read_preferences(file)]
        gap = "" if name == "hh-rlhf" else "\n\n"
        sets = [[row["prompt"] + gap + row[side] for side in ("chosen", "rejected")] for row in pairs]
    return [text for group in sets[:n] for text in group]


def machine() -> str:
    """One line that says what the figures were measured on."""
    import transformers
    import trl

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{device} ({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}, "
        f"trl {trl.__version__}"
    )


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def append_results(lines: list[str]) -> None:
    """Adds lines to RESULTS.md and prints them."""
    print("\n".join(lines))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")


def n_tokens(jobs, sequences, costs: Costs) -> int:
    """Returns the tokens that the steps compute, padding included."""
    total = 0
    for method, groups in jobs:
        if method == "cached":
            (group,) = groups
            rests = [len(sequences[i]) - group.prefix for i in group.members]
            total += group.prefix
            total += sum(len(b) * max(rests[i] for i in b) for b in like_lengths(rests, costs, group.prefix))
        else:
            total += len(groups) * max(row_length(group, sequences) for group in groups)
    return total
