"""What the record says about the machine, and how busy others kept it."""

import os
import platform
import resource
import time
from pathlib import Path

# The flags that decide which kernels an engine takes.
TELLING_FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512", "amx")


def cpu():
    """Model name and flags as Linux says them; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown", []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): text.strip() for name, text in pairs}
    return fields.get("model name", "unknown"), fields.get("flags", "").split()


def describe():
    model, flags = cpu()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": sorted(flag for flag in flags if flag.startswith(TELLING_FLAGS)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


class OtherLoad:
    """How many cores everything but our own children kept busy since this was made; None where the system is silent.

    Engines whose threads wait for one another by spinning lose far more than their share to a busy neighbour, so a
    figure without this is worth little.
    """

    def __init__(self):
        self.started = time.monotonic()
        self.busy = busy_seconds()
        self.own = own_seconds()

    def cores(self):
        busy = busy_seconds()
        if busy is None or self.busy is None:
            return None
        others = (busy - self.busy) - (own_seconds() - self.own)
        return round(max(others, 0) / (time.monotonic() - self.started), 2)


def busy_seconds():
    """CPU time of the whole machine: user, nice, system, irq, softirq and steal."""
    try:
        numbers = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return None
    return (sum(numbers[:3]) + sum(numbers[5:8])) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    """CPU time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
