"""The score head: its kinds, where it is in a model, and how it computes in float32."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rmtrl.errors import ModelError
from rmtrl.models import base_model, whole
from rmtrl.reward.config import RewardConfig

_OF_ADAPTERS = ("modules_to_save", "lora_dropout", "lora_A", "lora_B")


@dataclass(frozen=True)
class Head:
    """What a reward model computes from its last hidden states.

    The standard head (linear, last token, one member) is what `AutoModelForSequenceClassification` has, and any tool
    loads it; with `criteria` it is that of a model with one label a criterion. Any other is rebuilt by
    [`RewardScorer`]; elsewhere, loading its weights fails with a size mismatch rather than scoring at random.

    Args:
        kind (`str`): `"linear"` or `"mlp"` (one hidden layer, tanh).
        pooling (`str`): `"last"` token, or `"mean"` over the last message's tokens.
        dropout (`float`): Dropout before the last layer.
        members (`int`): Heads side by side, whose mean is the reward.
        criteria (`tuple[str, ...]`): Names of the outputs of a head for attributes.
        weights (`tuple[float, ...]`): Their weights in the reward.
        width (`int`): Units of an MLP's hidden layer, at most as many as the backbone's.
    """

    kind: str = "linear"
    pooling: str = "last"
    dropout: float = 0.0
    members: int = 1
    criteria: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    width: int = 256

    @classmethod
    def of(cls, settings: RewardConfig) -> "Head":
        """Returns the head that a configuration asks for."""
        weights: Any = settings.attribute_weights or {}
        return cls(
            settings.head, settings.pooling, settings.head_dropout, settings.n_heads, tuple(weights),
            tuple(weights.values()),
        )  # fmt: skip

    @property
    def is_standard(self) -> bool:
        """Whether plain transformers loads the weights."""
        return (self.kind, self.pooling, self.members) == ("linear", "last", 1)

    @property
    def is_custom(self) -> bool:
        """Whether a model must be given this head in place of its own."""
        return not self.is_standard or bool(self.criteria)

    @property
    def n_outputs(self) -> int:
        """Numbers that the head gives for a response."""
        return len(self.criteria) or self.members

    def reward(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the reward, `(...)`, of the head's outputs, `(..., n_outputs)`."""
        if self.criteria:
            return outputs @ torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)
        return outputs.mean(dim=-1)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Head":
        """Returns the head that [`Head.as_dict`] describes; what a later version says besides is left aside.

        Raises:
            ModelError: If it is of a kind that this version does not know.
        """
        known = {name: stored[name] for name in (field.name for field in fields(cls)) if name in stored}
        head = cls(**known | {name: tuple(known.get(name, ())) for name in ("criteria", "weights")})
        if head.kind not in ("linear", "mlp") or head.pooling not in ("last", "mean"):
            raise ModelError(f"got a head of kind {head.kind!r} and pooling {head.pooling!r}; a later rmtrl reads it")
        return head


class Float32Linear(nn.Linear):
    """A linear head that computes in float32 whatever autocast or the backbone's precision say.

    In bf16 a score has 8 significant bits: 8.00 and 8.03 are one number, and half the pairs of a good model tie.
    """

    dropout = 0.0
    """Share of inputs dropped in training; no `nn.Dropout`, which `disable_dropout` would turn off."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns `input @ weight.T + bias` in float32; `input` is `(..., d)`, the result `(..., out_features)`."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            kept = nn.functional.dropout(input.float(), self.dropout, self.training and self.dropout > 0)
            return nn.functional.linear(kept, self.weight.float(), bias)


class RewardHead(nn.Module):
    """Any head but the standard one.

    Args:
        size (`int`): Width of the backbone.
        head ([`Head`]): What it computes.
    """

    def __init__(self, size: int, head: Head) -> None:
        super().__init__()
        self.head = head
        self.pooled: torch.Tensor | None = None
        # a loader that expects the standard head stops at this shape, where it would else start a random one
        self.register_buffer("weight", torch.zeros(0))
        n_outputs = len(head.criteria) or 1
        self.members = nn.ModuleList(_member(size, n_outputs, head) for _ in range(head.members))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the outputs, `(..., n_outputs)` float32, of hidden states `(..., d)`.

        Under mean pooling, `pooled` holds the mask `(B, L)` of the tokens to average, and each position of the result
        is that of its row.
        """
        if self.head.pooling == "mean":
            if self.pooled is None or self.pooled.shape != states.shape[:2]:
                raise ModelError("a head that averages over tokens must be told which; score through RewardScorer")
            mask = self.pooled.to(states.device)[..., None].float()
            states = (states.float() * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            length = self.pooled.shape[1]
            return torch.cat([member(states) for member in self.members], dim=-1).expand(-1, length, -1)
        return torch.cat([member(states) for member in self.members], dim=-1)


def _member(size: int, n_outputs: int, head: Head) -> nn.Module:
    hidden = min(size, head.width)
    last = Float32Linear(hidden if head.kind == "mlp" else size, n_outputs, bias=head.kind == "mlp")
    last.dropout = head.dropout
    return nn.Sequential(Float32Linear(size, hidden), nn.Tanh(), last) if head.kind == "mlp" else last


def reads_last_token(model: Any) -> bool:
    """Returns whether every token passes the head, as in a decoder, where it is named `score`, and the last counts."""
    inner = base_model(model)
    return isinstance(getattr(inner, "score", None), nn.Module) and not inner.config.is_encoder_decoder


def install_head(model: nn.Module, head: Head) -> None:
    """Gives a sequence classification model with one linear score layer this head, in place, untrained.

    Raises:
        ModelError: If the model's own head is of another kind, or pools before its head and the head is to pool.
    """
    inner = base_model(model)
    name = "score" if hasattr(inner, "score") else "classifier"
    old = getattr(inner, name, None)
    if not isinstance(old, nn.Linear):
        raise ModelError(
            f"{type(inner).__name__} ends in a head of its own ({type(old).__name__}), which cannot be replaced; "
            "leave head, pooling, n_heads and loss_type at their defaults"
        )
    if head.pooling == "mean" and name != "score":
        raise ModelError(f"{type(inner).__name__} pools its tokens before its head; pooling must be 'last' here")
    new: nn.Module
    if head.is_standard:
        new = Float32Linear(old.in_features, head.n_outputs, bias=old.bias is not None)
        nn.init.normal_(new.weight, std=getattr(inner.config.get_text_config(), "initializer_range", 0.02))
    else:
        new = RewardHead(old.in_features, head)
    dtype = old.weight.dtype if old.weight.is_floating_point() else torch.float32  # of a quantised head
    setattr(inner, name, new.to(device=old.weight.device, dtype=dtype))


def with_head(model_class: type[PreTrainedModel], head: Head) -> type[PreTrainedModel]:
    """Returns a model class that is made with this head, so that `from_pretrained` loads its weights."""

    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        install_head(self, head)

    return type(model_class.__name__, (model_class,), {"__init__": init, "__module__": model_class.__module__})


def set_dropout(model: nn.Module, dropout: float) -> None:
    """Sets the dropout before the last layer of every member, in place."""
    for layer in last_layers(model):
        layer.dropout = dropout


def pool_over(model: nn.Module, mask: torch.Tensor | None) -> None:
    """Tells a head that averages over tokens which ones, `(B, L)`; other heads are left alone."""
    for module in base_model(model).modules():
        if isinstance(module, RewardHead):
            module.pooled = mask


def draw_head(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws the last layer of every member from N(0, 1/(d + 1)), bias 0, in place (Stiennon et al. 2020)."""
    layers = last_layers(model)
    with torch.no_grad(), _gathered(layers):
        for layer in layers:
            layer.weight.normal_(0.0, (layer.in_features + 1) ** -0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _gathered(layers: list[Any]) -> AbstractContextManager[Any]:
    """Holds weights that ZeRO-3 has spread over processes whole; what the first writes to them is everyone's."""
    spread = [weight for layer in layers for weight in layer.parameters() if hasattr(weight, "ds_id")]
    if not spread:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(spread, modifier_rank=0)


def scale_head(model: nn.Module, scale: float, shift: float = 0.0) -> None:
    """Makes the model's reward `scale · reward + shift`, in place, by the weights of its last layer.

    Args:
        model ([`~torch.nn.Module`]): A reward model.
        scale (`float`): For example 1 / temperature.
        shift (`float`): For example −mean / temperature.

    Raises:
        ModelError: If there is a shift and the last layer has no bias to hold it.
    """
    layers = last_layers(model)
    if shift and any(layer.bias is None for layer in layers):
        raise ModelError("the score head has no bias, so it cannot hold a shift; scale alone, and centre elsewhere")
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(layer.weight.cpu().double() * scale)
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.cpu().double() * scale + shift)


def head_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the name and module of every linear layer outside the backbone: those of the score head.

    Under PEFT the head stands there twice: the frozen original and the trained copy.
    """
    inner = base_model(model)
    backbone = f"{inner.base_model_prefix}."
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(backbone):
            yield name, module


def last_layers(model: nn.Module) -> list[Any]:
    """Returns the linear layers whose outputs are the rewards, one a member; under PEFT those of the trained copy.

    Raises:
        ModelError: If the head does not end in linear layers.
    """
    inner = base_model(model)
    heads = [(n, m) for n, m in inner.named_modules() if isinstance(m, RewardHead) and is_active(model, n)]
    if heads:
        return [member[-1] if isinstance(member, nn.Sequential) else member for member in heads[-1][1].members]
    layers = [layer for name, layer in head_layers(model) if is_active(model, name)]
    if not layers:
        raise _no_linear_head(inner)
    return layers[-1:]


def is_active(model: Any, name: str) -> bool:
    """Returns whether a module is the one in use, and no other adapter's nor the frozen original."""
    steps = name.split(".")
    if "original_module" in steps:
        return False
    owners = [steps[i + 1] for i, step in enumerate(steps[:-1]) if step in _OF_ADAPTERS]
    return all(owner == model.active_adapter for owner in owners)


def compute_head_in_float32(model: nn.Module) -> None:
    """Makes the score head compute in float32 in place; names and values of its weights stay as they are.

    Raises:
        ModelError: If the model has no linear layer outside its backbone.
    """
    layers = [module for _, module in head_layers(model)]
    if not layers:
        raise _no_linear_head(base_model(model))
    for layer in layers:
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear


def _no_linear_head(inner: nn.Module) -> ModelError:
    return ModelError(
        f"got {type(inner).__name__}, whose score head is not a linear layer with one output; "
        "load the model with AutoModelForSequenceClassification and num_labels=1"
    )


def head_modules(model: "str | nn.Module", *, trust_remote_code: bool = False) -> set[str]:
    """Returns the names of the modules that make up the head: all with weights outside the backbone, and its pooler.

    A checkpoint of a language model holds none of them, so an adapter must train and save them all.

    Args:
        model: A sequence classification model, or the folder or hub id to make one of, without its weights.
        trust_remote_code (`bool`): As in transformers.
    """
    if isinstance(model, str):
        model = empty_model(model, trust_remote_code=trust_remote_code)
    inner = base_model(model)
    names = {
        name
        for name, child in inner.named_children()
        if name != inner.base_model_prefix and any(True for _ in child.parameters())
    }
    pooler = getattr(getattr(inner, inner.base_model_prefix, None), "pooler", None)
    return names | ({"pooler"} if pooler is not None else set())


def empty_model(path: str, *, trust_remote_code: bool = False) -> Any:
    """Returns the sequence classification model of a folder or hub id with one label and without weights."""
    config = AutoConfig.from_pretrained(path, num_labels=1, trust_remote_code=trust_remote_code)
    with whole(), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)


def freezes_head(model: nn.Module) -> bool:
    """Returns whether a model has weights that train, and none of them in its score head."""
    head = [weight.requires_grad for _, layer in head_layers(model) for weight in layer.parameters()]
    return any(weight.requires_grad for weight in model.parameters()) and not any(head)


def train_last_layers(model: nn.Module, k: int) -> None:
    """Freezes the backbone up to its last `k` layers, in place; the final norm, a pooler and the head stay trained.

    With `k` 0 the final norm is frozen too. Under an adapter, its weights in those layers are what is left to train.

    Raises:
        ModelError: If the backbone has fewer layers, or none that can be told.
    """
    inner = base_model(model)
    backbone: nn.Module = getattr(inner, inner.base_model_prefix)
    stacks = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise ModelError(f"trainable_layers={k}: the layers of {type(inner).__name__} cannot be told; freeze by hand")
    name, layers = max(stacks, key=lambda stack: len(stack[1]))
    if k > len(layers):
        raise ModelError(f"got trainable_layers={k}; {type(inner).__name__} has {len(layers)} layers")
    first = {id(parameter) for layer in list(layers)[len(layers) - k :] for parameter in layer.parameters()}
    inside = {id(parameter) for parameter in layers.parameters()}
    after = False  # parameters stand in order: embeddings, layers, final norm
    for name, parameter in backbone.named_parameters():
        after = after or id(parameter) in inside
        follows = after and id(parameter) not in inside and "embed" not in name and k > 0
        if not (id(parameter) in first or follows or "pooler" in name):
            parameter.requires_grad_(False)
