"""From nothing to a lab in which everything is in effect, against the imports that it cannot do without.

Quickstart: 2 nodes, 6 pods, reference ztunnels, certificates issued, every configuration acknowledged. The owner has
imported meshlab before. *cold* is a process' first lab, for which the fork server starts and imports too; *warm* is the
second.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import Report, median
from meshlab.lab.running.programs import WARM

BOUND = 3.0
_OWNER = "meshlab.lab.proving.check"
_IMPORT = """
import time
started = time.perf_counter()
import {modules}
print(time.perf_counter() - started)
"""
_LABS = """
import json, sys, time
import {owner}
from meshlab.lab import open_lab
from meshlab.lab.sources import read
source = read("quickstart")
ready = []
for _ in range(2):
    started = time.perf_counter()
    with open_lab(source, ztunnel=sys.argv[1]):
        ready.append(time.perf_counter() - started)
print(json.dumps(ready))
"""


def run(rounds: int = 5, ztunnel: str = "reference") -> Report:
    """Both in turn, each in an interpreter of its own."""
    imports, cold, warm = [], [], []
    for _ in range(rounds):
        imports.append(float(_python(_IMPORT.format(modules=", ".join([_OWNER, *WARM])))))
        first, second = json.loads(_python(_LABS.format(owner=_OWNER), ztunnel))
        cold.append(first)
        warm.append(second)
    import_s, cold_s, warm_s = median(imports), median(cold), median(warm)
    return Report(
        name="start",
        promise=f"nothing to ready takes at most {BOUND:g} times the import of all that a lab loads",
        held=cold_s <= BOUND * import_s,
        figures={
            "import_s": import_s,
            "cold_s": cold_s,
            "warm_s": warm_s,
            "cold_ratio": cold_s / import_s,
            "warm_ratio": warm_s / import_s,
        },
        lines=(
            f"import in a fresh interpreter: {import_s * 1000:5.0f} ms (medians of {rounds} rounds; {ztunnel})",
            f"a process' first lab:          {cold_s * 1000:5.0f} ms, {cold_s / import_s:.2f} times the import",
            f"its second lab:                {warm_s * 1000:5.0f} ms, {warm_s / import_s:.2f} times the import",
        ),
    )


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout
