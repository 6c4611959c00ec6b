"""This machine, its versions and the commit in, a few lines for the top of a table out."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "tokenizers", "onnxruntime", "openvino", "pyarrow", "ray")
FAST_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe() -> str:
    """Date, processor, cores, versions and commit; no names of hosts or folders."""
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return "\n".join(
        [
            f"{datetime.date.today().isoformat()}, commit {commit()}",
            f"{processor()}, {os.cpu_count()} CPU cores",
            f"Python {platform.python_version()}, {versions}",
        ]
    )


def device_line(device: str) -> str:
    """A line that names the GPU, where it is one."""
    return f"\n{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device == "cuda" else ""


def processor() -> str:
    """Its name, and which instructions it has that matrix products are fast with."""
    fields = _cpuinfo()
    found = ", ".join(name for name in FAST_SETS if name in fields.get("flags", "").split())
    return fields.get("model name", platform.machine()) + (f" ({found})" if found else "")


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo().get("flags", "").split())


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def commit() -> str:
    """The short hash, and whether the files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
