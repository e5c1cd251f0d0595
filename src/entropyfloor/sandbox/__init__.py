"""Run Python that a model wrote against tests that you trust. Needs neither torch nor trl."""

from entropyfloor.sandbox.local import LocalSandbox
from entropyfloor.sandbox.program import Limits, Outcome, Program, Sandbox, Status

__all__ = ["Limits", "LocalSandbox", "Outcome", "Program", "Sandbox", "Status"]
