"""TRL's `RewardTrainer` with exact metrics, counted rows and a float32 head."""

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import ClassLabel, Dataset, IterableDataset
from numpy.typing import NDArray
from peft import PeftConfig, TaskType
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput
from trl import RewardConfig as TRLRewardConfig
from trl import RewardTrainer as TRLRewardTrainer
from trl.data_utils import get_dataset_column_names

from rmtrl.errors import DataError, ModelError, RenderingError
from rmtrl.io import write_json
from rmtrl.metrics import reward_metrics
from rmtrl.models import base_model, n_embeddings
from rmtrl.reward.callbacks import RewardCallback
from rmtrl.reward.checkpoint import stored_record
from rmtrl.reward.checks import SetTokens, check_finite, check_fits, check_weights
from rmtrl.reward.collator import REASONS, PreferencePairValidatorCollator
from rmtrl.reward.columns import COLUMNS, check_columns, check_values, mean_weight, without_ties
from rmtrl.reward.config import RewardConfig
from rmtrl.reward.heads import compute_head_in_float32, has_trained_head, head_modules, pool_over, takes_gradients
from rmtrl.reward.labels import BATCH_COLUMNS, LabelCollator
from rmtrl.reward.objective import Objective
from rmtrl.reward.preparation import constants_of, count_too_long, longest_sides, prepare_text
from rmtrl.reward.rendering import Rendering, choose_pad_token, starts_twice
from rmtrl.reward.shared_prefix import PrefixSharing
from rmtrl.reward.starting import check_head, start_head, with_custom_head
from rmtrl.types import PairRewards

logger = get_logger(__name__)

_OUR_COLUMNS = ("reason", "length_tokens", "domain_id", "rows", "ends", "margin", *BATCH_COLUMNS)


class RewardTrainer(TRLRewardTrainer):
    """
    Trainer for outcome-supervised reward models: [`trl.RewardTrainer`] with one import changed.

    Constructor, defaults, losses, batches and log keys are TRL's. What differs:

    - Metrics are exact per pair over all processes, a tie counts one half, and each evaluation set has its own prefix
      (`eval_math_accuracy`). A string column `domain` adds `eval_accuracy/<domain>`.
    - `predict()` takes raw data and returns `(N, 2)` rewards, chosen and rejected, one row a pair; label ids are the
      index of the chosen column, 0. A pair over `max_length` is a row of NaN.
    - Pairs over `max_length` are counted in `dropped_pairs` and reported; when none is left, it raises.
    - The head and the loss compute in float32 under bf16.
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
    >>> trainer = RewardTrainer(model="Qwen/Qwen3-0.6B", train_dataset=dataset)
    >>> trainer.train()
    ```
    """

    args: RewardConfig
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: "str | PreTrainedModel",
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        quantization_config: "BitsAndBytesConfig | None" = None,
        peft_config: "PeftConfig | None" = None,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RewardConfig(f"{name.split('/')[-1]}-Reward")
        self.dropped_pairs: dict[str, int] = {}
        self.dropped_ties: dict[str, int] = {}
        self._objective = Objective(args if isinstance(args, RewardConfig) else _with_our_defaults(args))
        self._template_constants: dict[str, Any] = {}
        self._starts_twice = False
        self._checked: set[str] = set()
        self._differences: list[str] = []
        self._warned: set[str] = set()
        self._train_rows: list[torch.Tensor] = []
        self._eval_rows: list[torch.Tensor] = []
        given = args
        check_head(model, self._objective.head)
        if self._objective.head.is_custom:
            model, args = with_custom_head(model, self._objective.head, args, quantization_config), copy.copy(args)
            args.model_init_kwargs = quantization_config = None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=self._with_trained_head(peft_config, model, args.trust_remote_code),
        )
        if is_peft_model(self.model) and takes_gradients(self.model) and not has_trained_head(self.model):
            raise ModelError(
                "got a model whose score head is frozen, so its scores would stay random; create the adapter with "
                'task_type="SEQ_CLS", or hand `peft_config` to the trainer instead of a PeftModel'
            )
        self.args.model_init_kwargs = given.model_init_kwargs
        compute_head_in_float32(self.model)
        self._differences += start_head(self.model, self._objective.settings, self._objective.head)
        self._forget_lm_head()
        self._replace_pad_token()
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for name, dataset in {"train": self.train_dataset, **sets}.items():
            self._check_set(dataset, name)
        self._sharing = PrefixSharing(
            self.args.shared_prefix if isinstance(self.args, RewardConfig) else "auto",
            model=self.model,
            args=self.args,
            accelerator=self.accelerator,
        )
        self._validate_batches()
        self._print_differences()

    # Set-up: what differs from TRL

    @property
    def tie_parameter_(self) -> float | None:
        """The fitted η of Rao–Kupper or ν of Davidson; `None` under another loss."""
        return self._objective.tie_parameter_

    def _with_trained_head(
        self, peft_config: PeftConfig | None, model: "str | PreTrainedModel", trust_remote_code: bool
    ) -> PeftConfig | None:
        if peft_config is None:
            return None
        if peft_config.task_type != TaskType.SEQ_CLS:
            self._differences.append(f'task_type {peft_config.task_type} of the adapter is read as "SEQ_CLS"')
        adapter: Any = copy.copy(peft_config)
        adapter.task_type = TaskType.SEQ_CLS  # this is what makes PEFT train and save `score` or `classifier`
        given = getattr(adapter, "modules_to_save", None) or []
        more = head_modules(model, trust_remote_code=trust_remote_code) - {"score", "classifier"}
        if more - set(given):
            adapter.modules_to_save = [*given, *sorted(more - set(given))]
        return adapter

    def _forget_lm_head(self) -> None:
        """Removes the language-model head that TRL lists for saving with a cloned chat template; there is none."""
        for config in getattr(self.model, "peft_config", {}).values():
            config.modules_to_save = [name for name in config.modules_to_save or () if name != "lm_head"] or None

    def _replace_pad_token(self) -> None:
        tokenizer, n = self.processing_class, n_embeddings(self.model)
        why = f"the model has no embedding of {tokenizer.pad_token!r}"
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            why = f"it was the end token {tokenizer.eos_token!r}, which the model then could not see"
        elif int(tokenizer.pad_token_id) < n:
            return
        tokenizer.pad_token = choose_pad_token(tokenizer, below=n)
        if len(tokenizer) > n and int(tokenizer.pad_token_id) >= n:
            self.model.resize_token_embeddings(len(tokenizer))
        self.model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        if hasattr(self.data_collator, "pad_token_id"):
            self.data_collator.pad_token_id = tokenizer.pad_token_id
        self._differences.append(f"pad token is {tokenizer.pad_token!r}: {why}")

    def _check_set(self, dataset: Any, name: str) -> None:
        """Says of a prepared set, before a step, what the model cannot take or a scorer of it will not."""
        if not isinstance(dataset, Dataset):
            return
        tokenizer = self.processing_class
        tokens = SetTokens.of(dataset, tokenizer.bos_token_id)
        said = check_fits(base_model(self.model), tokens, name, tokenizer, max_length=self.args.max_length)
        if said:
            logger.warning(said)
        if tokens.start_twice:
            self._starts_twice |= name == "train"
            said = starts_twice(tokenizer, f"{tokens.start_twice:,} pairs of the {name} set start")
            if self._pair_validation == "raise":
                raise RenderingError(said)
            logger.warning(said)

    def _validate_batches(self) -> None:
        if not isinstance(self.data_collator, PreferencePairValidatorCollator):
            tokenizer = self.processing_class
            self.data_collator = PreferencePairValidatorCollator(
                self._sharing.wrap(self.data_collator),
                policy=self._pair_validation,
                bos_token_id=tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id,
                eos_token_id=tokenizer.eos_token_id,
                max_length=self.args.max_length,
            )
        self.data_collator = LabelCollator(self.data_collator, self._objective.settings, self._objective.head)

    @property
    def _pair_validation(self) -> str:
        return self.args.pair_validation if isinstance(self.args, RewardConfig) else "warn"

    @property
    def _drops(self) -> bool:
        return self._pair_validation == "drop"

    def _print_differences(self) -> None:
        if self.args.bf16 or self.args.fp16:
            self._differences.append("the score head and the loss compute in float32")
        for difference in self._differences if self.accelerator.is_main_process else ():
            print(f"rmtrl differs from TRL here: {difference}", file=sys.stderr)

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: TRLRewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        columns = get_dataset_column_names(dataset)
        self._check_columns(dataset, columns, dataset_name)
        if "preference" in columns:
            dataset, ties, notes = without_ties(dataset, self._objective.settings, dataset_name)
            self._differences += notes
            if ties:
                self.dropped_ties[dataset_name] = ties
        objective = self._objective
        if objective.settings.use_weights and objective.mean_weight is None and isinstance(dataset, Dataset):
            objective.mean_weight = mean_weight(dataset, dataset_name)  # of the training set, which comes first
        return self._tokenized(dataset, processing_class, args, dataset_name)

    def _tokenized(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: TRLRewardConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise DataError(f"the {dataset_name} set is empty; it needs at least one pair")
        columns = get_dataset_column_names(dataset)
        is_text = "chosen" in columns and "chosen_ids" not in columns
        if is_text:
            if dataset_name == "train":
                self._template_constants = constants_of(dataset)
            dataset = prepare_text(
                dataset, processing_class, constants=self._template_constants,
                starts=self._objective.head.pooling == "mean", num_proc=args.dataset_num_proc,
            )  # fmt: skip
        kept = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if is_text and hasattr(self, "_sharing"):  # else the model is not there yet, or the set was checked
            self._check_set(kept, dataset_name)
        if isinstance(kept, Dataset):
            dropped = count_too_long(dataset, kept, dataset_name, args.max_length)
            if is_text or dropped:  # a prepared set comes by again at every evaluation
                self.dropped_pairs[dataset_name] = dropped
            if args.train_sampling_strategy == "group_by_length" and args.length_column_name not in kept.column_names:
                kept = kept.add_column(args.length_column_name, longest_sides(kept))
        return kept

    def _check_columns(self, dataset: Dataset | IterableDataset, columns: list[str], dataset_name: str) -> None:
        key = str(getattr(dataset, "_fingerprint", dataset_name))
        if key in self._checked:  # a prepared set comes by again at every evaluation
            return
        self._checked.add(key)
        settings, whole = self._objective.settings, isinstance(dataset, Dataset)
        self._differences += check_columns(settings, columns, dataset_name, streamed=not whole)
        if isinstance(dataset, Dataset):
            check_values(dataset, settings, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        extra = [*COLUMNS, "domain_id", "_empty_response", "_own_prompts", self.args.length_column_name]
        columns: Any = self._signature_columns
        self._signature_columns = list(dict.fromkeys([*columns, *extra]))  # type: ignore[assignment]

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
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the mean loss of the batch, by default Bradley–Terry with margin and centre term as in TRL."""
        outputs = self._forward(model, inputs)
        scores = outputs.logits.float()
        sound = inputs["reason"] == 0 if self._drops else torch.ones_like(scores[::2, 0], dtype=torch.bool)
        chosen, rejected, losses = self._objective.losses(scores, inputs, sound=sound, training=model.training)
        self._record(inputs, chosen.detach(), rejected.detach(), losses.detach())
        # divided by all pairs, so that a pair weighs the same whatever stands beside it in its micro-batch
        loss = torch.where(sound, losses, 0.0).mean()
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        rewards = self._sharing.rewards(model, inputs)
        if rewards is not None:
            return SequenceClassifierOutput(logits=rewards)
        if base_model(self.model).config.is_encoder_decoder:
            return self._forward_by_ends(model, inputs)
        if "starts" in inputs:
            positions = torch.arange(inputs["input_ids"].shape[1], device=inputs["starts"].device)
            pool_over(model, inputs["attention_mask"].bool() & (positions >= inputs["starts"][:, None]))
        return model(**{key: value for key, value in inputs.items() if key not in _OUR_COLUMNS}, use_cache=False)

    def _forward_by_ends(self, model: nn.Module, inputs: dict[str, Any]) -> SequenceClassifierOutput:
        """An encoder-decoder's pooling wants as many end tokens in every row of a pass."""
        counts = (inputs["input_ids"] == base_model(self.model).config.eos_token_id).sum(dim=1)
        groups = [torch.nonzero(counts == n).flatten() for n in counts.unique()]
        passes = [{key: inputs[key][rows] for key in ("input_ids", "attention_mask")} for rows in groups]
        logits = torch.cat([model(**own, use_cache=False).logits for own in passes])
        return SequenceClassifierOutput(logits=logits[torch.cat(groups).argsort()])

    def _record(
        self, inputs: dict[str, Any], chosen: torch.Tensor, rejected: torch.Tensor, losses: torch.Tensor
    ) -> None:
        """Gathers one float32 row a pair over the processes; only a tie parameter waits for the device."""
        tokens = inputs["attention_mask"].sum(dim=1).view(2, -1).sum(dim=0)
        none = torch.zeros_like(tokens)
        lengths = inputs.get("length_tokens", torch.stack([none, none], dim=1))
        columns = [chosen, rejected, losses, lengths[:, 0], lengths[:, 1], inputs.get("reason", none)]
        columns += [inputs.get("domain_id", none - 1), inputs.get("label", none + 1), inputs.get("weight", none + 1)]
        columns.append(tokens)
        rows = torch.stack([column.float() for column in columns], dim=1)
        if self.model.training:
            # in training the repeated rows of a last uneven batch are trained on, so they count
            gathered = self.accelerator.gather(rows)
            self._train_rows.append(gathered)
            if self._objective.fits_ties:
                weight = torch.where(gathered[:, 5] == 0, gathered[:, 8], 0.0) if self._drops else gathered[:, 8]
                self._objective.fit_ties(
                    torch.stack([gathered[:, 0] - gathered[:, 1], gathered[:, 7], weight], dim=1),
                    step=self.state.global_step,
                    last=self.accelerator.sync_gradients,
                )
        else:
            self._eval_rows.append(self.accelerator.gather_for_metrics(rows))

    def _reward_logs(self, rows: Sequence[torch.Tensor], prefix: str, domains: Sequence[str] = ()) -> dict[str, float]:
        table = torch.cat(list(rows)).cpu().double().numpy()
        self.pairs_ = pairs = _pair_rewards(table)
        logs = {
            f"{prefix}invalid_pairs/{REASONS[code - 1]}": float((pairs.reason == code).sum())
            for code in np.unique(pairs.reason[pairs.reason > 0])
        }
        self._warn_of_invalid(logs)
        if self._drops:
            pairs = _pair_rewards(table[pairs.reason == 0])
        if len(pairs) == 0:
            return logs
        decided = pairs.decided
        if len(decided) < len(pairs):
            logs[f"{prefix}ties"] = float(len(pairs) - len(decided))
        if len(decided):
            logs |= {f"{prefix}{key}": value for key, value in reward_metrics(decided, domains).items()}
        if prefix:  # in training, the host logs the loss it stepped on
            logs[f"{prefix}loss"] = float(pairs.loss.mean())
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RewardCallback) and len(decided):
                scalars = callback.on_rewards(self.args, self.state, self.control, pairs=decided, prefix=prefix)
                logs |= {f"{prefix}{key}": value for key, value in scalars.items()}
        return logs

    def _warn_of_invalid(self, logs: dict[str, float]) -> None:
        for key in logs.keys() - self._warned:
            self._warned.add(key)
            logger.warning(
                f"{logs[key]:.0f} pairs since the last log or of this evaluation set are {key.split('/')[-1]} "
                f"(pair_validation={self._pair_validation!r}); the log key {key} counts them"
            )

    def _num_tokens(self) -> float:
        logged = (entry["num_tokens"] for entry in reversed(self.state.log_history) if "num_tokens" in entry)
        return float(next(logged, 0.0) + sum(rows[:, -1].cpu().double().sum().item() for rows in self._train_rows))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the exact metrics of the pairs trained on since the last log; evaluation brings its own."""
        if self.model.training and self._train_rows:
            logs["num_tokens"] = self._num_tokens()
            window, self._train_rows = self._train_rows, []
            logs |= self._reward_logs(window, prefix="")
        super().log(logs, start_time)

    # Evaluation

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """Keeps the rows in order: grouping them by length, as the host would, would permute predictions."""
        return SequentialSampler(eval_dataset) if isinstance(eval_dataset, Dataset) else None

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns the host's output with the metrics of exactly the pairs of this set, under this set's prefix."""
        self._eval_rows = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        rows, self._eval_rows = self._eval_rows, []
        domain = getattr(dataloader.dataset, "features", None) or {}
        names = domain["domain_id"].names if isinstance(domain.get("domain_id"), ClassLabel) else ()
        if rows and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_num_tokens"] = self._num_tokens()
            output.metrics.update(self._reward_logs(rows, prefix=f"{metric_key_prefix}_", domains=names))
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
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
        args = _without_max_length(self.args)
        dataset = self._tokenized(test_dataset, self.processing_class, args, metric_key_prefix)
        limit = self.args.max_length or sys.maxsize
        fits = np.array(longest_sides(dataset)) <= limit
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
        rendering = Rendering.of(
            self.processing_class,
            max_length=self.args.max_length,
            start_twice=self._starts_twice,
            **self._template_constants,
        )
        folder = Path(output_dir or str(self.args.output_dir))
        record: dict[str, Any] = {"schema": "rmtrl/checkpoint/1", "rendering": rendering.as_dict()}
        record |= {"head": self._objective.head.as_dict(), "tie_parameter": self.tie_parameter_}
        if self.args.load_best_model_at_end:  # an evaluator must know what the checkpoint was chosen on
            record["config"] = {"metric_for_best_model": self.args.metric_for_best_model}
        write_json(folder / "rmtrl.json", record)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._objective.tie_parameter_ = stored_record(resume_from_checkpoint).get("tie_parameter")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if best is not None and self.tie_parameter_ is not None:
            self._objective.tie_parameter_ = stored_record(best).get("tie_parameter")


def _with_our_defaults(args: TRLRewardConfig) -> RewardConfig:
    return RewardConfig(
        str(args.output_dir), center_rewards_coefficient=args.center_rewards_coefficient, seed=args.seed
    )


def _without_max_length(args: TRLRewardConfig) -> TRLRewardConfig:
    args = copy.copy(args)
    args.max_length = None
    return args


def _pair_rewards(table: NDArray[np.float64]) -> PairRewards:
    chosen, rejected, loss, *counts = table.T[:7]
    chosen_length, rejected_length, reason, domain = (column.astype(np.int64) for column in counts)
    return PairRewards(chosen, rejected, loss, chosen_length, rejected_length, reason, domain, table[:, 7])
