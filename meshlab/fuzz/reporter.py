"""What a campaign does with a failing example: makes it small, and writes the file that anyone replays."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from meshlab.errors import LabError, MeshlabError
from meshlab.fuzz.campaign import Drawn
from meshlab.fuzz.plan import Plan
from meshlab.fuzz.shrink import Shrunk, shrunk
from meshlab.fuzz.tally import Failure
from meshlab.play.bench import Bench
from meshlab.play.bugfile import name_of, written
from meshlab.play.faults import Wrong
from meshlab.version import __version__

_SHRINKING_S = 25.0
_LEAST_SHRINKING_S = 8.0


@dataclass(slots=True)
class Reporter:
    """Makes failures small and writes them; what has been written already is not new."""

    bench: Bench
    plan: Plan
    began: float
    stop: Callable[[], bool] = lambda: False
    unwanted: Callable[[], bool] = lambda: False
    """Whether enough failures were found elsewhere while this one was made small."""
    _shapes: set[str] = field(default_factory=set)

    def __call__(self, example: Drawn, wrong: Sequence[Wrong], before: Drawn | None) -> Failure | None:
        evidence = self._evidence(wrong[0]) if wrong[0].kind == "lost" else ""
        small = shrunk(self.bench, example, wrong, before, self._patience_s(), self.stop)
        name = name_of(small.topology, small.wrong.kind)
        if name in self._shapes or self.unwanted():
            return None
        self._shapes.add(name)
        rate = "" if small.result == "failed" else f" ({small.failed} of {small.runs} times)"
        path, unwritten = self._write(name, written(small.topology, self._comments(small, evidence)))
        return Failure(str(path), small.result, f"{small.wrong.text}{rate}{unwritten}")

    def unplayed(self, text: str) -> Failure:
        """A failure that no call shows: the topology itself, with the reason."""
        topology = self.bench.source.topology
        path, unwritten = self._write(name_of(topology, "lost"), written(topology, [text, *self._versions()]))
        return Failure(str(path), "failed", f"{text}{unwritten}")

    def _patience_s(self) -> float:
        """Not much longer than the campaign itself would have gone on."""
        if self.plan.limits.seconds is None:
            return _SHRINKING_S
        left = self.began + self.plan.limits.seconds - time.monotonic()
        return min(_SHRINKING_S, max(_LEAST_SHRINKING_S, left))

    def _comments(self, small: Shrunk, evidence: str) -> list[str]:
        played = f"Failed {small.failed} of {small.runs} times. Play it again: meshlab replay THIS-FILE"
        mutant = self.plan.settings.get("mutant")
        return [
            small.wrong.text,
            played + (f" --mutant {mutant}" if mutant else ""),
            f"Found by `meshlab fuzz`, seed {self.plan.seed}{f', with the mutant {mutant}' if mutant else ''}.",
            *(["There was no time to make it smaller."] if small.cut_short else []),
            *self._versions(),
            *([f"What the lab left: {evidence}"] if evidence else []),
        ]

    def _versions(self) -> list[str]:
        try:
            names = sorted(set(self.bench.lab.implementations.values()))
        except LabError:
            names = []
        return [f"meshlab {__version__}, {platform.system()} {platform.release()}, ztunnel: {', '.join(names)}"]

    def _evidence(self, wrong: Wrong) -> str:
        lab = self.bench.open
        folder = self.plan.artifacts / f"{self.plan.source.topology.name}-lost-{time.time_ns() // 10**6}"
        with suppress(MeshlabError, OSError):
            if lab is not None:
                lab.save(folder)
                (folder / "reason.txt").write_text(f"{wrong.text}\n", encoding="utf-8")
                return folder.name
        return ""

    def _write(self, name: str, text: str) -> tuple[Path, str]:
        """Write a file; its path, and the text itself with the reason where it could not be written."""
        path = self.plan.artifacts / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:  # a full disk must not cost what was found
            return path, f"; the file could not be written ({error.strerror}). This was to be in it:\n{text}"
        return path, ""
