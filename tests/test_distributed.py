"""What workers have in common before they train, however they average their gradients. Real processes, no Ray."""

from __future__ import annotations

import pytest
from test_shared_mean import gang

BEGIN = """
from crayon.distributed import Group
shared_mean.MOST_WORKERS = {most}
torch.manual_seed(rank)  # another start on each
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
network[1].running_mean.normal_()
firsts = {{}}
for name, tensor in network.state_dict().items():
    firsts[name] = tensor.clone()
    dist.broadcast(firsts[name], 0)
group = Group(rank, world)
wrapped, average = group.data_parallel(network)
same = [torch.equal(tensor, firsts[name]) for name, tensor in network.state_dict().items()]
print(type(wrapped).__name__, all(same), flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.parametrize(("most", "wrapper"), [(8, "Sequential"), (0, "DistributedDataParallel")])
def test_workers_begin_with_the_weights_of_the_first(most, wrapper, tmp_path):
    for process in gang(BEGIN.format(most=most), 2, tmp_path):
        out, err = process.communicate(timeout=120)
        assert out == f"{wrapper} True\n", out + err
