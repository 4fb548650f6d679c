"""A lab that lives long: traffic outside of windows, and then a window that still proves. Is memory flat meanwhile?

Each round sends some bodies through both node proxies, and makes some small calls: ``--rounds 64`` is 4 GiB of traffic,
four times of which is recorded, since each byte passes four links. What the owner needs in the second half of the
rounds is compared with the first. The recorder's memory is its own and the recording's, which has a bound.
``--minutes 60`` spreads the rounds over an hour; without it they follow each other at once.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field

from benchmarks.measure import Report, processes, pss_mib
from meshlab.kernel.recorder import DEFAULT_LIMIT_BYTES
from meshlab.kernel.recorder_requests import Position
from meshlab.lab import Lab, open_lab
from meshlab.model import Outcome
from meshlab.model.report import Result

BOUND_MIB = 32.0
"""How much more the second half may need: what the allocator keeps, and the stretch that is being followed."""
_BODIES = 4
_URL = "http://server:8080/"


@dataclass(slots=True)
class _Life:
    """One measurement, in MiB."""

    owner: list[float] = field(default_factory=list)
    """After each round."""
    recorder: list[float] = field(default_factory=list)
    seconds: float = 0.0
    recorded: float = 0.0
    lost: float = 0.0
    """Packets the recorder lost before the window opened."""
    proves: bool = False

    @property
    def growth(self) -> float:
        half = (len(self.owner) + 1) // 2
        return max(self.owner[half:], default=0.0) - max(self.owner[:half])


def run(rounds: int = 5, body_mib: int = 16, ztunnel: str = "reference", minutes: float = 0.0) -> Report:
    """Traffic outside windows; then one window."""
    with open_lab("two-nodes", ztunnel=ztunnel) as lab:
        life = _live(lab, rounds, body_mib, minutes * 60 / rounds)
    bounded = max(life.recorder) <= (DEFAULT_LIMIT_BYTES >> 20) + BOUND_MIB
    return Report(
        name="lifetime",
        promise=f"the last window proves, the owner grows by at most {BOUND_MIB:g} MiB, the recorder keeps its bound",
        held=life.proves and bounded and life.growth <= BOUND_MIB,
        figures={
            "recorded_mib": life.recorded,
            "recorded_mib_per_s": life.recorded / life.seconds,
            "lost_mib": life.lost,
            "owner_growth_mib": life.growth,
            "owner_most_mib": max(life.owner),
            "recorder_most_mib": max(life.recorder),
        },
        lines=(
            f"{rounds * _BODIES * body_mib} MiB of traffic outside windows in {life.seconds:.1f} s:"
            f" {life.recorded:.0f} MiB recorded ({life.recorded / life.seconds:.0f} MiB/s), {life.lost:.0f} MiB lost",
            f"owner:    {_range(life.owner)} (Pss)",
            f"recorder: {_range(life.recorder)} (Pss, and the recording)",
            f"the window at the end {'proves' if life.proves else 'DOES NOT PROVE'}",
        ),
    )


def _live(lab: Lab, rounds: int, body_mib: int, round_s: float) -> _Life:
    life, client = _Life(), lab.pod("shop/client")
    recorder = processes(lab.sandbox, {program.pid: name for name, program in lab.site.programs.by_name.items()})
    body = os.urandom(body_mib << 20)
    started = time.perf_counter()
    for done in range(rounds):
        time.sleep(max(0.0, started + done * round_s - time.perf_counter()))  # noqa: TID251 (an hour has to pass)
        for _ in range(_BODIES):
            assert client.http(_URL, method="POST", body=body, timeout_s=120).outcome is Outcome.OK
        lab.calls([client.plan_http(_URL)] * 50)
        print(f"lifetime: round {done + 1} of {rounds}", file=sys.stderr)
        life.owner.append(pss_mib(os.getpid()))
        life.recorder.append(pss_mib(recorder["recorder"]) + os.fstat(lab.captures.memfd).st_blocks / 2048)
    life.seconds = time.perf_counter() - started
    life.recorded = lab.captures.recorder.ask(Position())[0]["position"] / 2**20
    with lab.capture() as capture:
        call = client.http(_URL)
    life.proves = all(proof.result is Result.HELD for proof in [*capture.encrypted([call]), capture.path(call)])
    life.lost = capture.window.lost_before_bytes / 2**20
    return life


def _range(mib: list[float]) -> str:
    return f"{mib[0]:.0f} MiB after the first round, {max(mib):.0f} at most, {mib[-1]:.0f} at the end"
