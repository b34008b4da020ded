"""What a model takes and what it must give, checked before it does harm."""

from torch import Tensor, isfinite, nn

from rmtrl.errors import ModelError


def check_finite(when: str, tensor: Tensor, what: str) -> None:
    """Passes a tensor all of whose numbers are finite.

    Args:
        when (`str`): Where the training stands, such as `"step 3"`; it opens the message.
        tensor ([`~torch.Tensor`]): The numbers.
        what (`str`): Their name and verb, such as `"the loss is"`.

    Raises:
        ModelError: If a number is not.

    Example:

    ```python
    >>> check_finite("step 1", torch.tensor([0.5]), "the loss is")
    ```
    """
    if not isfinite(tensor).all():
        raise ModelError(
            f"{when}: {what} not finite; the run has diverged or started from broken weights: lower learning_rate, "
            "set max_grad_norm, or resume from an earlier checkpoint"
        )


def check_weights(when: str, model: nn.Module) -> None:
    """Passes a model all of whose weights, on this process, are finite.

    Raises:
        ModelError: Naming one that is not: such a model is no result.
    """
    for name, weight in model.named_parameters():
        own: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
        if own.is_floating_point():
            check_finite(when, own.detach(), f"nothing is saved: the weights {name} are")
