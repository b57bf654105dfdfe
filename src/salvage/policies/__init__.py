"""What to try on a failure: the paper's rule, and policies that learn from attempts."""

from salvage.policies.rule import Rule, route_batch

__all__ = ["Rule", "route_batch"]
