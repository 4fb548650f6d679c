"""What a campaign of ``meshlab fuzz`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlab.fuzz.campaign import Limits
from meshlab.lab.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a campaign is told."""

    source: Source
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the labs: ``ztunnel``, ``mutant`` ..."""
    seed: int
    corpus: Path | None
    artifacts: Path
    """Where files of failures go."""
    limits: Limits
    workers: int = 1
    histories: bool = False
    """Whether an example is what happens to a living mesh."""
