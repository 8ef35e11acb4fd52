"""What measurements depend on: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import optlayer
from optlayer.experiments.files import Row


def machine(device: torch.device) -> Row:
    """What the times depend on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "optlayer": optlayer.__version__,
        "commit": commit(),
    }


def processor() -> str:
    """Its name; Linux tells it in a file only."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this file's repository, with a mark if files differ from it; None when it lies in none."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("ls-files", "--error-unmatch", __file__) is None:  # an installed package may lie in another's repository
        return None
    return (git("describe", "--always", "--dirty") or "").strip() or None
