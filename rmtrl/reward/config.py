"""Configuration of the reward trainer: TRL's `RewardConfig` with the fields that rmtrl adds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig as TRLRewardConfig

from rmtrl.errors import UsageError

LossType = Literal["bradley_terry", "rao_kupper", "davidson", "mse", "bce", "attributes"]
TIE_LOSSES = ("rao_kupper", "davidson")
"""Losses that give a tie a probability of its own."""

Ranges = Mapping[str, tuple[Callable[[Any], bool], str]]
"""What settings must be, in words and as a test, and the names of those settings."""

_RANGES: Ranges = {
    "from 0 to below ½": (lambda value: 0 <= value < 0.5, "label_smoothing"),
    "from 0 to below 1": (lambda value: 0 <= value < 1, "head_dropout"),
    "above 0": (lambda value: value > 0, "tie_parameter"),
    "0 or more": (lambda value: value >= 0, "margin_per_rating trainable_layers"),
    "1 or more": (lambda value: value >= 1, "n_heads"),
}


@dataclass
class RewardConfig(TRLRewardConfig):
    r"""
    Configuration class for [`RewardTrainer`].

    Only the parameters that rmtrl adds are listed; all others, and their defaults, are those of
    [`~trl.RewardConfig`]. On a machine without accelerator it constructs with `use_cpu=True`, and on a GPU that has
    no bf16 with `bf16=False`, where TRL's raises.

    Parameters:
        > Parameters that control the data preprocessing

        pair_validation (`str`, *optional*, defaults to `"warn"`):
            What the validator does with a pair that cannot teach a preference (see
            [`PreferencePairValidatorCollator`]): `"warn"` counts it and trains on it as TRL does, `"drop"` gives it
            weight 0 in the mean over its batch, `"raise"` stops.
        ties (`str`, *optional*, defaults to `"drop"`):
            What becomes of pairs whose column `preference` is exactly ½ where the loss has no place for them (plain
            Bradley–Terry): `"drop"` leaves them out and counts them, `"raise"` stops.

        > Parameters that control the model

        head (`str`, *optional*, defaults to `"linear"`):
            `"linear"`, or `"mlp"`: one hidden layer. See [`~rmtrl.reward.heads.Head`] for what other tools make of it.
        pooling (`str`, *optional*, defaults to `"last"`):
            What the head reads: the `"last"` token, or the `"mean"` over the last message's tokens (all tokens, where
            the data is text).
        head_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout before the head's last layer, which `disable_dropout` leaves on.
        head_init (`str`, *optional*, defaults to `"model"`):
            `"model"` leaves the head as it was loaded or made; `"normal"` draws its last layer from N(0, 1/(d + 1))
            and sets its bias to 0 (Stiennon et al. 2020, https://huggingface.co/papers/2009.01325).
        n_heads (`int`, *optional*, defaults to `1`):
            Heads on one backbone, each trained on its own Bayesian bootstrap of the pairs; their spread is an
            uncertainty, their mean the reward.
        trainable_layers (`int`, *optional*):
            Trains the last so many layers of the backbone, and the head; all layers where absent, the head alone at 0.

        > Parameters that control the training

        loss_type (`str`, *optional*, defaults to `"bradley_terry"`):
            One of `"bradley_terry"`, `"rao_kupper"` and `"davidson"` (both know ties), `"mse"` (1, 0, and ½ for a
            tie), `"bce"`, and `"attributes"` (one output a criterion, regressed on the columns `chosen_scores` and
            `rejected_scores`); see [`rmtrl.reward.losses`].
        label_smoothing (`float`, *optional*, defaults to `0.0`):
            Share of labels taken to be wrong.
        soft_labels (`bool`, *optional*, defaults to `False`):
            Whether the column `preference`, the share of votes for chosen, is the label; else it only tells ties.
        use_weights (`bool`, *optional*, defaults to `False`):
            Whether the column `weight` weighs each pair's loss, with mean weight 1 over the training set.
        margin_per_rating (`float`, *optional*):
            Takes the margin of Bradley–Terry from the column `rating_gap`, so much for a point: 1 with gaps of 0 to 3
            is Llama 2's large margin, ⅓ its small one.
        tie_parameter (`float`, *optional*):
            η of Rao–Kupper or ν of Davidson; fitted to the pairs where absent.
        attribute_weights (`dict[str, float]`, *optional*):
            Weight of each criterion in the reward, from 0, with sum 1; required by `"attributes"`. As JSON in a flag.
        shared_prefix (`bool` or `str`, *optional*, defaults to `"auto"`):
            Whether the tokens that both sides of a pair start with are computed once and rows are packed with hardly
            any padding; pairs, loss and gradient of a step are TRL's. `"auto"` does so where a probe on the first
            batch shows it to be exact and else warns once with the reason, `True` raises there, `False` computes
            padded batches as TRL does.

    Example:

    ```python
    >>> from rmtrl import RewardConfig
    >>> RewardConfig("outputs/rm", pair_validation="drop").pair_validation
    'drop'
    ```
    """

    pair_validation: Literal["warn", "drop", "raise"] = field(
        default="warn",
        metadata={"help": "What to do with pairs that cannot teach a preference: `warn` (count, train on them as TRL "
                          "does), `drop` (weight 0) or `raise`."},
    )  # fmt: skip
    ties: Literal["drop", "raise"] = field(
        default="drop", metadata={"help": "What to do with ties (`preference` ½) that the loss has no place for."}
    )
    loss_type: LossType = field(default="bradley_terry", metadata={"help": "The loss of a pair."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of labels taken to be wrong, below ½."})
    soft_labels: bool = field(
        default=False, metadata={"help": "Whether `preference`, the share of votes for chosen, is the label."}
    )
    use_weights: bool = field(default=False, metadata={"help": "Whether `weight` weighs each pair's loss."})
    margin_per_rating: float | None = field(
        default=None, metadata={"help": "Margin for each point of `rating_gap`; Llama 2: 1 (large) or ⅓ (small)."}
    )
    tie_parameter: float | None = field(
        default=None, metadata={"help": "η of rao_kupper or ν of davidson; fitted to the pairs where absent."}
    )
    attribute_weights: dict[str, float] | str | None = field(
        default=None, metadata={"help": "Weight of each criterion in the reward, as JSON: '{\"usefulness\": 1}'."}
    )
    head: Literal["linear", "mlp"] = field(default="linear", metadata={"help": "Kind of the score head."})
    pooling: Literal["last", "mean"] = field(
        default="last", metadata={"help": "What the head reads: the last token or the mean."}
    )
    head_dropout: float = field(default=0.0, metadata={"help": "Dropout of the head; `disable_dropout` keeps it."})
    head_init: Literal["model", "normal"] = field(
        default="model", metadata={"help": "How the head starts: as loaded, or N(0, 1/(d + 1))."}
    )
    n_heads: int = field(default=1, metadata={"help": "Heads on one backbone; their spread is an uncertainty."})
    trainable_layers: int | None = field(
        default=None, metadata={"help": "Train only the last so many layers and the head; all where absent."}
    )
    shared_prefix: Literal["auto", True, False] = field(
        default="auto",
        metadata={"help": "Whether the tokens that both sides of a pair start with are computed once, without "
                          "padding: `auto` (where that is exact), `True` (else raise) or `False` (as in TRL)."},
    )  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.attribute_weights, str):
            self.attribute_weights = _from_json(self.attribute_weights)
        self._check()
        set_defaults(self)
        super().__post_init__()

    @property
    def knows_ties(self) -> bool:
        """Whether the loss has a place for pairs whose `preference` is ½."""
        return self.soft_labels or self.loss_type != "bradley_terry"

    def _check(self) -> None:
        """Raises the first setting that cannot be used."""
        for name, kind in RewardConfig.__annotations__.items():
            choices = get_args(kind) if str(kind).startswith("typing.Literal") else ()
            if choices and getattr(self, name) not in choices:
                wanted = ", ".join(map(repr, choices))
                raise ValueError(f"`{name}` must be one of {wanted}, got {getattr(self, name)!r}")
        check_ranges(self, _RANGES)
        if self.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` smooths a language model's tokens; set `label_smoothing`")
        plain = self.loss_type == "bradley_terry"
        if (self.label_smoothing or self.margin_per_rating is not None) and not plain:
            raise ValueError(
                f"`label_smoothing` and `margin_per_rating` belong to bradley_terry, not {self.loss_type}"
            )
        if self.tie_parameter is not None and self.loss_type not in TIE_LOSSES:
            raise ValueError(f"`tie_parameter` belongs to {' and '.join(TIE_LOSSES)}, not to {self.loss_type}")
        self._check_attributes()

    def _check_attributes(self) -> None:
        weights = self.attribute_weights
        if (self.loss_type == "attributes") != (weights is not None):
            raise ValueError("`loss_type='attributes'` and `attribute_weights` go together; set both or neither")
        if weights is None:
            return
        if not isinstance(weights, dict) or not weights or not all(w >= 0 for w in weights.values()):
            raise ValueError(f"`attribute_weights` must give each criterion a weight of 0 or more, got {weights!r}")
        if abs(sum(weights.values()) - 1) > 1e-6:
            raise ValueError(f"`attribute_weights` must sum to 1, got {sum(weights.values()):g}")
        if self.n_heads > 1:
            raise ValueError("`n_heads` above 1 and `loss_type='attributes'` cannot go together")


def check_ranges(settings: Any, ranges: Ranges) -> None:
    """Raises `UsageError` for the first setting outside its range; `None` is in all."""
    for wanted, (holds, names) in ranges.items():
        for name in names.split():
            if (value := getattr(settings, name)) is not None and not holds(value):
                raise UsageError(f"`{name}` must be {wanted}, got {value!r}")


def set_defaults(args: TrainingArguments) -> None:
    """Sets `use_cpu` where there is no accelerator, else bf16 where it is not decided and the GPU has it.

    TRL's own default, `gradient_checkpointing`, goes by its new name where transformers has one, and is not warned of.
    """
    if vars(args).get("activation_checkpointing", True) is None:
        args.activation_checkpointing = args.gradient_checkpointing
    if not torch.accelerator.is_available():
        args.use_cpu = True
    elif args.bf16 is None and not args.use_cpu and torch.cuda.is_available():
        args.bf16 = not args.fp16 and is_torch_bf16_gpu_available()


def _from_json(text: str) -> dict[str, float]:
    try:
        return {str(name): float(weight) for name, weight in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`attribute_weights` must be JSON such as '{{\"usefulness\": 1}}', got {text!r}") from error
