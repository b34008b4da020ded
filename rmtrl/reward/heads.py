"""The score head: where it is in a model, whether it is trained, and how it computes in float32."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from rmtrl.errors import ModelError


class Float32Linear(nn.Linear):
    """A linear head that computes in float32 whatever autocast or the backbone's precision say.

    In bf16 a score has 8 significant bits: 8.00 and 8.03 are one number, and half the pairs of a good model tie.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns `input @ weight.T + bias` in float32; `input` is `(..., d)`, the result `(..., 1)`."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


def base_model(model: Any) -> Any:
    """Returns the sequence classification model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the name and module of every linear layer outside the backbone that ends in the scalar score.

    Under PEFT the head stands there twice: the frozen original and the trained copy.
    """
    inner = base_model(model)
    backbone = f"{inner.base_model_prefix}."
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(backbone):
            yield name, module


def compute_head_in_float32(model: nn.Module) -> None:
    """Makes the score head compute in float32 in place; names and values of its weights stay as they are.

    Raises:
        ModelError: If the model has no linear layer with one output outside its backbone.
    """
    layers = [module for _, module in head_layers(model)]
    if not layers:
        raise ModelError(
            f"got {type(base_model(model)).__name__}, whose score head is not a linear layer with one output; "
            "load the model with AutoModelForSequenceClassification and num_labels=1"
        )
    for layer in layers:
        if type(layer) is nn.Linear:
            layer.__class__ = Float32Linear


def head_modules(model: "str | nn.Module", *, trust_remote_code: bool = False) -> set[str]:
    """Returns the names of the modules that make up the head: all with weights outside the backbone, and its pooler.

    A checkpoint of a language model holds none of them, so an adapter must train and save them all.

    Args:
        model: A sequence classification model, or the folder or hub id to make one of, without its weights.
        trust_remote_code (`bool`): As in transformers.
    """
    if isinstance(model, str):
        config = AutoConfig.from_pretrained(model, num_labels=1, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    inner = base_model(model)
    names = {
        name
        for name, child in inner.named_children()
        if name != inner.base_model_prefix and any(True for _ in child.parameters())
    }
    pooler = getattr(getattr(inner, inner.base_model_prefix, None), "pooler", None)
    return names | ({"pooler"} if pooler is not None else set())


def takes_gradients(model: nn.Module) -> bool:
    """Returns whether any weight of the model takes gradients; none does in an adapter loaded for inference."""
    return any(parameter.requires_grad for parameter in model.parameters())


def has_trained_head(model: nn.Module) -> bool:
    """Returns whether some layer of the score head takes gradients."""
    return any(parameter.requires_grad for _, layer in head_layers(model) for parameter in layer.parameters())
