"""Memory: the machine's, or what a container leaves of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from salvage.project import machine

GIB = 1 << 30


def put(root: Path, path: str, text: str | int) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def v2(root: Path, folder: str, limit: str | int, used: int, idle: int = 0) -> None:
    put(root, f"{folder}/memory.max", limit)
    put(root, f"{folder}/memory.current", used)
    put(root, f"{folder}/memory.stat", f"anon 5\ninactive_file {idle}\nactive_file 7")


def v1(root: Path, folder: str, limit: int, used: int, idle: int = 0) -> None:
    put(root, f"{folder}/memory.limit_in_bytes", limit)
    put(root, f"{folder}/memory.usage_in_bytes", used)
    put(root, f"{folder}/memory.stat", f"inactive_file 1\ntotal_inactive_file {idle}")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    told = type("Memory", (), {"total": 64 * GIB, "available": 60 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    return tmp_path


def test_case_25_without_control_groups_it_is_the_machine_s(root: Path) -> None:
    assert machine.memory() == (64 * GIB, 60 * GIB)


def test_case_25_in_a_container_of_version_2_it_is_the_group_s(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/")
    v2(root, "sys/fs/cgroup", 8 * GIB, 5 * GIB, idle=2 * GIB)  # files that the kernel gives back are free
    assert machine.memory() == (8 * GIB, 5 * GIB)


def test_case_25_a_limit_of_a_group_above_holds_too(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/pods/mine")
    v2(root, "sys/fs/cgroup/pods/mine", "max", 1 * GIB)
    v2(root, "sys/fs/cgroup/pods", 16 * GIB, 15 * GIB)
    assert machine.memory() == (16 * GIB, 1 * GIB)


def test_case_25_in_a_container_of_version_1_the_path_is_the_host_s(root: Path) -> None:
    put(root, "proc/self/cgroup", "9:cpu:/\n4:rdma,memory:/docker/0123\n0::/")
    v1(root, "sys/fs/cgroup/memory", 4 * GIB, 3 * GIB, idle=GIB)
    assert machine.memory() == (4 * GIB, 2 * GIB)


def test_case_25_version_1_without_a_limit_is_a_number_that_no_machine_has(root: Path) -> None:
    put(root, "proc/self/cgroup", "4:memory:/")
    v1(root, "sys/fs/cgroup/memory", 9223372036854771712, 3 * GIB)
    assert machine.memory() == (64 * GIB, 60 * GIB)


def test_case_25_a_group_that_is_over_its_limit_has_nothing_free(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/a")
    v2(root, "sys/fs/cgroup/a", GIB, 2 * GIB)
    assert machine.memory() == (GIB, 0)


def test_case_25_the_vllm_engine_takes_the_smaller(root: Path, pair: tuple[Path, Path]) -> None:
    from salvage.engine.vllm import VllmEngine
    from salvage.errors import SalvageError

    put(root, "proc/self/cgroup", "0::/")
    v2(root, "sys/fs/cgroup", GIB // 256, 0)
    with pytest.raises(SalvageError, match=r"engine vllm may take 0\.00 GiB of the machine's 0\.00 GiB"):
        VllmEngine(*pair).cache()
