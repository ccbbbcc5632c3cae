"""What several workers have in common, and tell each other. Real processes, no Ray."""

from __future__ import annotations

import pytest
from gang import gang
from helpers import tiny

from crayon.training.batchnorm import synchronised

GRADIENTS = """
torch.manual_seed(rank)  # another start on each
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 1))
network[1].running_mean.normal_()
firsts = {}
for name, tensor in network.state_dict().items():
    firsts[name] = tensor.clone()
    dist.broadcast(firsts[name], 0)
group.broadcast_weights(network)
print(all(torch.equal(tensor, firsts[name]) for name, tensor in network.state_dict().items()))
x = torch.randn(4 * world, 3, 8, 8, generator=torch.Generator().manual_seed(5))
network.eval()  # the batch's statistics would be each worker's own
network.to(memory_format=torch.channels_last)
unused, seldom = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
gradients = Gradients([*network.parameters(), unused, seldom], group)
for step in range(2):
    for p in gradients.parameters:
        p.grad = None
    loss = network(x.chunk(world)[rank]).square().mean()
    ((loss + seldom.sum() if rank == 1 else loss) / world).backward()
    gradients.gather()
    gradients.add_up()
means = [p.grad.clone() for p in network.parameters()]
print(unused.grad, seldom.grad.tolist() == [torch.tensor(1 / world)] * 2)
network.zero_grad()
network(x).square().mean().backward()
print(all(torch.allclose(p.grad, mean, atol=1e-6) for p, mean in zip(network.parameters(), means)))
"""


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
print(norm.running_mean.tolist(), int(norm.num_batches_tracked), norm.weight.tolist() == [rank, rank])
group.barrier()
"""


def test_workers_begin_alike_average_their_gradients_and_tell_each_other(tmp_path):
    expected = [
        "True",  # all have the weights of the first
        "None True",  # a gradient that nobody has stays none, of one that some have the others' are zeros
        "True",  # and the mean gradients
        "[[6.0, -3.0], [1.0, -2.0]]",
        "True",  # what was given stays as it was
        "[0, 7, 128, 255]",
        "[[[0], [0]], [[1], [10]], [[2], [20]]]",
        str([[1, 1]] * 2 + [[2, 2]] * 4),  # on the first
        "{'of': 0}",
        "[5.0, 5.0] 7 True",
    ]
    first, *others = (out.splitlines() for out in gang(GRADIENTS + COLLECT, 3, tmp_path))
    assert first == expected
    expected[7] = "[]"
    assert others == [expected, expected]


@pytest.mark.parametrize(
    ("asked", "images", "workers", "shared"),
    [
        ("auto", 64, 2, False),
        ("auto", 63, 2, True),
        ("auto", 8, 1, False),
        ("on", 640, 2, True),
        ("on", 8, 1, False),
        ("off", 8, 2, False),
    ],
)
def test_statistics_are_shared_where_a_workers_own_would_be_noise(asked, images, workers, shared):
    config = tiny("mnist", sync_batchnorm=asked, global_batch_size=images)
    assert synchronised(config, workers) is shared


GATHER = """
from crayon.training import worker; from crayon import tasks
from crayon.training.evaluation import evaluate
from crayon.training.optimizer import Average
config = tiny("mnist", eval__batch_size=7)
splits = worker.load_data(config)
torch.manual_seed(0)
task = tasks.build(config, splits.info())
task.networks["classifier"].train()(torch.rand(8 + rank, 1, 16, 16))
Average(task.networks, 0.0).copy_buffers(group)  # BatchNorm's are rank 0's then
few = splits.val.select(torch.arange(20))  # three batches: two of rank 0's, one of rank 1's
both = evaluate(task, task.networks, few, config, group)
assert evaluate(task, task.networks, few, config, group, rows=False).rows == {}
one = evaluate(task, task.networks, few.select(torch.arange(5)), config, group)  # none of rank 1's
alone = evaluate(task, task.networks, few, config, Group())
assert both.sums.keys() == alone.sums.keys()
assert all(torch.allclose(both.sums[name], value, rtol=1e-12) for name, value in alone.sums.items())
if rank == 0:
    assert set(both.rows) == set(alone.rows) and len(one.rows["labels"]) == 5
    assert torch.equal(both.rows["labels"], few.labels)
    assert all(torch.equal(both.rows[name], value) for name, value in alone.rows.items())
else:
    assert both.rows == one.rows == {}
"""


IMAGES = """
from crayon import BadInput
from crayon.training.data_history import check_workers
here, said = splits.fingerprint["train"], []
other = {"digest": "ff" * 8} if rank else {}
for part, classes in ((here, "0"), (here | other, "0"), (here | {"images": 300 - rank}, "0"), (here, str(rank))):
    named = splits.train.__class__("n", splits.train.storage, splits.train.labels, (classes,))
    try:
        check_workers(splits._replace(train=named, fingerprint={"train": part}), group, lambda e: said.append(e.text))
        print(said if rank == 0 else [])
    except BadInput as error:
        print("refused" if "bring the same ones to all of them" in str(error) else error)
"""


def test_two_workers_have_the_figures_of_one_and_the_first_has_the_rows(tmp_path):
    """In the split's order, also where one has no batch; and none where an epoch's end needs the sums only.
    And both must have as many images of the same classes."""
    first, other = gang(GATHER + IMAGES, 2, tmp_path)
    assert (
        first.splitlines()
        == [
            "[]",
            "['The machines of this run have as many images, but not the same ones, or decode them otherwise.']",
        ]
        + ["refused"] * 2
    )
    assert other.splitlines() == ["[]", "[]"] + ["refused"] * 2
