"""Engines: a pair of models that answers. `base` is the interface, one module an implementation."""
