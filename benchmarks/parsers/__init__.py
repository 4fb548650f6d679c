"""Every parser that a file or a peer can reach: what it is fed, which exceptions it documents, and what might slow it.

A seed is a good input, which is then changed at random. A shape is an input that grows: a parser whose time is linear
in the size takes eight times as long for the eightfold.
"""

from __future__ import annotations

from benchmarks.parsers import captures, channels, files, http, kernel, mesh, settings
from benchmarks.parsers.parser import Parser, Shape

__all__ = ("PARSERS", "Parser", "Shape")

PARSERS = (
    *http.PARSERS,
    *captures.PARSERS,
    *mesh.PARSERS,
    *channels.PARSERS,
    *kernel.PARSERS,
    *files.PARSERS,
    *settings.PARSERS,
)
