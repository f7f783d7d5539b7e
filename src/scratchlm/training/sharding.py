"""Weights, gradients and optimizer state cut over the processes (FSDP), with checkpoints as one process writes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scratchlm.model.gpt import GPT


def shard(gpt: GPT, mesh: DeviceMesh) -> None:
    """Cuts a network over the processes of a mesh, block by block: each is gathered when its turn comes.

    Args:
        gpt: The network, whole on each process; its parameters are replaced.
        mesh: The processes.

    Source:
        Zhao et al., PyTorch FSDP, https://arxiv.org/abs/2304.11277, in torch's second version: `fully_shard`.
    """
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(gpt, mesh=mesh)
    register_fsdp_forward_method(gpt, "hidden")  # training never calls forward


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process holds a part, gathered; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_finite(gpt: nn.Module, optimizer: Optimizer) -> bool:
    """Whether every weight and every number of the optimizer's state is finite; waits for the device."""
    tensors = [*gpt.parameters(), *(t for state in optimizer.state.values() for t in state.values())]
    verdicts = [whole(torch.isfinite(tensor).all()) for tensor in tensors if isinstance(tensor, torch.Tensor)]
    # The step counts of a fused AdamW may lie elsewhere than the weights.
    return all(bool(torch.stack([v for v in verdicts if v.device == d]).all()) for d in {v.device for v in verdicts})


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`; its checkpoints are one file, the same for any number of processes.

    Lightning 2.6 numbers the parameters in an optimizer's state as the network lists them, and torch as the
    optimizer's groups do: with two groups, moments would come back to other weights.
    """

    def __init__(self, n_processes: int) -> None:
        """Shards over all processes.

        Args:
            n_processes: Their number.
        """
        super().__init__(n_processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state on the first process, as the optimizer of a single one would give it; nothing on others."""
        raw = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        named = get_optimizer_state_dict(self.model, raw, options=options)
        if not self.is_global_zero:
            return {}
        return _renamed(named, {name: number for number, name in enumerate(_listed(named))})

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint of any number of processes; each takes its part."""
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            in_order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            named = _renamed(saved, dict(zip(_listed(saved), in_order, strict=True)))
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def _listed(state: dict[str, Any]) -> Iterator[Any]:
    for group in state["param_groups"]:
        yield from group["params"]


def _renamed(state: dict[str, Any], names: dict[Any, Any]) -> dict[str, Any]:
    groups = [group | {"params": [names[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[key]: value for key, value in state["state"].items()}, "param_groups": groups}
