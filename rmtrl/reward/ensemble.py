"""Ensembles: several scorers, several adapters on one base, several heads on one backbone, dropout samples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel
from peft.utils.save_and_load import load_peft_weights
from torch import nn

from rmtrl.errors import ModelError, UsageError
from rmtrl.models import AdapterSwitch, base_model
from rmtrl.reward.checkpoint import stored_head, stored_rendering
from rmtrl.reward.heads import Float32Linear, is_active, last_layers
from rmtrl.reward.scorer import RewardScorer
from rmtrl.reward.uncertainty import Floats, MemberScorer
from rmtrl.types import Conversation, Scorer


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

    def __init__(
        self, scorers: Sequence[Scorer], *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5
    ) -> None:
        super().__init__(aggregation=aggregation, k=k, variance_weight=variance_weight)
        if len(scorers) < 2:
            raise UsageError(f"got {len(scorers)} scorers; an ensemble has at least two")
        self.scorers = list(scorers)

    @classmethod
    def from_adapters(
        cls, paths: Sequence[str | Path], *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5,
        device: str | None = None, dtype: str | torch.dtype = "auto", **settings: Any,
    ) -> "EnsembleScorer":  # fmt: skip
        """Returns the ensemble of several adapters, each with its own trained head, on one base held once.

        Args:
            paths (`Sequence[str or Path]`): Folders that [`RewardTrainer`] saved from one base with a `peft_config`.
            aggregation, k, variance_weight (*optional*): As in [`UncertainScorer`].
            device, dtype (*optional*): As in [`RewardScorer.from_pretrained`].
            settings: Passed to [`RewardScorer`].

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
        scorers = load_adapters(paths, device=device, dtype=dtype, **settings)
        return cls(scorers, aggregation=aggregation, k=k, variance_weight=variance_weight)

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each scorer, `(N, K)`."""
        return np.stack([scorer.score(conversations) for scorer in self.scorers], axis=1).astype(np.float64)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations every member can score whole, `(N,)`."""
        held: NDArray[np.bool_] = np.all([scorer.holds(conversations) for scorer in self.scorers], axis=0)
        return held


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

    def __init__(
        self, scorer: RewardScorer, *, aggregation: str = "mean", k: float = 1.0, variance_weight: float = 0.5
    ) -> None:
        super().__init__(aggregation=aggregation, k=k, variance_weight=variance_weight)
        if scorer.head.members < 2:
            raise ModelError("the model has one head, whose spread is unknown; train it with RewardConfig(n_heads=20)")
        self.scorer = scorer

    def members(self, conversations: Sequence[Conversation]) -> Floats:
        """Returns the score of each head, `(N, K)`."""
        return self.scorer.outputs(conversations).astype(np.float64)

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations are within the model's positions, `(N,)`."""
        return self.scorer.holds(conversations)


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

    def __init__(
        self, scorer: RewardScorer, n_samples: int = 20, seed: int = 0, *, aggregation: str = "mean", k: float = 1.0,
        variance_weight: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(aggregation=aggregation, k=k, variance_weight=variance_weight)
        if n_samples < 2 or seed < 0:
            raise UsageError(f"got n_samples={n_samples}, seed={seed}; wanted at least 2 samples and a seed from 0")
        if not _dropout_layers(scorer.model):
            raise ModelError(
                "no layer of the model has dropout, so every sample would be the same; train it with "
                "RewardConfig(head_dropout=0.1), or a LoRA dropout"
            )
        self.scorer = scorer
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

    def holds(self, conversations: Sequence[Conversation]) -> NDArray[np.bool_]:
        """Returns which conversations are within the model's positions, `(N,)`."""
        return self.scorer.holds(conversations)

    @torch.inference_mode()
    def _of_the_last_layer(self, conversations: Sequence[Conversation], layer: Any, p: float) -> Floats:
        features = torch.from_numpy(self.scorer.features(conversations)).to(layer.weight.device)
        kept = [_kept((self.seed, sample, 0), features.shape[1], p).to(features) for sample in range(self.n_samples)]
        rewards = [self.scorer.head.reward(layer(features * mask)) for mask in kept]
        members: Floats = torch.stack(rewards, dim=1).cpu().double().numpy()
        return members


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
    passed = {key: value for key, value in settings.items() if key not in _OF_LOADING}
    return [
        _AdapterScorer(
            model, first.tokenizer, adapter=name, rendering=stored_rendering(path), head=first.head, **passed
        )
        for path, name in zip(paths, names, strict=True)
    ]


_OF_LOADING = ("tokenizer", "device", "dtype", "trust_remote_code", "quantization_config")


class _AdapterScorer(RewardScorer):
    """A reward model that is one of several adapters on a base."""

    def __init__(self, model: PeftModel, *args: Any, adapter: str, **settings: Any) -> None:
        self.adapter = adapter
        self._switch = AdapterSwitch(model)
        with self._switch(adapter):  # whose head is made ready
            super().__init__(model, *args, **settings)

    def features(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        raise ModelError(
            "the features of one adapter among several on a base are not told apart; load it alone with "
            "RewardScorer.from_pretrained(path)"
        )

    def _run(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None) -> NDArray[np.float32]:
        with self._switch(self.adapter):
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
    shares = ((layer, _share(layer)) for name, layer in base_model(model).named_modules() if is_active(model, name))
    return [(layer, share) for layer, share in shares if share > 0]


def _share(layer: nn.Module) -> float:
    if isinstance(layer, Float32Linear):
        return layer.dropout
    return layer.p if isinstance(layer, nn.Dropout) else 0.0


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

    handles = []
    try:
        for number, (layer, p) in enumerate(layers):
            if isinstance(layer, Float32Linear):
                # before the product, in its precision
                hook = layer.register_forward_pre_hook(lambda _, args, n=number, p=p: (thin(args[0].float(), n, p),))
            else:
                hook = layer.register_forward_hook(lambda _, args, output, n=number, p=p: thin(output, n, p))
            handles.append(hook)
        yield
    finally:
        for handle in handles:
            handle.remove()
