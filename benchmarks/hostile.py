"""What hostile input costs: each parser of ``parsers`` on changed inputs, and on inputs of 1, 2, 4 and 8 sizes.

An input may end in an exception that the parser documents, and in nothing else; none may take longer than
``DEADLINE_S``, or more memory than ``MOST_BYTES``. The same seed gives the same inputs, on however many cores.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

from benchmarks.measure import Report
from benchmarks.parsers import PARSERS, Parser, Shape

INPUTS = 100_000
PART = 10_000
"""Inputs that one process takes at a time."""
DEADLINE_S = 10.0
MOST_BYTES = 4 << 30
"""How much memory a process that feeds parsers may take."""
MOST_RATIO = 10.0
_SIZES = (1, 2, 4, 8)
_LONGEST_BYTES = 16 * 1024
_KEPT = 3
_TOKENS = (
    *(b"\0", b"\n", b"\r\n", b"\r\n\r\n", b"\xff", b"\x80", b" ", b"\t", b":", b"-", b"+", b"_", b"%", b"&a ", b"*a "),
    *(b"[", b"]", b"{", b"}", b'"', b"'", b",", b"?", b"!!int ", b"---\n", b"%YAML 1.3\n", b"<<", b"|", b">"),
    *(b"-1", b"0", b"0x10", b"1e999", b"5_0", b"65536", b"4294967296", b"18446744073709551616", b"9" * 5000),
    *(b"null", b"true", b"NaN", b"Infinity", b"\\ud800", b"\xe2\x80\xa8", b"\xd9\xa5", b"[" * 2000, b'{"a":' * 2000),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"mlc-",
        b"MESHLAB ",
        b"\x1f\x8b\x08",
        b"\x16\x03\x01",
    ),
)


@dataclass(slots=True)
class Findings:
    """The results of one parser over all its inputs."""

    name: str
    """The parser's name."""
    inputs: int = 0
    undocumented: int = 0
    examples: list[str] = field(default_factory=list)
    """The first undocumented outcomes, each with its input."""
    slowest_s: float = 0.0
    slowest_bytes: int = 0
    ratios: dict[str, float] = field(default_factory=dict)
    """Shape -> time of the eightfold input, in times of the single one."""

    def add(self, part: Findings) -> None:
        """Take in what more inputs of the same parser came to."""
        self.inputs += part.inputs
        self.undocumented += part.undocumented
        self.examples = (self.examples + part.examples)[:_KEPT]
        if part.slowest_s > self.slowest_s:
            self.slowest_s, self.slowest_bytes = part.slowest_s, part.slowest_bytes

    @property
    def worst(self) -> tuple[float, str]:
        return max(((ratio, shape) for shape, ratio in self.ratios.items()), default=(0.0, ""))

    @property
    def held(self) -> bool:
        return not self.undocumented and self.worst[0] <= MOST_RATIO


def run(rounds: int = 5, inputs: int = INPUTS, each: int | None = None) -> Report:
    """Feed every parser ``each`` inputs; without it, ``inputs`` in sum, by the parsers' shares."""
    whole = sum(parser.share for parser in PARSERS)
    wanted = {parser.name: each or max(1, round(inputs * parser.share / whole)) for parser in PARSERS}
    found = fed(wanted)
    for parser in PARSERS:  # afterwards and alone: processes side by side would measure each other
        found[parser.name].ratios = {name: ratio(parser, shape, rounds) for name, shape in parser.shapes.items()}
    return report(list(found.values()))


def fed(wanted: Mapping[str, int]) -> dict[str, Findings]:
    """Feed each of these parsers so many inputs, in as many processes as there are cores; a line as each is done.

    A parser's inputs come in parts of ``PART``, each with a seed of its own, so that one slow parser is spread too.
    """
    found = {name: Findings(name) for name in wanted}
    left = {name: -(-inputs // PART) for name, inputs in wanted.items()}
    started = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _bounded) as processes:
        parts = [
            processes.submit(feed_named, name, min(PART, inputs - start), 1 + start // PART)
            for name, inputs in wanted.items()
            for start in range(0, inputs, PART)
        ]
        for part in as_completed(parts):
            findings = part.result()
            name = findings.name
            found[name].add(findings)
            left[name] -= 1
            if not left[name]:
                taken = time.monotonic() - started
                print(f"{taken:7.1f} s  {name}: {found[name].inputs:,} inputs", file=sys.stderr, flush=True)
    return found


def _bounded() -> None:
    """A parser that takes more memory than this gets a MemoryError, which none documents."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def feed_named(name: str, inputs: int, seed: int) -> Findings:
    """``feed`` for another process, which has parsers of its own."""
    return feed(next(parser for parser in PARSERS if parser.name == name), inputs, seed)


def report(found: Sequence[Findings]) -> Report:
    examples = [f"{one.name}: {example}" for one in found for example in one.examples]
    return Report(
        name="hostile",
        promise=f"documented exceptions only, and at 8 times the size at most {MOST_RATIO:g} times the time",
        held=all(one.held for one in found),
        figures={
            "inputs": sum(one.inputs for one in found),
            "undocumented": sum(one.undocumented for one in found),
            "slowest_ms": max(one.slowest_s for one in found) * 1000,
            "worst_ratio": max(one.worst[0] for one in found),
        },
        lines=(
            f"{'parser':26}{'inputs':>9}{'undocumented':>14}{'slowest':>11}  {'8x size':>8}",
            *(_line(one) for one in found),
            *examples,
        ),
    )


def _line(one: Findings) -> str:
    ratio, shape = one.worst
    times = f"{ratio:7.1f}x  {shape}" if shape else "      -"
    return f"{one.name:26}{one.inputs:>9,}{one.undocumented:>14}{one.slowest_s * 1000:>8.1f} ms  {times}"


# --- changed inputs --------------------------------------------------------------------------------------------------


def feed(parser: Parser, inputs: int, seed: int = 1) -> Findings:
    """Run ``parser`` on so many changed seeds."""
    findings = Findings(parser.name)
    for data in changed(parser.seeds(), inputs, seed):
        started = time.perf_counter()
        fault = outcome(parser, data)
        taken = time.perf_counter() - started
        findings.inputs += 1
        if taken > findings.slowest_s:
            findings.slowest_s, findings.slowest_bytes = taken, len(data)
        if fault:
            findings.undocumented += 1
            if len(findings.examples) < _KEPT:
                findings.examples.append(f"{fault}: {data[:200]!r}")
            if taken >= DEADLINE_S:
                break  # the next ones that do not end would take as long
    return findings


def outcome(parser: Parser, data: bytes) -> str:
    """What ``data`` ended in, where that is not documented; empty where it is."""
    try:
        with _deadline():
            parser.run(data)
    except parser.documented:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


class _deadline:  # noqa: N801 - reads as a function
    """A parser that does not end is interrupted: its loops are Python's own."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise TimeoutError(f"not over after {DEADLINE_S:g} s")


def changed(seeds: Sequence[bytes], inputs: int, seed: int) -> Iterator[bytes]:
    """Seeds with one to five changes each: bytes, slices, tokens and parts of other seeds."""
    chance = random.Random(seed)  # noqa: S311 - the same inputs for the same seed
    for _ in range(inputs):
        data = chance.choice(seeds)
        for _ in range(chance.randint(1, 5)):
            data = _change(data, seeds, chance)
        yield data[:_LONGEST_BYTES]


def _change(data: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    start = chance.randint(0, len(data))
    end = min(len(data), start + chance.choice((0, 1, 1, 2, 4, 16, 64)))
    before, cut, after = data[:start], data[start:end], data[end:]
    match chance.randrange(7):
        case 0:
            return before + bytes(byte ^ 1 << chance.randrange(8) for byte in cut) + after
        case 1:
            return before + after
        case 2:
            return before + cut * chance.choice((2, 3, 100)) + after
        case 3:
            return before + chance.choice(_TOKENS) + after
        case 4:
            other = chance.choice(seeds)
            at = chance.randint(0, len(other))
            return before + other[at:]
        case 5:
            return before + chance.randbytes(len(cut)) + after
        case _:
            at = chance.randint(0, len(after))
            return before + after[:at] + cut + after[at:]


# --- growing inputs --------------------------------------------------------------------------------------------------


def ratio(parser: Parser, shape: Shape, rounds: int) -> float:
    """The time of the eightfold input, in times of the single one; of each size the best of the rounds counts."""
    grown = {size: shape(parser.unit * size) for size in _SIZES}
    best = {size: min(_seconds(parser, data) for _ in range(rounds)) for size, data in grown.items()}
    return best[_SIZES[-1]] / best[_SIZES[0]]


def _seconds(parser: Parser, data: bytes) -> float:
    """CPU time: what else the machine does must not count. Nor does the garbage collector, as in ``timeit``."""
    gc.disable()
    started = time.process_time()
    fault = outcome(parser, data)
    taken = time.process_time() - started
    gc.enable()
    return DEADLINE_S * len(_SIZES) if fault else max(taken, _LEAST_S)


_LEAST_S = 1e-4
"""Less than this cannot be told from nothing."""
