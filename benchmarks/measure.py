"""What the benchmarks share: a promise and its figures, medians, and the CPU time of a lab's processes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshlab.kernel.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found."""

    name: str
    promise: str
    held: bool
    figures: Mapping[str, float] = field(default_factory=dict)
    """Name with its unit -> median."""
    lines: tuple[str, ...] = ()
    """The figures as people read them."""

    def text(self) -> str:
        verdict = "held" if self.held else "BROKEN"
        return "\n".join([f"{self.name}: {verdict}: {self.promise}", *(f"  {line}" for line in self.lines)])


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def spread(values: Iterable[float]) -> float:
    """How far apart the largest and the smallest are, as a share of the smallest: 0.25 is flat within 25 %."""
    known = list(values)
    return max(known) / min(known) - 1


def processes(sandbox: Sandbox, names: Mapping[int, str]) -> dict[str, int]:
    """Name -> our pid of each of a lab's processes, ``names`` being by the lab's own pids."""
    netd = int(_field("Pid", Path(f"/proc/self/fdinfo/{sandbox.netd_fd}").read_text()))
    found = {"netd": netd}
    for task in Path("/proc").glob("[0-9]*"):
        try:
            status = (task / "status").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if int(_field("PPid", status)) == netd:
            inside = int(_field("NSpid", status).split()[-1])
            found[names.get(inside, f"pid {inside}")] = int(task.name)
    return found


def _field(name: str, text: str) -> str:
    return re.findall(rf"^{name}:\s+(.*)$", text, re.MULTILINE)[0]  # type: ignore[no-any-return]


def cpu_s(pid: int) -> float:
    """User and system time of a process, all threads, to the nanosecond (man 3 clock_getcpuclockid, of which this is
    the number; Python has only that of threads)."""
    return time.clock_gettime(~pid << 3 | 2)


def pss_mib(pid: int) -> float:
    """The proportional memory of a process, without files in memory that nobody maps."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
