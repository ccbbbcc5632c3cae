"""What a figure was measured on: versions and hardware."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DISTRIBUTION = "crayon-ray"
"""What the package is called where packages are installed from; `crayon` there is another one."""


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
        "torch": str(torch.__version__),  # a class of torch's, for which a reader of it would import torch
        "torchvision": metadata.version("torchvision"),
        "ray": metadata.version("ray"),
        "cuda": torch.version.cuda if gpus else None,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cpu_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory() / 2**30, 1),
        "gpus": gpus,
    }


_WITHOUT_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
"""Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from instructions for bfloat16."""


def arithmetic(precision: str, device: torch.device) -> str:
    """What convolutions under a setting of `precision` really compute in: bf16, fp32, or tf32, float32 of which factors
    are rounded to 11 bits, as cuDNN does from compute capability 8.0 on."""
    import torch

    rounds = precision == "fp32" and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return "tf32" if rounds and computes_bf16(device) else precision


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


def usable_cores(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: as many as its affinity (taskset, a cpuset) and the CPU quotas of its
    control groups (containers, batch systems) leave it, of which a part counts as one.

    `os.cpu_count()` tells the machine's; torch and OpenMP start as many threads as the affinity has.
    root: where /proc and /sys are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # -1 or "max" where there is no limit
                cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def is_loopback(host: str) -> bool:
    """Whether an address, or a name, is that of this machine for itself alone."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups that limit this process: its own and those around it, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
            own = mounted / path.lstrip("/")
            yield own
            yield from (parent for parent in own.parents if parent.is_relative_to(mounted))


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_kills(root: Path = Path("/")) -> int:
    """How many processes of this one's control groups the kernel has killed for want of memory so far; 0 where it
    doesn't count them. root: where /proc and /sys are."""
    found = 0
    for group in _control_groups(root, "memory"):
        for counts in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                lines = dict(line.split() for line in (group / counts).read_text().splitlines())
                found += int(lines.get("oom_kill", 0))
    return found


def memory() -> int:
    """Bytes of memory: the machine's, or the least that a control group (a container, a batch system) leaves it."""
    import psutil

    found = [psutil.virtual_memory().total]
    for group in _control_groups(Path("/"), "memory"):
        for limit in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
                found.append(int((group / limit).read_text()))
    return min(found)
