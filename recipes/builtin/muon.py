"""The optimizer for pretraining: Muon for the matrices of the layers, AdamW for embeddings and norms."""

from collections.abc import Callable
from typing import Any

import torch
from settings import Settings
from torch import nn

BETAS = (0.9, 0.95)


class Together(torch.optim.Optimizer):
    """Several optimizers as one, with all parameter groups and a shared state."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        for part in parts:
            ids = {id(p) for group in part.param_groups for p in group["params"]}
            part.param_groups = [g for g in self.param_groups if all(id(p) in ids for p in g["params"])]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Makes the optimizer of ``settings``.

    Muon's updates are scaled to the size of AdamW's, so that both use the same learning rate (Liu et al., "Muon is
    Scalable for LLM Training", 2025). A group's learning rate is that of the step times its ``scale``. Vectors have no
    weight decay.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    tables = [p for p in model.parameters() if id(p) in embeddings]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    rest = [{"params": tables, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        rest.append({"params": matrices, "weight_decay": settings.weight_decay})
        return scaled(torch.optim.AdamW(rest, lr=0.0, betas=BETAS))
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return scaled(Together(muon, torch.optim.AdamW(rest, lr=0.0, betas=BETAS)))


def scaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    return optimizer
