"""Salvage tells which failed reasoning traces are fixable, and by what (arXiv:2606.05145)."""

__version__ = "0.1.0"
