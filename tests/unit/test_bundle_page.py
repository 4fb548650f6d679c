"""The bundle's page: it tells each cell that went wrong, needs nothing from elsewhere, and trusts no text of a lab."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import capture_scenes as scenes
import pytest
from bundle_scenes import RULE, cell, frames_of, told_of

from meshlab.model.report import CheckReport, Grade, Proof, Result
from meshlab.report.bundle.dumps import readable
from meshlab.report.bundle.evidence import log_lines, trouble
from meshlab.report.bundle.page import PacketRow, Page, Trouble
from meshlab.report.bundle.style import STYLE

VOID = {"meta", "br", "hr", "link", "img"}


class _Reader(HTMLParser):
    """Reads a page as strictly as a browser does not."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def _page(troubles: list[Trouble], **fields: Any) -> Page:
    held = cell(source="shop/other")
    report = CheckReport(
        topology="shop", implementations={"node-1": "mine"}, cells=(held, *(one.cell for one in troubles)), **fields
    )
    return Page(
        report=report,
        troubles=troubles,
        versions={"meshlab": "0.1.0"},
        files={"capture.pcapng": "every packet"},
        topology="kind: Lab",
    )


def _line(script: scenes.Script, *, late_s: float = 0.0, client: str = "10.128.0.3", address: str = "10.64.0.2") -> str:
    at = datetime.fromtimestamp(script.times[2][1] / 1e9 + late_s, UTC).isoformat().replace("+00:00", "Z")
    fields = {"src.addr": f"{client}:40002", "dst.addr": f"{address}:15008", "dst.hbone_addr": f"{address}:8080"}
    return json.dumps({"time": at, "message": "connection complete", **fields})


def _failed(name: str = "clean") -> Trouble:
    script = scenes.play(scenes.SCENES[name])
    _, failed, _ = told_of(script)
    lines = log_lines({"ztunnel@node-2": _line(script)}, [failed])
    return trouble(failed.cell, frames_of(script), [failed], lines)


def _proof(text: str) -> Proof:
    return Proof(
        id=text,
        kind=text,
        source=text,
        to=text,
        port=1,
        family=4,
        grade=Grade.WIRE,
        packets=0,
        canaries=0,
        control=text,
        result=Result.FAILED,
        reason=text,
    )


def test_a_failed_cell_has_its_rule_its_packets_and_its_log_lines() -> None:
    page = _Reader(_page([_failed()]).html())
    for said in (RULE, "10.128.0.3:40002 \u2192 10.64.0.2:15008", "SYN, ACK", "connection complete", "expected allow"):
        assert said in page.text


def test_packets_are_those_at_the_two_pods_with_the_numbers_that_wireshark_gives_them() -> None:
    script = scenes.play(scenes.SCENES["clean"])
    found = _failed()
    assert {row.link for row in found.packets} == {"node-1:shop/intruder", "node-2:shop/server"}
    for row in found.packets:
        link, _, at, _ = script.frames[row.number - 1]
        assert str(link) == row.link
        assert row.after_ms == pytest.approx((at - script.times[2][0]) / 1e6)
    assert "ip.addr == 10.128.0.3 && ip.addr == 10.64.0.2 && tcp.port == 15008" in found.display_filter


def test_a_matrix_word_that_is_wrong_leads_to_its_story() -> None:
    page = _Reader(_page([_failed(), _failed("clean-ipv6")]).html())
    links = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    assert links == {"story-0"}, "both families are alike, so one word stands for both"
    assert links <= set(page.values("id"))
    assert "deny not allow" in page.text


def test_where_the_families_differ_each_has_its_word() -> None:
    six = cell(source="shop/other", family=6, seen="deny", result=Result.FAILED)
    story = Trouble(cell=six, packets=(), more_packets=0, display_filter="", log_lines=())
    page = _Reader(_page([story]).html())
    assert "allow deny not allow" in page.text
    assert "None between the two pods" in page.text
    assert "No line of a node proxy" in page.text


def test_nothing_is_fetched_and_nothing_is_run() -> None:
    page = _page([_failed()]).html()
    reader = _Reader(page)
    assert reader.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
    assert reader.values("src") == []
    assert [value for value in reader.values("href") if not value.startswith("#")] == ["capture.pcapng"]
    assert not re.search(r"https?://|url\(|@import", page)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b'c"])
def test_text_of_a_lab_is_text_wherever_it_stands(hostile: str) -> None:
    wrong = cell(source=hostile, to=hostile, outcome=hostile, rule=hostile, reason=hostile, result=Result.FAILED)
    row = PacketRow(number=1, after_ms=0, link=hostile, ends=hostile, what=hostile)
    story = Trouble(cell=wrong, packets=[row], more_packets=0, display_filter=hostile, log_lines=[(hostile, hostile)])
    proof = _proof(hostile)
    report = CheckReport(
        topology=hostile, implementations={hostile: hostile}, cells=(wrong,), proofs=(proof,), audit=(hostile,)
    )
    page = Page(
        report=report, troubles=[story], versions={hostile: hostile}, files={hostile: hostile}, topology=hostile
    )
    reader = _Reader(page.html())
    plain = _Reader(_page([_failed()], proofs=(_proof("x"),), audit=("x",)).html())
    assert reader.tags <= plain.tags, "no tag that is not ours"
    assert {name for _, name, _ in reader.attributes} <= {name for _, name, _ in plain.attributes}
    assert hostile in "".join(reader.words)


def test_both_sets_of_colours_have_every_colour_that_is_used() -> None:
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in STYLE.split("prefers-color-scheme: dark")[:2])
    assert light == dark == set(re.findall(r"var\((--[\w-]+)\)", STYLE))


def test_log_lines_of_other_pods_other_times_and_other_families_are_left_out() -> None:
    script = scenes.play(scenes.SCENES["clean"])
    _, told, _ = told_of(script)
    own = _line(script)
    others = [
        _line(script, late_s=60),
        _line(script, client="10.128.0.1"),
        _line(script, address="10.64.0.4"),
        _line(script, client="[fd5a::1:3]", address="[fd5a::2:2]"),
        "not JSON",
        "[1, 2]",
        '{"time": "yesterday"}',
        '{"time": "0001-01-01"}',
        '{"a":' * 50_000,
    ]
    assert log_lines({"ztunnel@node-2": "\n".join([*others, own])}, [told]) == [("ztunnel@node-2", own)]


def test_packed_addresses_are_written_as_text_and_all_else_is_left() -> None:
    dump = {"workload": {"addresses": ["CoCeNw==", "/Vp8HpDTgACeN3m5f0p8FQ=="], "name": "CoCeNw=="}, "address": "x"}
    assert readable(dump) == {
        "workload": {"addresses": ["10.128.158.55", "fd5a:7c1e:90d3:8000:9e37:79b9:7f4a:7c15"], "name": "CoCeNw=="},
        "address": "x",
    }
