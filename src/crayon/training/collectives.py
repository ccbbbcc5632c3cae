"""The few collective operations that the loop needs. With one worker every one of them is the identity."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_SYNC_BUFFERS = "forward_sync_buffers"  # what torch calls `broadcast_buffers` from 2.15 on
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


class Group:
    """The workers of a run: `rank` of `world_size`, over the default process group when there are several."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | str = "cpu"):
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """What to run forward in `network`'s place: backward then averages gradients over the workers. All of them
        begin with rank 0's weights."""
        if self.world_size == 1 or not any(p.requires_grad for p in network.parameters()):
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Rank 0's buffers are the ones evaluated and saved: a broadcast in every forward pass would buy nothing.
        unsynced: Any = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(network, device_ids=ids, **unsynced)

    @torch.no_grad()
    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give every worker rank 0's BatchNorm statistics, so that all evaluate the same model."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_min(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, dist.ReduceOp.MIN)

    def _all_reduce(self, tensor: Tensor, op: Any) -> Tensor:
        if self.world_size > 1:
            tensor = tensor.to(self.device, copy=True)
            dist.all_reduce(tensor, op=op)
        return tensor

    def reduce_flags(self, flags: int) -> int:
        """Bitwise union of every worker's flags (up to 8 of them)."""
        if self.world_size == 1:
            return flags
        bits = self._all_reduce(torch.tensor([flags >> i & 1 for i in range(8)]), dist.ReduceOp.MAX)
        return sum(int(bit) << i for i, bit in enumerate(bits.tolist()))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every worker's tensor (same shape and dtype), in rank order, on every worker."""
        if self.world_size == 1:
            return [tensor]
        tensor = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return parts

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Rank 0: every worker's rows, in rank order; workers may hold different numbers of them. Others: nothing."""
        if self.world_size == 1:
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
        if self.world_size == 1:
            return value
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()
