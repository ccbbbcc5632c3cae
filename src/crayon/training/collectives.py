"""The few collective operations that the loop needs. With one worker every one of them is the identity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Group:
    """The workers of a run: `rank` of `world_size`, over the default process group when there are several."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.alone = world_size == 1
        """Whether there is nobody to talk to. If False, one worker with a process group does what several do."""

    @torch.no_grad()
    def broadcast_weights(self, network: nn.Module) -> None:
        """Give every worker rank 0's weights, with which all of them begin."""
        if not self.alone:
            for tensor in network.state_dict().values():
                dist.broadcast(flat(tensor), 0)

    @torch.no_grad()
    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give every worker rank 0's BatchNorm statistics, so that all evaluate the same model."""
        if not self.alone:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_min(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: Tensor, op: Any) -> Tensor:
        if not self.alone:
            tensor = tensor.to(self.device, copy=True)
            dist.all_reduce(tensor, op=op)
        return tensor

    def reduce_flags(self, flags: int) -> int:
        """Bitwise union of every worker's flags (up to 8 of them)."""
        if self.alone:
            return flags
        bits = self._all_reduce(torch.tensor([flags >> i & 1 for i in range(8)]), dist.ReduceOp.MAX)
        return sum(int(bit) << i for i, bit in enumerate(bits.tolist()))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every worker's tensor (same shape and dtype), in rank order, on every worker."""
        if self.alone:
            return [tensor]
        tensor = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return parts

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Rank 0: every worker's rows, in rank order; workers may hold different numbers of them. Others: nothing."""
        if self.alone:
            return tensor
        tensor = tensor.to(self.device).contiguous()
        counts = [int(n) for n in self.all_gather(torch.tensor([len(tensor)]))]
        if self.rank != 0:
            if len(tensor):
                dist.send(tensor, 0)
            return tensor[:0]
        whole = tensor.new_empty((sum(counts), *tensor.shape[1:]))
        parts = whole.split(counts)
        parts[0].copy_(tensor)
        for rank, part in enumerate(parts[1:], 1):
            if len(part):
                dist.recv(part, rank)
        return whole

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value`, on every worker."""
        if self.alone:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if not self.alone:
            dist.barrier()


class Gradients:
    """The gradients of `parameters` as one tensor of each dtype, so that the workers add them up in one message.

    Parameters that had no gradient on any worker in the first step have none later.
    """

    def __init__(self, parameters: Iterable[Tensor], group: Group):
        self.group, self.parameters = group, list(parameters)
        self._parts: list[tuple[Tensor, list[Tensor], list[Tensor]]] | None = None

    @torch.no_grad()
    def gather(self) -> None:
        """After a backward pass: bring them together, each of them `parameter.grad` still."""
        if self.group.alone:
            return
        if self._parts is None:
            self._parts = self._laid_out()
        # Autograd could add to tensors that lie together, but only one by one, after they were set to 0: that is twice
        # the traffic, and a kernel each.
        for whole, parameters, views in self._parts:
            torch.cat([flat_gradient(p) for p in parameters], out=whole)
            for parameter, view in zip(parameters, views, strict=True):
                parameter.grad = view

    def add_up(self) -> None:
        """Between `gather` and what uses them; every worker takes part."""
        for whole, *_ in self._parts or ():
            dist.all_reduce(whole)

    def _laid_out(self) -> list[tuple[Tensor, list[Tensor], list[Tensor]]]:
        missing = torch.tensor([p.grad is None for p in self.parameters], dtype=torch.uint8)
        everywhere = self.group.all_reduce_min(missing).tolist()
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for parameter, none in zip(self.parameters, everywhere, strict=True):
            if not none:
                kinds.setdefault(parameter.dtype, []).append(parameter)
        parts = []
        for parameters in kinds.values():
            whole = torch.cat([flat(p.detach()) for p in parameters])
            pieces = whole.split([p.numel() for p in parameters])
            views = [w.as_strided(p.shape, p.stride()) for w, p in zip(pieces, parameters, strict=True)]
            parts.append((whole, parameters, views))
        return parts


def flat(tensor: Tensor) -> Tensor:
    """The numbers of a dense tensor in the order in which they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def flat_gradient(parameter: Tensor) -> Tensor:
    """The gradient of a parameter in the order in which that lies in memory; zeros where there is none."""
    gradient = parameter.grad
    if gradient is None:
        return flat(torch.zeros_like(parameter))
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return flat(gradient)
