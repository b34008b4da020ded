"""Evaluates a reward model on benchmarks, by default the embedded reward model on unseen prompts of its world.

    python recipes/eval_rm.py
    accelerate launch recipes/eval_rm.py --model_name_or_path my/reward-model --benchmarks llmbar judgebench=gpt.jsonl

What `rmtrl evaluate` does, from a file of settings. Writes `<output_dir>/<benchmark>/`: `scores.jsonl` and
`result.json`, and `<output_dir>/results.json`. A killed run goes on where it stopped; processes share the rows.
"""

import rmtrl.quiet  # isort: skip  # noqa: F401
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rmtrl.data.synthetic import make_preferences
from rmtrl.errors import DataError, UsageError, exit_on_error
from rmtrl.evaluation.benchmarks.base import Benchmark, Figure, Figures, Item, average, named, pooled
from rmtrl.evaluation.run import Task, evaluate, in_words, read_tasks, summary
from rmtrl.launch import parse_recipe, report_run
from rmtrl.processes import all_processes
from rmtrl.reporting.tables import table

TINY = Path(__file__).parent / "configs" / "tiny" / "eval.yaml"


@dataclass
class EvalRecipeArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint folder or hub id of a reward model or adapter."})
    output_dir: str = field(metadata={"help": "Folder for scores and results."})
    benchmarks: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={"help": "NAME or NAME=PATH as in `rmtrl evaluate`, or `embedded`: unseen pairs of that world."},
    )
    text: str | None = field(
        default=None, metadata={"help": "Text for a model without chat template: `plain` or `transcript`."}
    )
    batch_tokens: int = field(default=8192, metadata={"help": "Tokens in one forward pass, padding included."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether to run model code from the hub."})
    bf16: bool = field(default=False, metadata={"help": "Load in bfloat16 rather than in the checkpoint's own type."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU even where there is an accelerator."})
    n_prompts: int = field(default=2000, metadata={"help": "Embedded prompts the model was trained on."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the embedded pairs the model was trained on."})
    n_unseen: int = field(default=1000, metadata={"help": "Embedded prompts to draw; those of training are left out."})
    seed: int = field(default=1000, metadata={"help": "Seed of the embedded pairs to evaluate on."})


class EmbeddedWorld(Benchmark):
    """Pairs of the embedded world that its perfect annotator judged, of prompts that training did not have."""

    name = "embedded"
    rule = "the answer with the higher gold score must score above the other; overall is the mean over all pairs"
    kind = "made up"
    source = "rmtrl.data.synthetic"

    def __init__(self, recipe: EvalRecipeArguments) -> None:
        self.recipe = recipe

    def read(self, path: str | None = None) -> list[Item]:
        recipe = self.recipe
        if recipe.seed == recipe.split_seed:
            raise UsageError(f"seed and split_seed are both {recipe.seed}; the pairs would be those of training")
        trained = {pair[-1]["content"] for pair in make_preferences(recipe.n_prompts, recipe.split_seed)["prompt"]}
        pairs = make_preferences(recipe.n_unseen, recipe.seed, clean=True)
        unseen = [pair for pair in pairs if pair["prompt"][-1]["content"] not in trained]
        if not unseen:
            raise DataError(f"training had all {recipe.n_unseen:,} prompts; set n_unseen higher")
        return [
            Item(
                pair["id"], pair["prompt"][-1]["content"], pair["domain"],
                (pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]), {"correct": (0,)},
            )
            for pair in unseen
        ]  # fmt: skip

    def figures(self, parts: Mapping[str, Figure]) -> Figures:
        return Figures(pooled(parts, parts), dict(parts), named({"mean of domains": average(parts.values())}))


def read_benchmarks(recipe: EvalRecipeArguments) -> list[Task]:
    others = read_tasks([name for name in recipe.benchmarks if name != "embedded"])
    return [Task.of(EmbeddedWorld(recipe)), *others] if "embedded" in recipe.benchmarks else others


def main() -> None:
    started = time.time()
    (recipe,) = parse_recipe((EvalRecipeArguments,), TINY)
    if not recipe.benchmarks:
        raise UsageError("benchmarks is empty; give NAME or NAME=PATH, or `embedded`")
    out = Path(recipe.output_dir)
    with all_processes() as process:
        run = evaluate(
            recipe.model_name_or_path,
            read_benchmarks(recipe),
            out,
            text=recipe.text,
            process=process,
            device="cpu" if recipe.use_cpu else None,
            dtype=torch.bfloat16 if recipe.bf16 else "auto",
            batch_tokens=recipe.batch_tokens,
            trust_remote_code=recipe.trust_remote_code,
        )
        if process.rank == 0:
            summary([run], out, started=started)
            print(table(in_words([run])))
            report_run(out)


if __name__ == "__main__":
    with exit_on_error("eval_rm"):
        main()
