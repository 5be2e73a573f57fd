"""The optimizer for pretraining: Muon for the matrices of the layers, AdamW for embeddings and norms."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from settings import Settings
from torch import Tensor, nn

BETAS = (0.9, 0.95)


class StackedMuon(torch.optim.Muon):
    """Muon that orthogonalizes all matrices of equal shape at once, because a GPU takes as long for one as for all.

    Its updates are those of PyTorch's Muon with ``adjust_lr_fn="match_rms_adamw"``, except for rounding.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:
                self._update([p for p in group["params"] if p.shape == shape], group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients: list[Any] = [p.grad for p in matrices]
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = orthogonalized(torch.stack(nesterov), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * max(matrices[0].shape) ** 0.5
        torch._foreach_add_(matrices, updates.float().unbind(), alpha=-group["lr"] * size)


def orthogonalized(
    matrices: Float[Tensor, "M R C"], coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Newton-Schulz iterations in bfloat16: moves the singular values of each matrix close to 1."""
    a, b, c = coefficients
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


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
    kind = StackedMuon if matrices[0].is_cuda else torch.optim.Muon
    muon = kind(matrices, lr=0.0, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
    return scaled(Together(muon, torch.optim.AdamW(rest, lr=0.0, betas=BETAS)))


def scaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["scale"] = 1.0
    return optimizer
