"""What a figure was measured on: versions and hardware."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def environment() -> dict[str, Any]:
    """Versions of the libraries that decide figures, and the hardware, as plain JSON values.

    `cpu_cores` are those this process may use; `memory_gib` is the smaller of the machine's and the container's.
    """
    import torch

    from crayon import __version__

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "crayon": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "ray": _version("ray"),
        "cuda": torch.version.cuda if gpus else None,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory() / 2**30, 1),
        "gpus": gpus,
    }


_WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from instructions for bfloat16."""


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies in bfloat16, rather than emulating it many times slower than float32.

    GPUs do from compute capability 8.0 on, x86 processors with AVX-512 BF16 or AMX. Others are not known to: on ARM it
    was not tried.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # oneDNN reads either name, in any case.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    has = torch.cpu.get_capabilities()
    return limit.lower() not in _WITHOUT_BF16 and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    import psutil

    found = [psutil.virtual_memory().total]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return min(found)
