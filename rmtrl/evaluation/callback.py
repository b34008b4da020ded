"""A benchmark during training: its figures in the log of every evaluation, and a record of what they decided."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import gather_object
from transformers import TrainerControl, TrainerState, TrainingArguments

from rmtrl.evaluation.benchmarks.base import Benchmark, Item
from rmtrl.evaluation.benchmarks.results import result_of
from rmtrl.evaluation.fingerprints import items_fingerprint
from rmtrl.evaluation.items import ItemScores, score_items
from rmtrl.io import write_json
from rmtrl.reward.callbacks import RewardCallback
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import Head
from rmtrl.reward.scorer import RewardScorer
from rmtrl.types import PairRewards


class BenchmarkCallback(RewardCallback):
    """Scores a benchmark with the model in training at each evaluation of a [`~rmtrl.RewardTrainer`].

    Adds `eval_<name>`, the benchmark's overall figure, and `eval_<name>/<section>` to the log and to the metrics that
    `metric_for_best_model` and early stopping read. With several evaluation sets the benchmark is scored with each, as
    `eval_<set>_<name>`. Each process scores its part of the rows; where the model itself is spread over processes
    (FSDP, DeepSpeed), which then have to take every forward pass together, each scores all of them.

    A benchmark that chooses the checkpoint is no longer a test of it. `selected_on` in the `rmtrl.json` of each
    checkpoint then names it, and `rmtrl evaluate` marks its figure.

    Args:
        benchmark ([`Benchmark`]): The rule.
        items (`Sequence[Item]`, *optional*): Its rows, or some of them; `benchmark.read()` by default.
        name (`str`, *optional*): Name in the log; the benchmark's own by default.

    Example:

    ```python
    >>> from rmtrl.evaluation.benchmarks import benchmark
    >>> kitchen = benchmark("examples/benchmark")
    >>> callbacks = [BenchmarkCallback(kitchen, kitchen.read())]
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=dataset, callbacks=callbacks)
    ```
    """

    def __init__(self, benchmark: Benchmark, items: Sequence[Item] | None = None, *, name: str | None = None) -> None:
        self.benchmark = benchmark
        self.items = benchmark.read() if items is None else items
        self.name = name or benchmark.name
        self._model: Any = None
        self._tokenizer: Any = None

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the model and tokenizer of the evaluation under way, whose rewards come next."""
        self._model, self._tokenizer = kwargs["model"], kwargs["processing_class"]

    def on_rewards(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, pairs: PairRewards, prefix: str
    ) -> dict[str, float]:
        """Returns `<name>` and `<name>/<section>` in evaluation, nothing in training and prediction."""
        if not prefix.startswith("eval_"):
            return {}
        training = self._model.training
        try:
            head = Head.of(args) if isinstance(args, RewardConfig) else None
            scorer = RewardScorer(self._model, self._tokenizer, head=head, progress=False)
            scores = self._scored(scorer, progress=state.is_world_process_zero)
        finally:
            self._model.train(training)
        result = result_of(self.benchmark, self.items, scores, n_resamples=1)  # the log has no room for intervals
        sections = {f"{self.name}/{section}": figure.value for section, figure in result.sections.items()}
        return {self.name: result.overall.value, **sections}

    def _scored(self, scorer: RewardScorer, *, progress: bool) -> list[ItemScores]:
        """Returns the scores of all items, on every process."""

        def score(items: Sequence[Item]) -> list[ItemScores]:
            windows = score_items(scorer, items, name=self.name, progress=progress)
            return [own for window in windows for own in window]

        if AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return score(self.items)
        state = PartialState()  # whose own split gives an item to every process, before accelerate 1.14
        part = np.array_split(np.arange(len(self.items)), state.num_processes)[state.process_index]
        return list(gather_object(score([self.items[i] for i in part])))

    def selects(self, args: TrainingArguments) -> bool:
        """Returns whether the run keeps the checkpoint, or stops, by a figure of this benchmark."""
        metric = (args.metric_for_best_model or "").split("/")[0]
        return f"_{metric}".endswith(f"_{self.name}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the benchmark to `selected_on` in the `rmtrl.json` of the checkpoint just written, where it selects."""
        file = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "rmtrl.json"
        if not (self.selects(args) and state.is_world_process_zero and file.is_file()):
            return
        record = json.loads(file.read_text(encoding="utf-8"))
        own = {"benchmark": self.name, "fingerprint": items_fingerprint(self.items)}
        others = [entry for entry in record.get("selected_on", []) if entry != own]
        write_json(file, record | {"selected_on": [*others, own]})
