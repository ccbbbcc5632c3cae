"""What is trained (weights, their average, optimizers) as named tensors and JSON, exact to the bit, without pickle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crayon.errors import BadInput
from crayon.training.checkpoint import restore_network
from crayon.training.optimizer import Average, Optimizer

IMPLEMENTATION = frozenset({"fused", "foreach", "capturable", "differentiable"})
"""Options that say how a step is computed on this device, not what: a resumed run keeps its own."""


def understood(restore: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """`Trainer.restore`, raising BadInput where a checkpoint that is whole holds what no trainer has written."""

    @functools.wraps(restore)
    def checked(trainer: Any) -> bool:
        try:
            found = restore(trainer)
            numbers = [trainer.train_seconds, trainer.seconds_before]
            if trainer.best is not None:
                numbers += [trainer.best[key] for key in ("value", "epoch", "step")]
            names = [*trainer.meter.names, (trainer.best or {"metric": ""})["metric"]]
            if {_kind(n) for n in numbers} != {"number"} or {_kind(n) for n in names} - {"str"}:
                raise TypeError("a value is of another type")
            if trainer.meter.sums.shape != (len(trainer.meter.names),):
                raise ValueError("the sums are of other terms")
            return found
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise BadInput(
                f"The newest checkpoint of {trainer.run.uri}, or its metrics.jsonl, holds what crayon can't have "
                f"written ({why}); delete that checkpoint, or choose another --name."
            ) from None

    return checked


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_kind, value))
    return (
        "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    )


def capture(
    networks: nn.ModuleDict, average: Average, optimizers: Mapping[str, Optimizer]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(groups of tensors, JSON by optimizer) for a checkpoint. The tensors are the live ones, not copies."""
    tensors = {"weights": dict(networks.state_dict()), "optimizer": {}}
    if average.on:
        tensors["ema"] = dict(average.networks.state_dict())
    states = {}
    for name, optimizer in optimizers.items():
        flat, states[name] = flatten_optimizer(optimizer, _named(networks, name))
        tensors["optimizer"].update(flat)
    return tensors, states


def restore(
    networks: nn.ModuleDict,
    average: Average,
    optimizers: Mapping[str, Optimizer],
    tensors: Mapping[str, Mapping[str, Tensor]],
    states: Mapping[str, Any],
) -> None:
    """Put back what `capture` returned. Raises BadInput where it belongs to other networks."""
    restore_network(networks, tensors["weights"])
    if average.on:
        restore_network(average.networks, tensors["ema"])
    for name, optimizer in optimizers.items():
        restore_optimizer(optimizer, _named(networks, name), tensors["optimizer"], states[name])


def _named(networks: nn.ModuleDict, network: str) -> list[tuple[str, Tensor]]:
    return [(f"{network}.{name}", p) for name, p in networks[network].named_parameters()]


def flatten_optimizer(
    optimizer: Optimizer, parameters: Iterable[tuple[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by "<parameter>/<state>", JSON) of an optimizer whose parameters have these names.

    `parameters`: `network.named_parameters()`, or any (name, parameter) pairs with unique names.
    """
    names = {id(p): name for name, p in parameters}
    tensors: dict[str, Tensor] = {}
    state: dict[str, dict[str, Any]] = {}
    for parameter, values in optimizer.state.items():
        name = names[id(parameter)]
        state[name] = {key: _put(tensors, f"{name}/{key}", value) for key, value in values.items()}
    groups = []
    for group in optimizer.param_groups:
        members = [names[id(p)] for p in group["params"]]
        hyper = {k: v for k, v in group.items() if k != "params" and k not in IMPLEMENTATION}
        key = f"{''.join(members[:1])}/group"  # unique, also where several optimizers share a file
        groups.append(
            {"params": members, "hyper": {k: _put(tensors, f"{key}/{k}", v) for k, v in hyper.items()}}
        )
    return tensors, {"state": state, "groups": groups}


def restore_optimizer(
    optimizer: Optimizer,
    parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    flat: Mapping[str, Any],
) -> None:
    """Put back what `flatten_optimizer` returned, into an optimizer built in the same way.

    Each tensor gets its parameter's device and memory order, which fused kernels rely on, and keeps its own
    dtype. Raises BadInput, and leaves the optimizer as it was, where the state belongs to other parameters.
    """
    named = dict(parameters)
    names = {id(p): name for name, p in named.items()}
    try:
        saved_groups, saved_state = flat["groups"], flat["state"]
        ours = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
        if [g["params"] for g in saved_groups] != ours or not saved_state.keys() <= named.keys():
            raise BadInput("The checkpoint's optimizer state belongs to a network with other parameters.")
        capturable = {
            n
            for g, ns in zip(optimizer.param_groups, ours, strict=True)
            if g.get("fused") or g.get("capturable")
            for n in ns
        }
        state = {
            named[name]: {
                key: _take(tensors, name, key, value, named[name], key != "step" or name in capturable)
                for key, value in values.items()
            }
            for name, values in saved_state.items()
        }
        hyper = [
            {k: _take(tensors, "a group", k, v, None, False) for k, v in g["hyper"].items()}
            for g in saved_groups
        ]
        for group, values in zip(optimizer.param_groups, hyper, strict=True):
            for k, v in values.items():
                if k in group and not isinstance(v, Tensor) and _kind(v) != _kind(group[k]):
                    raise TypeError(f"{k} is {_kind(v)}")
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"The checkpoint's optimizer state is incomplete ({error}).") from None
    for group, values in zip(optimizer.param_groups, hyper, strict=True):
        group.update(values)
    optimizer.state.clear()
    optimizer.state.update(state)


def _put(tensors: dict[str, Tensor], key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, tuple):
        return {"tuple": list(value)}
    return {"value": value}


def _take(
    tensors: Mapping[str, Tensor],
    owner: str,
    key: str,
    saved: Mapping[str, Any],
    parameter: Tensor | None,
    beside: bool,
) -> Any:
    if "tuple" in saved:
        return tuple(saved["tuple"])
    if "tensor" not in saved:
        return saved["value"]
    tensor = tensors[saved["tensor"]]
    if parameter is None:
        return tensor.clone()
    if tensor.dim() and tensor.shape != parameter.shape:
        raise BadInput(
            f"The checkpoint's optimizer state for {owner} ({key}) has shape {tuple(tensor.shape)}, "
            f"the parameter has {tuple(parameter.shape)}."
        )
    device = parameter.device if beside else torch.device("cpu")
    if tensor.dim():
        return torch.empty_like(parameter, dtype=tensor.dtype, device=device).copy_(tensor)
    return tensor.to(device, copy=True)
