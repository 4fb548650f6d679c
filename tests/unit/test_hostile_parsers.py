"""Whatever bytes come from a file or a peer, a parser ends in an exception that it documents, or in none."""

from __future__ import annotations

import pytest

from benchmarks import hostile
from benchmarks.parsers import PARSERS, Parser

INPUTS = 300


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_each_seed_is_a_good_input(parser: Parser) -> None:
    for seed in parser.seeds():
        parser.run(seed)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_changed_inputs_end_in_documented_exceptions_only(parser: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "DEADLINE_S", 5.0)
    found = hostile.feed(parser, max(10, round(INPUTS * parser.share)))
    assert found.examples == []


_SENSELESS = {
    "request to the recorder": (
        b'{"id": 1, "op": "position", "after": "a"}',
        b'{"id": 1, "op": "position", "timeout_s": 1e300}',
        b'{"id": 1, "op": "position", "timeout_s": NaN}',
        b'{"id": 1, "op": "log_since", "places": "a"}',
        b'{"id": 1, "op": {}}',
        b"{}",
    ),
    "request to the agent": (
        b'{"id": 1, "op": "enrol", "pods": [], "timeout_s": 1e300}',
        b'{"id": 1, "op": "enrol", "pods": "a"}',
        b'{"id": 1, "op": "remove", "uids": 3}',
        b"{}",
    ),
    "request to the plane": (b'{"id": 1, "op": "set", "resources": []}', b'{"id": 1, "op": "set"}', b"{}"),
    "request to the echo": (b'{"id": 1, "op": "received"}', b"{}"),
}


@pytest.mark.parametrize(("name", "request_"), [(name, one) for name, many in _SENSELESS.items() for one in many])
def test_a_request_that_makes_no_sense_ends_no_program(name: str, request_: bytes) -> None:
    (parser,) = (parser for parser in PARSERS if parser.name == name)
    parser.run(request_)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_each_growing_input_ends_in_documented_exceptions_only(parser: Parser) -> None:
    for shape in parser.shapes.values():
        assert hostile.outcome(parser, shape(20)) == ""


def test_the_same_seed_gives_the_same_inputs() -> None:
    seeds = (b"MESHLAB echo x\n", b"GET / HTTP/1.1\r\n")
    assert list(hostile.changed(seeds, 100, seed=7)) == list(hostile.changed(seeds, 100, seed=7))
    assert len(set(hostile.changed(seeds, 100, seed=7))) > 50


def test_parsers_are_fed_in_other_processes_and_each_is_told_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostile, "PART", 20)
    found = hostile.fed({"frames": 50, "URL": 1})
    assert {name: (one.inputs, one.undocumented) for name, one in found.items()} == {"frames": (50, 0), "URL": (1, 0)}
    assert sorted(line.split("  ")[-1] for line in capsys.readouterr().err.splitlines()) == [
        "URL: 1 inputs",
        "frames: 50 inputs",
    ]


def test_an_undocumented_outcome_and_one_that_does_not_end_are_told_with_their_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hostile, "DEADLINE_S", 0.05)

    def breaks(data: bytes) -> None:
        raise KeyError(data)

    def hangs(data: bytes) -> None:
        while data is not None:
            pass

    broken = hostile.feed(Parser(name="breaks", run=breaks, seeds=lambda: (b"x",)), 10)
    hanging = hostile.feed(Parser(name="hangs", run=hangs, seeds=lambda: (b"x",)), 10)
    assert (broken.undocumented, len(broken.examples), broken.examples[0][:8]) == (10, 3, "KeyError")
    assert (hanging.undocumented, hanging.inputs) == (1, 1)
    assert not hostile.report([broken, hanging]).held


def test_a_parser_whose_time_grows_faster_than_its_input_breaks_the_promise() -> None:
    def quadratic(data: bytes) -> int:
        return sum(data[at:].count(0) for at in range(len(data)))

    parser = Parser(name="quadratic", run=quadratic, seeds=lambda: (b"x",), unit=1000)
    findings = hostile.Findings(parser.name, ratios={"zeros": hostile.ratio(parser, bytes, rounds=3)})
    assert findings.worst[0] > hostile.MOST_RATIO
    assert not findings.held
