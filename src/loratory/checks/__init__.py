"""Faults of the data that would make a result mislead: duplicates, leaks, inconsistent labels.

In: a ``Split`` and a ``Renderer``. Out: a list of ``Finding`` objects. Read ``registry.py`` first.
"""

from loratory.checks.balance import few_examples
from loratory.checks.material import Material
from loratory.checks.registry import CHECKS, check_data, refuse_errors, with_waivers

__all__ = ["CHECKS", "Material", "check_data", "few_examples", "refuse_errors", "with_waivers"]
