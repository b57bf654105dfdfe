"""What this machine has, and how much of it is ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def gpu() -> bool:
    """Tell whether a GPU is there. Torch is asked only where a driver is: its import takes seconds."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())


def memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Return the bytes of memory that this process may use, and those of them that are free.

    In a container both the machine and every control group above us set a limit; the smallest counts.
    """
    told = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    whole, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used in _limits(proc, cgroups):
        whole, free = min(whole, limit), min(free, max(0, limit - used))
    return whole, free


def _limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of every control group that holds this process, of either version."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names, cache = cgroups, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            root, cache = cgroups / "memory", "total_inactive_file"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None:
                yield limit, max(0, used - _statistic(folder / "memory.stat", cache))  # page cache is given back


def _number(file: Path) -> int | None:
    """Return the number in a file; None where there is no such file, or no limit."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _statistic(file: Path, name: str) -> int:
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get(name, 0))
