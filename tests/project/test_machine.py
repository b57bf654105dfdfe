"""Memory in a container: of all limits the smallest counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from salvage.project.machine import memory

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {32 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {20 * 2**20} kB\n")
    return tmp_path / "proc"


def group(folder: Path, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_case_25_a_limit_below_the_machines_memory_counts(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    (proc / "self/cgroup").write_text("0::/\n")
    group(root, str(8 * GIB), 3 * GIB, cache=GIB)
    assert memory(proc, root) == (8 * GIB, 6 * GIB)
    group(root, "max", 3 * GIB)
    assert memory(proc, root) == (32 * GIB, 20 * GIB)


def test_a_group_further_up_counts_and_what_is_used_up_leaves_nothing(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    (proc / "self/cgroup").write_text("0::/pod/box\n")
    group(root / "pod/box", "max", GIB)
    group(root / "pod", str(4 * GIB), 5 * GIB)
    assert memory(proc, root) == (4 * GIB, 0)


def test_the_first_version_of_control_groups_is_read_too(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/box\n1:cpu:/\n")
    folder = tmp_path / "cgroup/memory/box"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {GIB // 2}\n")
    (folder.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder.parent / "memory.usage_in_bytes").write_text("0\n")
    assert memory(proc, tmp_path / "cgroup") == (2 * GIB, 3 * GIB // 2)


def test_where_there_are_no_control_groups_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("")
    assert memory(proc, tmp_path / "none") == (32 * GIB, 20 * GIB)


def test_this_machine_has_some() -> None:
    whole, free = memory()
    assert 0 < free < whole


def test_case_25_in_a_container_of_the_first_version_the_path_is_the_hosts(proc: Path, tmp_path: Path) -> None:
    (proc / "self/cgroup").write_text("4:rdma,memory:/docker/0123\n0::/\n")
    folder = tmp_path / "cgroup/memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {GIB}\n")
    assert memory(proc, tmp_path / "cgroup") == (4 * GIB, 2 * GIB)
