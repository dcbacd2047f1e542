"""Paths with two processes (gloo): DDP, FSDP2, tensor parallel. Also the script that torchrun starts."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from deployment.case import Case, difference, python, run, training_batch

TORCHRUN = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def ddp(case: Case) -> float:
    """Distributed data parallel training: against one process that has both halves of the batch."""
    return in_two(case, "ddp")


def fsdp(case: Case) -> float:
    """The same with the parameters sharded by FSDP2."""
    return in_two(case, "fsdp")


def tensor_parallel(case: Case) -> float:
    """transformers' `tp_plan="auto"`: the outputs."""
    return in_two(case, "tensor parallel")


def in_two(case: Case, how: str) -> float:
    """What the first of two processes finds."""
    words = [how, case.model, case.form, str(case.folder), str(case.scratch)]
    return float(run([*TORCHRUN, "-m", "deployment.parallel", *words]).split()[-1])


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Two steps of gradient descent, whose steps are as different as the gradients are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def found(how: str, case: Case) -> float:
    """How far this process is from the model as a whole."""
    if how == "tensor parallel":
        return case.difference_of(case.load(distributed_config=DistributedConfig(tp_plan="auto", tp_size=2)))
    rank, batch = dist.get_rank(), training_batch(case)
    # The steps multiply the rounding of sums in another order, up to 4e-4 in fp32: an identity is seen in fp64.
    whole, model, after = (case.load(dtype=torch.float64) for _ in range(3))
    step(whole, batch)
    half = {name: tensor.chunk(2)[rank] for name, tensor in batch.items()}
    if how == "ddp":
        trained: Any = torch.nn.parallel.DistributedDataParallel(model)
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        trained = fully_shard(model)
    step(trained, half)
    weights = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in model.state_dict().items()}
    after.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    with torch.no_grad():
        expected, outputs = (one(**case.inputs).logits for one in (whole, after))
    assert case.difference(expected) > 1e-3, "nothing was trained"
    return difference(outputs, expected)


def main() -> None:
    how, model, form, folder, scratch = sys.argv[1:]
    dist.init_process_group("gloo")
    result = found(how, Case(model, form, Path(folder), Path(scratch)))
    if dist.get_rank() == 0:
        print(result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
