"""``python -m benchmarks [NAME ...] [--json]``: run benchmarks, print what they measured, end 1 if a promise broke."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks import calls, hostile, lifetime, plugin, pods, start
from benchmarks.measure import Report

BENCHMARKS: Mapping[str, Callable[..., Report]] = {
    "plugin": plugin.run,
    "start": start.run,
    "pods": pods.run,
    "calls": calls.run,
    "lifetime": lifetime.run,
    "hostile": hostile.run,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all, if none is given")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument("--ztunnel", help="node proxy of 'start', 'calls' and 'lifetime': reference, or [NAME=]PATH")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, of which the median counts")
    parser.add_argument("--minutes", type=float, default=0.0, help="over which 'lifetime' spreads its rounds")
    parser.add_argument("--inputs", type=int, default=hostile.INPUTS, help="changed inputs of 'hostile', in sum")
    parser.add_argument("--each", type=int, metavar="N", help="changed inputs of 'hostile' for each parser, instead")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    reports = []
    for name in options.names or BENCHMARKS:
        chosen: dict[str, Any] = (
            {"ztunnel": options.ztunnel} if options.ztunnel and name in {"start", "calls", "lifetime"} else {}
        )
        if name == "hostile":
            chosen = {"inputs": options.inputs, "each": options.each}
        if name == "lifetime":
            chosen["minutes"] = options.minutes
        reports.append(BENCHMARKS[name](rounds=options.rounds, **chosen))
        if not options.json:
            print(reports[-1].text(), flush=True)
    if options.json:
        print(json.dumps({"schemaVersion": 1, "benchmarks": [asdict(report) for report in reports]}, indent=2))
    return 0 if all(report.held for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
