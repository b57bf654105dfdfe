"""What this machine has, and how much of it is ours: in a container less than the machine says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # where the kernel's files lie


def gpu() -> bool:
    """Tell whether a GPU is there. Torch is asked only where a driver is: its import takes seconds."""
    if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return bool(torch.cuda.is_available())


def memory() -> tuple[int, int]:
    """Return the bytes that this process may have in all, and those that are free now.

    The machine's, or those of the tightest control group that the process is in, whichever is smaller.
    """
    import psutil

    machine = psutil.virtual_memory()
    whole, free = int(machine.total), int(machine.available)
    for limit, used in _groups():
        whole, free = min(whole, limit), min(free, max(0, limit - used))
    return whole, free


def _groups() -> Iterator[tuple[int, int]]:
    """Yield limit and use of the control groups around this process that have a limit, of either version."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [ROOT / "sys/fs/cgroup", ROOT / "sys/fs/cgroup/unified"]
            names = ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            mounts = [ROOT / "sys/fs/cgroup/memory"]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        else:
            continue
        # a parent's limit holds too; in a container the path is the host's, and what is ours lies at the top
        inner = Path(path.lstrip("/"))
        for mount in mounts:
            for folder in (mount / inner, *(mount / parent for parent in inner.parents)):
                if (found := _group(folder, *names)) is not None:
                    yield found


def _group(folder: Path, limit: str, used: str, idle: str) -> tuple[int, int] | None:
    """Return a group's limit and what it uses without the files that the kernel would give back; None: no limit."""
    try:
        most, now = ((folder / name).read_text().strip() for name in (limit, used))
        if most == "max":
            return None
        stat = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return None
    back = sum(int(line.removeprefix(idle)) for line in stat if line.startswith(idle))
    return int(most), max(0, int(now) - back)
