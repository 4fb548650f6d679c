"""A proof before its result: who is proven what of, and the three ways in which that can end."""

from __future__ import annotations

from dataclasses import dataclass

from meshlab.model import Call, Family
from meshlab.model.report import Grade, Proof, Result


@dataclass(frozen=True, slots=True)
class Draft:
    """See the module. The fields are those of ``Proof``."""

    kind: str
    source: str
    to: str
    port: int
    family: Family
    grade: Grade
    control: str
    canaries: int
    number: int = 0
    """Of the call; 0 where the proof is of no single call."""

    @classmethod
    def of(cls, kind: str, call: Call, grade: Grade, control: str, canaries: int) -> Draft:
        """Begin a proof of one call."""
        to = call.to.rpartition(":")[0] or call.to
        return cls(kind, call.source, to, call.port, call.family, grade, control, canaries, call.number)

    def held(self, packets: int, reason: str) -> Proof:
        """End it as held, on so many packets; without a control nothing holds."""
        if not self.control:
            return self.cannot_tell("nothing shows that the opposite would have been seen: no beacon or no twin")
        return self._proof(Result.HELD, packets, reason)

    def failed(self, reason: str) -> Proof:
        return self._proof(Result.FAILED, 0, reason)

    def cannot_tell(self, reason: str) -> Proof:
        return self._proof(Result.CANNOT_TELL, 0, reason)

    def _proof(self, result: Result, packets: int, reason: str) -> Proof:
        which = f"#{self.number}" if self.number else ""
        return Proof(
            id=f"{self.kind}:{self.source}->{self.to}:{self.port}/{self.family}{which}",
            kind=self.kind,
            source=self.source,
            to=self.to,
            port=self.port,
            family=self.family,
            grade=self.grade,
            packets=packets,
            canaries=self.canaries,
            control=self.control,
            result=result,
            reason=reason,
        )
