"""TRL's `RewardTrainer` with exact metrics, counted rows and a float32 head."""

import copy
import inspect
import sys
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import ClassLabel, Dataset, IterableDataset
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer as TRLRewardTrainer
from trl.data_utils import get_dataset_column_names

from rmtrl.data.provenance import CARD_MARK
from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.models import base_model, check_finite, check_weights, keep_outputs
from rmtrl.reward import checkpoint, pairs, preparation
from rmtrl.reward.callbacks import RewardCallback, invalid_logs, pair_logs
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import compute_head_in_float32, freezes_head
from rmtrl.reward.losses import Objective
from rmtrl.reward.preparation import SetTokens
from rmtrl.reward.rendering import Rendering
from rmtrl.reward.scoring import batch_outputs
from rmtrl.reward.shared_prefix import PrefixSharing

logger = get_logger(__name__)

Step = dict[str, torch.Tensor]
"""The pairs of one step over all processes; see [`step_columns`]."""


class RewardTrainer(TRLRewardTrainer):
    """
    Trainer for outcome-supervised reward models: [`trl.RewardTrainer`] with one import changed.

    Constructor, defaults, losses, batches and log keys are TRL's. What differs:

    - Metrics are exact per pair over all processes, a tie counts one half, and each evaluation set has its own prefix
      (`eval_math_accuracy`). A string column `domain` adds `eval_accuracy/<domain>`.
    - `predict()` takes raw data and returns `(N, 2)` rewards, chosen and rejected, one row a pair; label ids are the
      index of the chosen column, 0. A pair over `max_length` is a row of NaN.
    - Pairs over `max_length` are counted in `dropped_pairs` and reported; when none is left, it raises.
    - The head and the loss compute in float32 under bf16; FSDP2 hands the head its weights rounded to bf16.
    - An adapter's head is trained and saved whatever `task_type` says.
    - A pad token that equals the end token, and would hide it from the model, or that the model has no embedding of,
      is replaced.
    - A step that is not finite stops the training, and weights that are not finite are not saved.
    - Encoder-decoders train on rows with any number of end tokens.
    - Standard data trains with a tokenizer that has no end token.
    - A prompt that both sides share is computed once, with hardly any padding; see [`RewardConfig.shared_prefix`].
    - Every batch is checked by [`PreferencePairValidatorCollator`]; see [`RewardConfig.pair_validation`].

    After `evaluate()` or `predict()`, `pairs_` holds the [`PairRewards`] of that set's pairs within `max_length`, in
    order. Over several processes, sets without a length (streamed ones) count the rows that even out the last batch.

    What of this applies to a run is printed once. `compute_loss` and `prediction_step` are replaced, because TRL's
    hold forward, loss and metrics in one body; everything else calls `super()`.

    Args:
        See [`trl.RewardTrainer`]; `callbacks` may hold [`RewardCallback`]s.

    Raises:
        DataError: If no pair is left after dropping those over `max_length`.
        ModelError: If the head of an adapter model is neither trained nor saved, the model lacks the embedding of a
            token or position that a set needs, or `shared_prefix=True` and prompts cannot be shared exactly.

    Example:

    ```python
    >>> from rmtrl import RewardTrainer
    >>> trainer = RewardTrainer("outputs/tiny/sft", train_dataset=dataset)
    >>> trainer.train()
    ```
    """

    args: RewardConfig
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase

    @wraps(TRLRewardTrainer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "tokenizer" in kwargs:
            raise UsageError("got tokenizer=; the trainers of TRL call it processing_class=")
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        model, config = given["model"], given.get("args")
        if config is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            config = RewardConfig(f"{name.split('/')[-1]}-Reward")
        self._settings = config if isinstance(config, RewardConfig) else _with_our_defaults(config)
        self._objective = Objective(self._settings)
        self.dropped_pairs: dict[str, int] = {}
        self.dropped_ties: dict[str, int] = {}
        self._template_constants: dict[str, Any] = {}
        self._starts_twice = False
        self._checked: set[str] = set()
        self._differences: list[str] = []
        self._warned: set[str] = set()
        self._train_steps: list[Step] = []
        self._eval_steps: list[Step] = []
        self._start(given, config)
        self._check_and_print()

    # Set-up: what differs from TRL

    def _start(self, given: dict[str, Any], config: TRLRewardConfig) -> None:
        """Makes model, head and adapter, and lets TRL prepare the rest."""
        model, head, peft_config = given["model"], self._objective.head, given.get("peft_config")
        checkpoint.check_head(model, head)
        if peft_config is not None:
            if peft_config.task_type != "SEQ_CLS":
                self._differences.append(f'task_type {peft_config.task_type} of the adapter is read as "SEQ_CLS"')
            trusted = config.trust_remote_code
            given["peft_config"] = checkpoint.with_trained_head(peft_config, model, trust_remote_code=trusted)
        given["args"] = config
        if head.is_custom:
            given["model"] = checkpoint.with_custom_head(model, head, config, given.pop("quantization_config", None))
            given["args"] = copy.copy(config)
            given["args"].model_init_kwargs = None
        super().__init__(**given)
        self.args.model_init_kwargs = config.model_init_kwargs
        checkpoint.check_loaded(self.model, self.accelerator)
        if is_peft_model(self.model) and freezes_head(self.model):
            raise ModelError(
                "got a model whose score head is frozen, so its scores would stay random; create the adapter with "
                'task_type="SEQ_CLS", or hand `peft_config` to the trainer instead of a PeftModel'
            )
        compute_head_in_float32(self.model)
        keep_outputs(self.accelerator)
        self._differences += checkpoint.start_head(self.model, self._settings, head)
        for adapter in getattr(self.model, "peft_config", {}).values():
            # TRL lists a language model's head for saving with a cloned chat template, and there is none
            adapter.modules_to_save = [name for name in adapter.modules_to_save or () if name != "lm_head"] or None

    def _check_and_print(self) -> None:
        """Makes model, tokenizer, sets and collator fit each other, and prints what differs from TRL."""
        tokenizer, policy = self.processing_class, self._settings.pair_validation
        if replaced := checkpoint.replace_pad_token(self.model, tokenizer):
            self._differences.append(replaced)
            if hasattr(self.data_collator, "pad_token_id"):
                self.data_collator.pad_token_id = tokenizer.pad_token_id
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **sets}.items():
            self._check_set(dataset, name)
        self._sharing = PrefixSharing(
            self._settings.shared_prefix, model=self.model, args=self.args, accelerator=self.accelerator
        )
        collator = pairs.validating(self.data_collator, self._sharing.wrap, tokenizer, self.args.max_length, policy)
        if policy == "drop" and isinstance(self.train_dataset, Dataset):
            pairs.check_some_sound(self.train_dataset, collator)
        self.data_collator = pairs.LabelCollator(collator, self._settings, self._objective.head)
        if self.args.bf16 or self.args.fp16:
            self._differences.append("the score head and the loss compute in float32")
        for difference in self._differences if self.accelerator.is_main_process else ():
            print(f"rmtrl differs from TRL here: {difference}", file=sys.stderr)

    def _check_set(self, dataset: Any, name: str) -> None:
        """Says of a prepared set, before a step, what the model cannot take or a scorer of it will not."""
        if not isinstance(dataset, Dataset):
            return
        tokens = SetTokens.of(dataset, self.processing_class.bos_token_id)
        self._starts_twice |= name == "train" and tokens.start_twice > 0
        preparation.check_fits(
            base_model(self.model), tokens, name, self.processing_class, max_length=self.args.max_length,
            strict=self._settings.pair_validation == "raise",
        )  # fmt: skip

    @property
    def tie_parameter_(self) -> float | None:
        """The fitted η of Rao–Kupper or ν of Davidson; `None` under another loss."""
        return self._objective.tie_parameter_

    # Data

    def _prepare_dataset(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: TRLRewardConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        columns, objective = get_dataset_column_names(dataset), self._objective
        key = str(getattr(dataset, "_fingerprint", dataset_name))
        if key not in self._checked:  # a prepared set comes by again at every evaluation
            self._checked.add(key)
            self._differences += pairs.check_columns(self._settings, dataset, columns, dataset_name)
        if "preference" in columns:
            dataset, ties, notes = pairs.without_ties(dataset, self._settings, dataset_name)
            self._differences += notes
            if ties:
                self.dropped_ties[dataset_name] = ties
        if self._settings.use_weights and objective.mean_weight is None:
            objective.mean_weight = pairs.mean_weight(dataset, dataset_name)  # of the training set, which comes first
        return self._tokenized(dataset, processing_class, args, dataset_name)

    def _tokenized(
        self, dataset: Any, processing_class: PreTrainedTokenizerBase, args: TRLRewardConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Returns a set as token ids without the pairs that are too long, which are counted."""
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise DataError(f"the {dataset_name} set is empty; it needs at least one pair")
        columns = get_dataset_column_names(dataset)
        is_text = "chosen" in columns and "chosen_ids" not in columns
        if is_text:
            if dataset_name == "train":
                self._template_constants = preparation.constants_of(dataset)
            dataset = preparation.prepare_text(
                dataset, processing_class, constants=self._template_constants,
                starts=self._settings.pooling == "mean", num_proc=args.dataset_num_proc,
            )  # fmt: skip
        kept = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if is_text and hasattr(self, "_sharing"):  # else the model is not there yet, or the set was checked
            self._check_set(kept, dataset_name)
        if isinstance(kept, Dataset):
            dropped = preparation.count_too_long(dataset, kept, dataset_name, args.max_length)
            if is_text or dropped:  # a prepared set comes by again at every evaluation
                self.dropped_pairs[dataset_name] = dropped
            if args.train_sampling_strategy == "group_by_length" and args.length_column_name not in kept.column_names:
                kept = kept.add_column(args.length_column_name, SetTokens.of(kept).lengths.tolist())
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        ours = [*pairs.pair_columns(self._settings), self.args.length_column_name]
        self._signature_columns = list(dict.fromkeys([*columns, *ours]))  # type: ignore[assignment]

    # Steps that stay finite

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the loss of a micro-batch after its backward pass.

        Raises:
            ModelError: If it is not finite.
        """
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        broken = "margin" in inputs and not torch.isfinite(inputs["margin"]).all()
        check_finite(self._step, loss, f"{'the column margin, and so ' * broken}the loss is")
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16:  # there the step is left out, and the scale lowered
            check_finite(self._step, torch.as_tensor(norm), "the gradient norm is")
        return norm

    @property
    def _step(self) -> str:
        return f"step {self.state.global_step + 1}"

    # Loss and metrics

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """Returns the mean loss of the batch, by default Bradley–Terry with margin and centre term as in TRL."""
        rewards = self._sharing.rewards(model, inputs)
        outputs: Any = batch_outputs(model, inputs) if rewards is None else SequenceClassifierOutput(logits=rewards)
        scores = outputs.logits.float()
        sound = inputs["reason"] == 0 if self._drops else torch.ones_like(scores[::2, 0], dtype=torch.bool)
        chosen, rejected, losses = self._objective.losses(scores, inputs, sound=sound, training=model.training)
        self._record(pairs.step_columns(inputs, chosen.detach(), rejected.detach(), losses.detach()))
        # divided by all pairs, so that a pair weighs the same whatever stands beside it in its micro-batch
        loss = torch.where(sound, losses, 0.0).mean()
        return (loss, outputs) if return_outputs else loss

    @property
    def _drops(self) -> bool:
        return self._settings.pair_validation == "drop"

    def _record(self, columns: Step) -> None:
        """Gathers the pairs of a step over the processes; only a tie parameter waits for the device."""
        table = torch.stack([column.float() for column in columns.values()], dim=1)
        if not self.model.training:
            table = self.accelerator.gather_for_metrics(table)
            self._eval_steps.append(dict(zip(columns, table.unbind(1), strict=True)))
            return
        # in training the repeated rows of a last uneven batch are trained on, so they count
        step = dict(zip(columns, self.accelerator.gather(table).unbind(1), strict=True))
        self._train_steps.append(step)
        if self._objective.fits_ties:
            last = self.accelerator.sync_gradients
            self._objective.fit_ties(step, step=self.state.global_step, last=last)

    def _reward_logs(self, steps: Sequence[Step], prefix: str, domains: Sequence[str] = ()) -> dict[str, float]:
        """Returns the figures of the pairs of some steps; `pairs_` holds them afterwards."""
        self.pairs_ = found = pairs.pair_rewards(steps)
        logs = invalid_logs(found, prefix)
        for key in logs.keys() - self._warned:  # once of each kind
            self._warned.add(key)
            logger.warning(
                f"{logs[key]:.0f} pairs since the last log or of this evaluation set are {key.split('/')[-1]} "
                f"(pair_validation={self._settings.pair_validation!r}); the log key {key} counts them"
            )
        found = found.where(found.reason == 0) if self._drops else found
        logs |= pair_logs(found, prefix, domains)
        for callback in self.callback_handler.callbacks if len(decided := found.decided) else ():
            if isinstance(callback, RewardCallback):
                scalars = callback.on_rewards(self.args, self.state, self.control, pairs=decided, prefix=prefix)
                logs |= {f"{prefix}{key}": value for key, value in scalars.items()}
        return logs

    def _num_tokens(self) -> float:
        """Returns the tokens trained on so far."""
        logged = (entry["num_tokens"] for entry in reversed(self.state.log_history) if "num_tokens" in entry)
        window = sum(step["tokens"].cpu().double().sum().item() for step in self._train_steps)
        return float(next(logged, 0.0) + window)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the exact metrics of the pairs trained on since the last log; evaluation brings its own."""
        if self.model.training and self._train_steps:
            logs["num_tokens"] = self._num_tokens()
            window, self._train_steps = self._train_steps, []
            logs |= self._reward_logs(window, prefix="")
        super().log(logs, start_time)

    # Evaluation

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """Keeps the rows in order: grouping them by length, as the host would, would permute predictions."""
        return SequentialSampler(eval_dataset) if isinstance(eval_dataset, Dataset) else None

    def evaluation_loop(
        self, dataloader: torch.utils.data.DataLoader[Any], description: str, prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:  # fmt: skip
        """Returns the host's output with the metrics of exactly the pairs of this set, under this set's prefix."""
        self._eval_steps = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        steps, self._eval_steps = self._eval_steps, []
        domain = (getattr(dataloader.dataset, "features", None) or {}).get("domain_id")
        if steps and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_num_tokens"] = self._num_tokens()
            names = domain.names if isinstance(domain, ClassLabel) else ()
            output.metrics.update(self._reward_logs(steps, prefix=f"{metric_key_prefix}_", domains=names))
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor | Any], prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:  # fmt: skip
        """Returns the loss, the rewards `(B, 2)` of chosen and rejected, and label ids `(B,)`, all 0."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        rewards = torch.stack(self._objective.head.reward(outputs.logits.detach().float()).chunk(2), dim=1)
        return loss.detach(), rewards, torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Returns rewards `(N, 2)` in the order of `test_dataset`, raw or tokenised, and its metrics."""
        if not isinstance(test_dataset, Dataset):
            raise DataError(f"got {type(test_dataset).__name__}; predict() needs a Dataset, whose rows have an order")
        unlimited = copy.copy(self.args)
        unlimited.max_length = None
        dataset: Any = self._tokenized(test_dataset, self.processing_class, unlimited, metric_key_prefix)
        limit = self.args.max_length or sys.maxsize
        fits = SetTokens.of(dataset).lengths <= limit
        if not fits.any():
            raise DataError(f"all {len(fits):,} pairs are longer than max_length = {limit} tokens; raise max_length")
        output = super().predict(dataset.select(np.flatnonzero(fits)), ignore_keys, metric_key_prefix)
        if fits.all():
            return output
        logger.warning(
            f"{(~fits).sum():,} of {len(fits):,} pairs are over max_length = {limit}: their rewards are NaN"
        )
        self.dropped_pairs[metric_key_prefix] = int((~fits).sum())
        rewards: NDArray[np.float32] = np.full((len(fits), 2), np.nan, dtype=np.float32)
        rewards[fits] = output.predictions
        return output._replace(predictions=rewards, label_ids=np.zeros(len(fits), dtype=np.int64))

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model so that it can be loaded with `from_pretrained`, and `rmtrl.json` beside it.

        Raises:
            ModelError: If its weights are not finite; what stood in the folder is left as it was.
        """
        check_weights(f"after step {self.state.global_step}", self.model)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # every process comes here
            return
        variables = {"start_twice": self._starts_twice, **self._template_constants}
        checkpoint.write_record(
            output_dir or str(self.args.output_dir), self._objective.head, self.tie_parameter_,
            Rendering.of(self.processing_class, max_length=self.args.max_length, **variables),
            chosen_by=self.args.metric_for_best_model if self.args.load_best_model_at_end else None,
        )  # fmt: skip

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes TRL's draft of a card; once training is over, one of ours, with figures, is left as it is."""
        card = Path(str(self.args.output_dir)) / "README.md"
        if self.is_in_train or not (card.is_file() and CARD_MARK in card.read_text(encoding="utf-8")):
            super().create_model_card(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._objective.tie_parameter_ = checkpoint.stored_record(resume_from_checkpoint).get("tie_parameter")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if best is not None and self.tie_parameter_ is not None:
            self._objective.tie_parameter_ = checkpoint.stored_record(best).get("tie_parameter")


def _with_our_defaults(args: TRLRewardConfig) -> RewardConfig:
    """Returns our configuration of TRL's."""
    return RewardConfig(
        str(args.output_dir), center_rewards_coefficient=args.center_rewards_coefficient, seed=args.seed
    )
