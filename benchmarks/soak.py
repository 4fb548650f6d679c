"""An hour of changes under traffic: is what each process of a lab needs flat?

Kinds of changes are drawn from those of ``living``, by a seed. Every block of traffic is followed by ``lab.reset()``
and a measurement, so that each one is of the same mesh: proportional memory (Pss), open descriptors and threads. An
instance that was started again is measured under its name, whichever generation of it runs.

How it is decided: the first third of the measurements is for warming up. What the last third needs at least may
exceed what the second third needs at least by ``MORE_MIB``, ``MORE_DESCRIPTORS``, ``MORE_THREADS``: a peak has an end,
and what is never given back raises the least as well. In an hour that finds what grows by 0.4 MiB a minute.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.living import KINDS, LAB, OPEN, RATE
from benchmarks.measure import Report, processes, pss_mib
from meshlab.errors import AuditError
from meshlab.lab import Lab, open_lab

MORE_MIB = 8.0
MORE_DESCRIPTORS = 8
MORE_THREADS = 2
_BLOCK_S = 20.0
_PAIRS = tuple(dict.fromkeys(pair for kind in KINDS.values() for pair in kind.pairs))


@dataclass(frozen=True, slots=True)
class Needs:
    """What one process needs at one moment."""

    mib: float
    """Pss."""
    descriptors: int
    threads: int


@dataclass(slots=True)
class Soak:
    """The figures that a run has measured."""

    needs: dict[str, list[Needs]] = field(default_factory=dict)
    """By the name of an instance, ``netd`` and ``owner``."""
    changes: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    wrong: int = 0
    """Bytes in plaintext and calls with a wrong identity."""
    audit: list[str] = field(default_factory=list)
    """The findings of the lab's audit, a line each."""

    def growing(self) -> list[str]:
        """What grows without bound, a sentence each."""
        found = []
        for name, needs in self.needs.items():
            found += _grown(name, "MiB", [one.mib for one in needs], MORE_MIB)
            found += _grown(name, "descriptors", [one.descriptors for one in needs], MORE_DESCRIPTORS)
            found += _grown(name, "threads", [one.threads for one in needs], MORE_THREADS)
        return found


def _grown(name: str, unit: str, values: Sequence[float], more: float) -> list[str]:
    third = len(values) // 3
    if not third:
        return []
    before, last = min(values[third : 2 * third]), min(values[2 * third :])
    return (
        [f"{name}: at least {before:.0f} {unit} in the second third, {last:.0f} in the last"]
        if last > before + more
        else []
    )


def run(rounds: int = 1, ztunnel: str = "reference", minutes: float = 10.0, seed: int = 0) -> Report:
    """Soak one lab for ``minutes``, as often as ``rounds`` says."""
    soaks = [_soak(ztunnel, minutes, seed + turn) for turn in range(rounds)]
    growing = [sentence for soak in soaks for sentence in (*soak.growing(), *soak.audit)]
    wrong = sum(soak.wrong for soak in soaks)
    return Report(
        name="soak",
        promise=f"no process needs more and more, in {minutes:g} minutes of changes under traffic",
        held=not growing and not wrong,
        figures={
            f"{name}_{at}_{unit}": value
            for soak in soaks
            for name, needs in soak.needs.items()
            for unit, values in (
                ("mib", [one.mib for one in needs]),
                ("descriptors", [one.descriptors for one in needs]),
            )
            for at, value in (("begin", values[0]), ("worst", max(values)), ("end", values[-1]))
        },
        lines=(
            *(line for soak in soaks for line in _lines(soak)),
            *growing,
            *([f"{wrong} bytes in plaintext or calls with a wrong identity"] if wrong else []),
        ),
    )


def _soak(ztunnel: str, minutes: float, seed: int) -> Soak:
    soak, rng = Soak(), random.Random(seed)  # noqa: S311 (no secret)
    with _keeping_the_audit(soak), open_lab(LAB, ztunnel=ztunnel) as lab:
        _measure(lab, soak)
        ends = time.monotonic() + minutes * 60
        while time.monotonic() < ends:
            _block(lab, rng, soak, min(ends, time.monotonic() + _BLOCK_S))
            lab.reset()
            _measure(lab, soak)
            print(f"soak: {sum(soak.changes.values())} changes, {soak.calls} calls, {_now(soak)}", file=sys.stderr)
    return soak


@contextmanager
def _keeping_the_audit(soak: Soak) -> Iterator[None]:
    """Keep what the audit of a lab finds: the figures of an hour are not thrown away for it."""
    try:
        yield
    except AuditError as error:
        soak.audit += str(error).splitlines()


def _block(lab: Lab, rng: random.Random, soak: Soak, until: float) -> None:
    with lab.traffic(_PAIRS, rate=RATE, open=max(1, OPEN // len(_PAIRS))) as traffic:
        while time.monotonic() < until:
            name = rng.choice(list(KINDS))
            for change in KINDS[name].turn(lab, rng.randrange(2)):
                change()
                made = traffic.calls_made
                traffic.wait_for(lambda made=made: traffic.calls_made > made)  # type: ignore[misc]
            soak.changes[name] = soak.changes.get(name, 0) + 1
    soak.calls += traffic.calls_made
    soak.wrong += traffic.in_plaintext + traffic.wrong_identity
    for sentence in [*traffic.leaks, *(str(one) for one in traffic.failures if one.call.answered)][:3]:
        print(f"soak: {sentence}", file=sys.stderr)


def _measure(lab: Lab, soak: Soak) -> None:
    names = {program.pid: str(program.id.first) for program in lab.site.programs.every.values() if program.pid}
    for name, pid in [("owner", os.getpid()), *sorted(processes(lab.sandbox, names).items())]:
        if not name.startswith("pid "):
            soak.needs.setdefault(name, []).append(_needs(pid))


def _needs(pid: int) -> Needs:
    folder = Path(f"/proc/{pid}")
    return Needs(pss_mib(pid), len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))


def _now(soak: Soak) -> str:
    owner = soak.needs["owner"][-1]
    return f"owner {owner.mib:.0f} MiB, {owner.descriptors} descriptors, {owner.threads} threads"


def _lines(soak: Soak) -> Iterable[str]:
    drawn = ", ".join(f"{count} {name}" for name, count in sorted(soak.changes.items()))
    yield f"{sum(soak.changes.values())} changes ({drawn}), {soak.calls} calls"
    yield f"{'begin, worst, end':22}{'MiB (Pss)':>22}{'descriptors':>22}{'threads':>16}"
    for name, needs in soak.needs.items():
        mib = _three([one.mib for one in needs])
        fds = _three([one.descriptors for one in needs])
        threads = _three([one.threads for one in needs])
        yield f"{name:22}{mib:>22}{fds:>22}{threads:>16}"


def _three(values: Sequence[float]) -> str:
    return f"{values[0]:.0f} {max(values):.0f} {values[-1]:.0f}"
