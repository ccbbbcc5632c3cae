"""What several workers have in common, and tell each other. Real processes, no Ray."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import python, tiny
from test_trainer import make
from torch import nn

from crayon.training.collectives import Group

WORKER = """
import os, torch, torch.distributed as dist
from torch import nn
from crayon.training.collectives import Group
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD"])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + os.environ["STORE"], rank=rank, world_size=world)
group = Group(rank, world)
"""
GRADIENTS = """
torch.manual_seed(rank)  # another start on each
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 1))
network[1].running_mean.normal_()
firsts = {}
for name, tensor in network.state_dict().items():
    firsts[name] = tensor.clone()
    dist.broadcast(firsts[name], 0)
parallel = group.data_parallel(network)
print(all(torch.equal(tensor, firsts[name]) for name, tensor in network.state_dict().items()))
x = torch.randn(4 * world, 3, 8, 8, generator=torch.Generator().manual_seed(5))
network.eval()  # the batch's statistics would be each worker's own
parallel.eval()(x.chunk(world)[rank]).square().mean().backward()
means = [p.grad.clone() for p in network.parameters()]
network.zero_grad()
network(x).square().mean().backward()
print(all(torch.allclose(p.grad, mean, atol=1e-6) for p, mean in zip(network.parameters(), means)), flush=True)
dist.barrier()
os._exit(0)
"""


def gang(code: str, world: int, folder: Path) -> list:
    common = {"WORLD": str(world), "STORE": str(folder / "store"), "GLOO_SOCKET_IFNAME": "lo"}
    return [python(WORKER + code, RANK=str(rank), **common) for rank in range(world)]


def test_workers_begin_with_the_weights_of_the_first_and_average_their_gradients(tmp_path):
    for process in gang(GRADIENTS, 3, tmp_path):
        out, err = process.communicate(timeout=120)
        assert out == "True\nTrue\n", out + err


COLLECT = """
def shown(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value
mine = torch.tensor([rank + 1.0, -rank])
print([shown(group.all_reduce_sum(mine)), shown(group.all_reduce_min(mine))])
print(mine.tolist() == [rank + 1.0, -rank])
print([group.reduce_flags(flags) for flags in (0, 1 << rank, 128 if rank == 1 else 0, 255)])
print([shown(part) for part in group.all_gather(torch.tensor([[rank, 10 * rank]]).T)])
print(shown(group.gather_rows(torch.full((2 * rank, 2), rank, dtype=torch.uint8))))
print(group.broadcast_object({"of": rank} if rank == 0 else None))
norm = nn.BatchNorm1d(2)
norm.running_mean.fill_(rank + 5), norm.num_batches_tracked.fill_(rank + 7), norm.weight.data.fill_(rank)
group.broadcast_buffers(norm)
print(norm.running_mean.tolist(), int(norm.num_batches_tracked), norm.weight.tolist() == [rank, rank], flush=True)
group.barrier()
os._exit(0)
"""


def test_what_workers_add_up_and_tell_each_other(tmp_path):
    expected = [
        "[[6.0, -3.0], [1.0, -2.0]]",
        "True",  # what was given stays as it was
        "[0, 7, 128, 255]",
        "[[[0], [0]], [[1], [10]], [[2], [20]]]",
        str([[1, 1]] * 2 + [[2, 2]] * 4),  # on the first
        "{'of': 0}",
        "[5.0, 5.0] 7 True",
    ]
    for rank, process in enumerate(gang(COLLECT, 3, tmp_path)):
        out, err = process.communicate(timeout=120)
        if rank > 0:
            expected[4] = "[]"
        assert out.splitlines() == expected, err


def test_alone_every_collective_operation_is_the_identity():
    group, tensor = Group(), torch.arange(4.0)
    assert group.all_reduce_sum(tensor) is group.all_reduce_min(tensor) is group.gather_rows(tensor) is tensor
    assert (
        group.all_gather(tensor) == [tensor]
        and group.reduce_flags(5) == 5
        and group.broadcast_object("x") == "x"
    )
    network = nn.Linear(2, 2)
    assert group.data_parallel(network) is network
    group.broadcast_buffers(network), group.barrier()


def test_three_workers_have_the_figures_of_one(tmp_path):
    """Also where the third has no batch of the split."""
    code = f"""
import sys
from pathlib import Path
from helpers import tiny
from test_trainer import make
folder = Path({str(tmp_path)!r})
config = tiny("autoencoder", eval__batch_size=100, global_batch_size=30)
trainer = make(config, folder / "many", group=group)
trainer.networks["autoencoder"].train()(trainer.splits.train.gather(torch.arange(30 + rank)).float() / 255)
for name in ("val", "test"):
    stats = trainer.evaluate(getattr(trainer.splits, name))
    torch.save([stats.sums, stats.rows], folder / f"{{name}}-{{rank}}")
os._exit(0)
"""
    for process in gang(code, 3, tmp_path):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    alone = make(tiny("autoencoder", eval__batch_size=100, global_batch_size=30), tmp_path / "one")
    alone.networks["autoencoder"].train()(alone.splits.train.gather(torch.arange(30)).float() / 255)
    assert len(alone.splits.val) <= 200  # so that the third worker has none of it
    for name in ("val", "test"):
        stats = alone.evaluate(getattr(alone.splits, name))
        for rank in range(3):
            sums, found = torch.load(tmp_path / f"{name}-{rank}", weights_only=True)
            assert found.keys() == stats.rows.keys() and sums.keys() == stats.sums.keys()
            assert all(torch.equal(found[key], value) for key, value in stats.rows.items())
            assert all(torch.allclose(sums[key], value, rtol=1e-12) for key, value in stats.sums.items())
