"""Scorers that know how far their scores can be trusted, the pessimistic rewards made from that, and ensembles."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights
from torch import nn

from rmtrl.errors import DataError, ModelError, UsageError
from rmtrl.models import AdapterSwitch, base_model
from rmtrl.reward.checkpoint import stored_head, stored_rendering
from rmtrl.reward.heads import Float32Linear, is_active, last_layers
from rmtrl.reward.scorer import RewardScorer
from rmtrl.types import Conversation, Scorer

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

AGGREGATIONS = ("mean", "min", "lower", "variance")


@dataclass(frozen=True)
class ScoreDistribution:
    """Scores of N conversations, or margins of N pairs, with their uncertainty.

    Args:
        mean (`(N,)` float64): The score.
        std (`(N,)` float64): Its standard deviation, in the units of the score.
        k (`float`): Standard deviations from the mean to either bound.
    """

    mean: Floats
    std: Floats
    k: float = 1.0

    @property
    def lower(self) -> Floats:
        """Mean − k·std, `(N,)`."""
        return self.mean - self.k * self.std

    @property
    def upper(self) -> Floats:
        """Mean + k·std, `(N,)`."""
        return self.mean + self.k * self.std


class UncertainScorer(Scorer):
    """
    A scorer whose scores come with a spread, which may lower them.

    A policy seeks out the answers that its reward model overrates. Where the model is unsure it overrates more, so a
    reward lowered by the spread is harder to exploit (Coste et al. 2024, https://huggingface.co/papers/2310.02743);
    what all members get wrong in the same way it does not see (Eisenstein et al. 2024,
    https://huggingface.co/papers/2312.09244). Subclasses define `distribution` and `margins`.

    Args:
        aggregation (`str`, *optional*, defaults to `"mean"`):
            What `score` returns: `"mean"`; `"min"`, the lowest member; `"lower"`, mean − k·std; `"variance"`,
            mean − λ·std².
        k (`float`, *optional*, defaults to `1.0`):
            Standard deviations from the mean to a bound; 1.96 is 95 % of a normal distribution.
        variance_weight (`float`, *optional*, defaults to `0.5`):
            λ of `"variance"`. It has the unit 1/score: double the scores and λ must be halved.

    Raises:
        UsageError: If a setting cannot be used, or `"min"` is asked of a scorer without members.
    """

    _has_members = False
    scorers: Sequence[Scorer] = ()
    """What it scores with."""

    def __init__(self, *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5) -> None:
        if aggregation not in AGGREGATIONS:
            raise UsageError(f"got aggregation={aggregation!r}; wanted one of {', '.join(map(repr, AGGREGATIONS))}")
        if aggregation == "min" and not self._has_members:
            raise UsageError(f"aggregation='min' needs members, which {type(self).__name__} has not; take 'lower'")
        for name, value in (("k", k), ("variance_weight", variance_weight)):
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"got {name}={value}; wanted a finite number from 0")
        self.aggregation = aggregation
        self.k = k
        self.variance_weight = variance_weight

    def distribution(self, conversations: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and spread of the score of each conversation."""
        raise NotImplementedError

    def margins(self, chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and spread of the margin of each pair, score of chosen minus score of rejected.

        The spread is that of the margin itself: what moves both scores of a pair alike is no doubt about their order.
        [`~rmtrl.metrics.probit_probability`] makes a probability of the two.

        Raises:
            DataError: If the two lists are not of one length.
        """
        raise NotImplementedError

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the aggregated score of each conversation, `(N,)` float32."""
        distribution = self.distribution(conversations)
        if self.aggregation == "variance":
            return (distribution.mean - self.variance_weight * distribution.std**2).astype(np.float32)
        return (distribution.lower if self.aggregation == "lower" else distribution.mean).astype(np.float32)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations everything that it scores with can score whole, `(N,)`."""
        return np.all([scorer.holds(conversations) for scorer in self.scorers], axis=0)


class MemberScorer(UncertainScorer):
    """
    A scorer that is several: their mean is the score, their standard deviation (divisor K − 1) its uncertainty.

    Bradley–Terry fixes no zero, so members differ by constants that mean nothing and yet enter the spread of a score
    and the choice of the lowest member. [`MemberScorer.fit`] takes them off; margins need no fitting. Subclasses
    define `members`.

    After `fit`, `offsets_`, `(K,)`, is each member's mean on the reference conversations.
    """

    _has_members = True
    offsets_: Floats | None = None
    _said_offsets = False

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each member before centring, `(N, K)`."""
        raise NotImplementedError

    def fit(self, conversations: Sequence[Conversation]) -> "MemberScorer":
        """Returns the scorer itself, its members centred to mean 0 on `conversations`: a few hundred are enough.

        Take average answers, such as those of the reference policy. Not needed where training centred the rewards.

        Raises:
            DataError: If there are no conversations.
        """
        if not len(conversations):
            raise DataError("got no conversations to centre the members on; give some hundred average ones")
        self.offsets_ = self.members(conversations).mean(axis=0)
        return self

    def distribution(self, conversations: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and standard deviation of the members' scores, centred if fitted."""
        return self._spread(self._centred(conversations))

    def margins(self, chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> ScoreDistribution:
        """Returns mean and standard deviation of the members' margins; offsets cancel."""
        check_pairs(chosen, rejected)
        first, second = np.split(self.members([*chosen, *rejected]), [len(chosen)])
        return self._spread(first - second)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """Returns the aggregated score of each conversation, `(N,)` float32."""
        if self.aggregation != "min":
            return super().score(conversations)
        return self._centred(conversations).min(axis=1).astype(np.float32)

    def _centred(self, conversations: Sequence[Conversation]) -> Floats:
        members = self.members(conversations)
        if self.offsets_ is not None:
            return members - self.offsets_
        if not self._said_offsets and len(members) > 1:
            means = members.mean(axis=0)
            apart, disagreement = means.std(ddof=1), (members - means).std(axis=1, ddof=1).mean()
            if apart > disagreement:
                self._said_offsets = True
                logger.warning(
                    "the members' mean scores differ by a standard deviation of %.3g, their judgements beyond that by "
                    "%.3g: most of the spread is offsets that mean nothing; centre them with fit(conversations)",
                    apart, disagreement,
                )  # fmt: skip
        return members

    def _spread(self, members: Floats) -> ScoreDistribution:
        return ScoreDistribution(members.mean(axis=1), members.std(axis=1, ddof=1), self.k)


def check_pairs(chosen: Sequence[Conversation], rejected: Sequence[Conversation]) -> None:
    """Raises where two sides do not make pairs.

    Raises:
        DataError: If they are not of one length.
    """
    if len(chosen) != len(rejected):
        raise DataError(
            f"got {len(chosen)} chosen and {len(rejected)} rejected conversations; wanted one of each a pair"
        )


# Members: scorers, adapters on one base, heads on one backbone, samples of dropout


class EnsembleScorer(MemberScorer):
    """
    Scores with the mean of several scorers, or less where they disagree; see [`UncertainScorer`].

    Members that share all but the order of their data agree on their errors too: vary the seed, the data or the base.

    Args:
        scorers (`Sequence[Scorer]`):
            Two or more, whose scores are of one scale.
        aggregation, k, variance_weight (*optional*):
            As in [`UncertainScorer`].

    Raises:
        UsageError: If there are fewer than two scorers, or a setting cannot be used.

    Example:

    ```python
    >>> ensemble = EnsembleScorer([RewardScorer.from_pretrained(f"outputs/rm-{seed}") for seed in range(4)])
    >>> ensemble.fit(reference_conversations).distribution(conversations).std.shape
    (1,)
    ```
    """

    def __init__(self, scorers: Sequence[Scorer], **pessimism: Any) -> None:
        super().__init__(**pessimism)
        if len(scorers) < 2:
            raise UsageError(f"got {len(scorers)} scorers; an ensemble has at least two")
        self.scorers = list(scorers)

    @classmethod
    def from_adapters(
        cls, paths: Sequence[str | Path], *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5,
        **settings: Any,
    ) -> "EnsembleScorer":  # fmt: skip
        """Returns the ensemble of several adapters, each with its own trained head, on one base held once.

        Args:
            paths (`Sequence[str or Path]`): Folders that [`RewardTrainer`] saved from one base with a `peft_config`.
            aggregation, k, variance_weight (*optional*): As in [`UncertainScorer`].
            settings: As in [`RewardScorer.from_pretrained`].

        Raises:
            UsageError: If there are fewer than two.
            ModelError: If a folder holds no adapter, or adapters cannot share a base.
            RenderingError: If they were trained on text rendered differently.

        Example:

        ```python
        >>> EnsembleScorer.from_adapters([f"outputs/lora-{seed}" for seed in range(8)], aggregation="lower")
        ```
        """
        if len(paths) < 2:
            raise UsageError(f"got {len(paths)} adapters; an ensemble has at least two")
        return cls(load_adapters(paths, **settings), aggregation=aggregation, k=k, variance_weight=variance_weight)

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each scorer, `(N, K)`."""
        return np.stack([scorer.score(conversations) for scorer in self.scorers], axis=1).astype(np.float64)


class HeadEnsembleScorer(MemberScorer):
    """
    Scores with the heads of one model trained with `n_heads`, in one pass of the backbone.

    Args:
        scorer ([`RewardScorer`]):
            A model with two heads or more.
        aggregation, k, variance_weight (*optional*):
            As in [`UncertainScorer`].

    Raises:
        ModelError: If the model has one head.
        UsageError: If a setting cannot be used.

    Example:

    ```python
    >>> scorer = HeadEnsembleScorer(RewardScorer.from_pretrained("outputs/rm-20-heads"), aggregation="min")
    ```
    """

    def __init__(self, scorer: RewardScorer, **pessimism: Any) -> None:
        super().__init__(**pessimism)
        if scorer.head.members < 2:
            raise ModelError("the model has one head, whose spread is unknown; train it with RewardConfig(n_heads=20)")
        self.scorer, self.scorers = scorer, [scorer]

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each head, `(N, K)`."""
        return self.scorer.outputs(conversations).astype(np.float64)


class MCDropoutScorer(MemberScorer):
    """
    Scores with thinned copies of a model: each sample drops units of its dropout layers (Gal and Ghahramani 2016,
    https://huggingface.co/papers/1506.02142).

    A sample drops the same units for every text and position, as a sample of the weights does. So its scores do not
    depend on batch, order or neighbours, and the margin of a pair is that of one network; what is dropped follows from
    `seed`, the sample's number, and the place and width of the layer alone. Dropout of attention weights is left out:
    it drops positions, not units. The model stays in evaluation mode throughout.

    Without dropout in training the spread says little; `RewardConfig(head_dropout=…)` or a LoRA dropout put it there.
    Where only the last layer has it, the backbone runs once for all samples, else once a sample.

    Args:
        scorer ([`RewardScorer`]):
            A model with dropout.
        n_samples (`int`, *optional*, defaults to `20`):
            Samples, from 2.
        seed (`int`, *optional*, defaults to `0`):
            Chooses the units that are dropped.
        aggregation, k, variance_weight (*optional*):
            As in [`UncertainScorer`].

    Raises:
        ModelError: If no layer of the model drops anything.
        UsageError: If a setting cannot be used.

    Example:

    ```python
    >>> MCDropoutScorer(RewardScorer.from_pretrained("outputs/rm-dropout")).distribution(conversations).std.shape
    (1,)
    ```
    """

    def __init__(self, scorer: RewardScorer, n_samples: int = 20, seed: int = 0, **pessimism: Any) -> None:
        super().__init__(**pessimism)
        if n_samples < 2 or seed < 0:
            raise UsageError(f"got n_samples={n_samples}, seed={seed}; wanted at least 2 samples and a seed from 0")
        if not _dropout_layers(scorer.model):
            raise ModelError(
                "no layer of the model has dropout, so every sample would be the same; train it with "
                "RewardConfig(head_dropout=0.1), or a LoRA dropout"
            )
        self.scorer, self.scorers = scorer, [scorer]
        self.n_samples = n_samples
        self.seed = seed

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each sample, `(N, n_samples)`."""
        layers, last = _dropout_layers(self.scorer.model), last_layers(self.scorer.model)
        if [layer for layer, _ in layers] == last and len(last) == 1:
            return self._of_the_last_layer(conversations, *layers[0])
        samples = []
        for sample in range(self.n_samples):
            with _thinned(layers, (self.seed, sample)):
                samples.append(self.scorer.score(conversations))
        return np.stack(samples, axis=1).astype(np.float64)

    @torch.inference_mode()
    def _of_the_last_layer(self, conversations: Sequence[Conversation], layer: Any, p: float) -> Floats:
        features = torch.from_numpy(self.scorer.features(conversations)).to(layer.weight.device)
        kept = [_kept((self.seed, sample, 0), features.shape[1], p).to(features) for sample in range(self.n_samples)]
        rewards = [self.scorer.head.reward(layer(features * mask)) for mask in kept]
        return torch.stack(rewards, dim=1).cpu().double().numpy()


def load_adapters(paths: Sequence[str | Path], **settings: Any) -> list[RewardScorer]:
    """Returns a scorer for each adapter, all on one base in memory.

    They switch the adapter of the model they share, so they must not score at the same time.

    Args:
        paths (`Sequence[str or Path]`): Folders of adapters, with their heads.
        settings: As in [`RewardScorer.from_pretrained`].

    Raises:
        ModelError: If a folder holds no adapter, or adapters cannot share a base.
        RenderingError: If they were trained on text rendered differently.
    """
    first = RewardScorer.from_pretrained(paths[0], **settings)
    model, names = first.model, ["default", *map(str, range(1, len(paths)))]
    if not isinstance(model, PeftModel):
        raise ModelError(f"{paths[0]} holds a whole model; wanted an adapter (whole models: EnsembleScorer(scorers))")
    base, trained = _base_and_trained(paths[0])
    if any("embed" in name or ".wte." in name for name in trained):
        raise ModelError(f"the adapter at {paths[0]} holds embeddings, which no other can share; load them one by one")
    for path, name in zip(paths[1:], names[1:], strict=True):
        if _base_and_trained(path) != (base, trained) or stored_head(path) != first.head:
            raise ModelError(f"the adapters at {paths[0]} and {path} have different bases or heads; wanted the same")
        model.load_adapter(str(path), adapter_name=name, torch_device=str(model.device))
    of_scoring = inspect.signature(RewardScorer.__init__).parameters.keys() - {"tokenizer"}
    passed = {key: value for key, value in settings.items() if key in of_scoring} | {"head": first.head}
    return [
        _AdapterScorer(model, first.tokenizer, adapter=name, rendering=stored_rendering(path), **passed)
        for path, name in zip(paths, names, strict=True)
    ]


class _AdapterScorer(RewardScorer):
    """A reward model that is one of several adapters on a base."""

    def __init__(self, model: PeftModel, *args: Any, adapter: str, **settings: Any) -> None:
        self.switched = partial(AdapterSwitch(model), adapter)
        with self.switched():  # whose head is made ready
            super().__init__(model, *args, **settings)

    def features(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        raise ModelError(
            "the features of one adapter among several on a base are not told apart; load it alone with "
            "RewardScorer.from_pretrained(path)"
        )

    def _run(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None) -> NDArray[np.float32]:
        with self.switched():
            return super()._run(sequences, starts)


def _base_and_trained(path: str | Path) -> tuple[str | None, set[str]]:
    """Returns the base of an adapter, and the names of weights it holds whole: its head."""
    try:
        base = PeftConfig.from_pretrained(str(path)).base_model_name_or_path
    except ValueError as error:
        raise ModelError(f"{path} holds no adapter: {str(error).splitlines()[0]}") from error
    weights = load_peft_weights(str(path), device="cpu")
    return base, {name for name in weights if ".lora_" not in name}


def _dropout_layers(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """Returns the layers in use that drop units, and the share that each drops."""
    layers = [layer for name, layer in base_model(model).named_modules() if is_active(model, name)]
    shares = [
        (layer, layer.dropout if isinstance(layer, Float32Linear) else layer.p)
        for layer in layers
        if isinstance(layer, Float32Linear | nn.Dropout)
    ]
    return [(layer, share) for layer, share in shares if share > 0]


def _kept(key: tuple[int, ...], width: int, p: float) -> torch.Tensor:
    """Returns what a sample multiplies the units of a layer by, `(width,)`: 0, or 1 / (1 − p)."""
    kept = np.random.default_rng([*key, width]).random(width) >= p
    return torch.from_numpy(kept / (1 - p))


@contextmanager
def _thinned(layers: Sequence[tuple[nn.Module, float]], key: tuple[int, int]) -> Iterator[None]:
    """Drops units of the layers by hooks, which are gone afterwards whatever happens."""

    def thin(states: torch.Tensor, number: int, p: float) -> torch.Tensor:
        if states.ndim > 3:  # attention weights
            return states
        return states * _kept((*key, number), states.shape[-1], p).to(states)

    with ExitStack() as hooks:
        for number, (layer, p) in enumerate(layers):
            if isinstance(layer, Float32Linear):  # before the product, in its precision
                hook = layer.register_forward_pre_hook(lambda _, args, n=number, p=p: (thin(args[0].float(), n, p),))
            else:
                hook = layer.register_forward_hook(lambda _, args, output, n=number, p=p: thin(output, n, p))
            hooks.callback(hook.remove)
        yield
