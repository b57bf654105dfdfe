"""What this machine has."""

from __future__ import annotations

from pathlib import Path


def gpu() -> bool:
    """Tell whether a GPU is there. Torch is asked only where a driver is: its import takes seconds."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())
