"""Loratory teaches a language model your task on your own machine and proves that it learned it."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratory.config import Config
    from loratory.errors import UserError
    from loratory.finetune import evaluate_run, finetune, train_only
    from loratory.predict import Tuned, load

__all__ = ["Config", "Tuned", "UserError", "evaluate_run", "finetune", "load", "train_only"]
_HOMES = {
    "Config": "config",
    "UserError": "errors",
    "finetune": "finetune",
    "train_only": "finetune",
    "evaluate_run": "finetune",
    "load": "predict.tuned",
    "Tuned": "predict.tuned",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that the command line's help does not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'loratory' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"loratory.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """Importing the module finetune puts the module under that name; the public name stays the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in _HOMES and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
