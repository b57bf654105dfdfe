"""The paper's method in numpy: signals, features, operators, profiles (method.md)."""

from salvage.method.features import trajectory_features
from salvage.method.profiles import regimes
from salvage.method.signals import token_signals

__all__ = ["regimes", "token_signals", "trajectory_features"]
