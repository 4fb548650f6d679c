"""A lab that lives long: traffic outside of windows, and then a window that still proves. Is memory flat meanwhile?

Each round sends one body through both node proxies, then some small calls: ``--rounds 256`` makes 4 GiB of traffic,
four times of which is recorded, since each byte passes four links. The owner's memory counts from the end of
the first round. The recorder's is its own and the recording's, which has a bound.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.measure import Report, processes
from meshlab.kernel.recorder import DEFAULT_LIMIT_BYTES
from meshlab.lab import Lab, open_lab
from meshlab.model import Outcome
from meshlab.model.report import Result

BOUND_MIB = 64.0
"""How much the owner may grow, whatever passed: a stretch that is being followed, and what the allocator keeps."""


def run(rounds: int = 5, body_mib: int = 16, small_calls: int = 20) -> Report:
    """Traffic outside windows, in compressed time; then one window."""
    recorded_mib, seconds, owner, recorder = 0.0, 0.0, [], []
    with open_lab("two-nodes") as lab:
        client = lab.pod("shop/client")
        names = {program.pid: name for name, program in lab.site.programs.by_name.items()}
        pid = processes(lab.sandbox, names)["recorder"]
        body = os.urandom(body_mib << 20)
        started = time.perf_counter()
        for _ in range(rounds):
            assert client.http("http://server:8080/", method="POST", body=body, timeout_s=120).outcome is Outcome.OK
            lab.calls([client.plan_http("http://server:8080/")] * small_calls)
            owner.append(_pss_mib(os.getpid()))
            recorder.append(_pss_mib(pid) + os.fstat(lab.captures.memfd).st_blocks / 2048)
        seconds = time.perf_counter() - started
        recorded_mib = lab.captures.recorder.ask("position")[0]["position"] / 2**20
        proofs, lost_mib = _proofs(lab)
    growth = max(owner) - owner[0]
    return Report(
        name="lifetime",
        promise=f"the last window proves, the owner grows by at most {BOUND_MIB:g} MiB, the recorder keeps its bound",
        held=proofs and growth <= BOUND_MIB and max(recorder) <= (DEFAULT_LIMIT_BYTES >> 20) + BOUND_MIB,
        figures={
            "recorded_mib": recorded_mib,
            "recorded_mib_per_s": recorded_mib / seconds,
            "lost_mib": lost_mib,
            "owner_first_mib": owner[0],
            "owner_most_mib": max(owner),
            "owner_last_mib": owner[-1],
            "recorder_first_mib": recorder[0],
            "recorder_most_mib": max(recorder),
            "recorder_last_mib": recorder[-1],
        },
        lines=(
            f"{rounds * body_mib} MiB of traffic outside windows in {seconds:.1f} s,"
            f" {recorded_mib:.0f} MiB recorded ({recorded_mib / seconds:.0f} MiB/s), {lost_mib:.0f} MiB lost",
            f"owner:    {_range(owner)} (Pss)",
            f"recorder: {_range(recorder)} (Pss, and the recording)",
            f"the window at the end {'proves' if proofs else 'DOES NOT PROVE'}",
        ),
    )


def _range(mib: list[float]) -> str:
    return f"{mib[0]:.0f} MiB after the first round, {max(mib):.0f} at most, {mib[-1]:.0f} at the end"


def _proofs(lab: Lab) -> tuple[bool, float]:
    """Whether a window proves now, and how much the recorder could not keep before it."""
    with lab.capture() as capture:
        call = lab.pod("shop/client").http("http://server:8080/")
    proofs = [*capture.encrypted([call]), capture.path(call)]
    return all(proof.result is Result.HELD for proof in proofs), capture.window.lost_before_bytes / 2**20


def _pss_mib(pid: int) -> float:
    """Without the recording, a file in memory that nobody maps."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
