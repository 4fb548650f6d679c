"""``python -m benchmarks [NAME ...] [--json]``: run benchmarks, print what they measured, end 1 if a promise broke."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks import calls, hostile, lifetime, living, plugin, pods, soak, start, waypoint
from benchmarks.measure import Report

BENCHMARKS: Mapping[str, Callable[..., Report]] = {
    "plugin": plugin.run,
    "start": start.run,
    "pods": pods.run,
    "calls": calls.run,
    "lifetime": lifetime.run,
    "hostile": hostile.run,
    "living": living.run,
    "soak": soak.run,
    "waypoint": waypoint.run,
}
_LONG = ("living", "soak", "waypoint")
"""Only when they are named."""
_WITH_ZTUNNEL = ("start", "calls", "lifetime", "living", "soak", "waypoint")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    without_names = f"if none is given, all but {', '.join(_LONG)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; {without_names}")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument("--ztunnel", help=f"node proxy of {', '.join(_WITH_ZTUNNEL)}: reference, or [NAME=]PATH")
    parser.add_argument("--rounds", type=int, help="interleaved rounds, of which the median counts")
    parser.add_argument("--minutes", type=float, help="over which 'lifetime' spreads its rounds; how long 'soak' takes")
    parser.add_argument("--inputs", type=int, default=hostile.INPUTS, help="changed inputs of 'hostile', in sum")
    parser.add_argument("--each", type=int, metavar="N", help="changed inputs of 'hostile' for each parser, instead")
    parser.add_argument("--rows", help=f"of 'living', with commas between: {', '.join(living.KINDS)}")
    parser.add_argument("--times", type=int, metavar="N", help="turns of each row of 'living'; its own, if not given")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    reports = []
    for name in options.names or [name for name in BENCHMARKS if name not in _LONG]:
        chosen: dict[str, Any] = {"ztunnel": options.ztunnel} if options.ztunnel and name in _WITH_ZTUNNEL else {}
        if options.rounds is not None:
            chosen["rounds"] = options.rounds
        if name == "hostile":
            chosen |= {"inputs": options.inputs, "each": options.each}
        if name in ("lifetime", "soak") and options.minutes is not None:
            chosen["minutes"] = options.minutes
        if name == "living":
            chosen |= {"rows": options.rows.split(",") if options.rows else (), "times": options.times}
        reports.append(BENCHMARKS[name](**chosen))
        if not options.json:
            print(reports[-1].text(), flush=True)
    if options.json:
        print(json.dumps({"schemaVersion": 1, "benchmarks": [asdict(report) for report in reports]}, indent=2))
    return 0 if all(report.held for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
