"""``index.html``: the matrix, and for each cell that went wrong its rule, its packets and its log lines. Pure.

One page without a script, a font or a picture from elsewhere; light or dark as the reader's browser is. Everything that
comes from a lab is escaped: names, rules and log lines are a stranger's text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from meshlab.model.report import Cell, CheckReport, Proof, Result
from meshlab.report.bundle.style import STYLE

_MOST_OPEN = 5
"""Failed cells that are unfolded from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketRow:
    """A packet of a failed cell."""

    number: int
    """In ``capture.pcapng``, from 1, as Wireshark counts."""
    after_ms: float
    """Since the call began."""
    link: str
    ends: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A cell that did not hold, and what there is to be seen of it."""

    cell: Cell
    packets: Sequence[PacketRow]
    more_packets: int
    """How many are left out."""
    display_filter: str
    """For Wireshark; empty where there is no packet."""
    log_lines: Sequence[tuple[str, str]]
    """Program, line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    report: CheckReport
    troubles: Sequence[Trouble]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    """Path in the bundle -> what it is."""
    topology: str
    """The text of the file."""

    def html(self) -> str:
        name = escape(self.report.topology)
        parts = (self._head(), self._matrix(), self._wrong(), self._proofs(), self._files(), self._file())
        body = "\n".join(part for part in parts if part)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{name}: {self.report.result.value}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def _head(self) -> str:
        report = self.report
        facts = {"node proxies": ", ".join(f"{node}: {name}" for node, name in report.implementations.items())}
        listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in {**facts, **self.versions}.items())
        return (
            f"<header><h1>{escape(report.topology)} {_badge(report.result)}</h1>"
            f"<p>{_counted(report.cells, 'cell')}; {_counted(report.proofs, 'proof')}"
            f"{f'; {len(report.audit)} findings of the audit' if report.audit else ''}</p><dl>{listed}</dl></header>"
        )

    def _wrong(self) -> str:
        proofs = [proof for proof in self.report.proofs if proof.result is not Result.HELD]
        parts = [f'<p class="note">{escape(line)}</p>' for line in self.report.audit]
        parts += [
            _trouble(trouble, f"story-{place}", is_open=place < _MOST_OPEN)
            for place, trouble in enumerate(self.troubles)
        ]
        if proofs:
            rows = [(_badge(p.result), escape(p.id), escape(p.reason), escape(p.control)) for p in proofs]
            table = _table(("", "proof", "reason", "control"), rows)
            parts.append(_details(f"Proofs that did not hold: {len(proofs)}", table, is_open=not self.troubles))
        return f"<section><h2>What went wrong</h2>{''.join(parts)}</section>" if parts else ""

    def _matrix(self) -> str:
        cells = self.report.cells
        sources = list(dict.fromkeys(cell.source for cell in cells))
        targets = list(dict.fromkeys((cell.to, cell.port) for cell in cells))
        of_pair: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in cells:
            of_pair.setdefault((cell.source, cell.to, cell.port), []).append(cell)
        stories = {trouble.cell: f"story-{place}" for place, trouble in enumerate(self.troubles)}
        heads = "".join(f'<th scope="col"><span>{escape(to)}:{port}</span></th>' for to, port in targets)
        rows = "".join(
            f'<tr><th scope="row">{escape(source)}</th>'
            + "".join(_square(of_pair.get((source, *target), []), stories) for target in targets)
            + "</tr>"
            for source in sources
        )
        return (
            "<section><h2>Who reached whom</h2><p>What was seen; where the calls of a pair differ, each has a word, "
            "in their order. What did not hold is framed, says what was expected, and leads to its story.</p>"
            f'<div class="wide"><table class="matrix"><thead><tr><th>from, to</th>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div></section>"
        )

    def _proofs(self) -> str:
        counts = Counter((proof.kind, proof.grade.value, proof.result) for proof in self.report.proofs)
        rows = [
            (_badge(result), escape(kind), escape(grade), str(number))
            for (kind, grade, result), number in sorted(counts.items(), key=lambda item: item[0][:2])
        ]
        return f"<section><h2>Proofs</h2>{_table(('', 'kind', 'grade', 'number'), rows)}</section>" if rows else ""

    def _files(self) -> str:
        rows = [(f'<a href="{escape(path)}">{escape(path)}</a>', escape(what)) for path, what in self.files.items()]
        return f"<section><h2>In this folder</h2>{_table(('file', 'what it is'), rows)}</section>"

    def _file(self) -> str:
        return f"<section>{_details('The file', f'<pre>{escape(self.topology)}</pre>')}</section>"


def _trouble(trouble: Trouble, anchor: str, *, is_open: bool) -> str:
    cell = trouble.cell
    said = {"expected": cell.expected, "policies say": cell.oracle, "seen": f"{cell.seen} ({cell.outcome})"}
    said |= {"rule": cell.rule, "reason": cell.reason}
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in said.items() if value)
    title = f"{_badge(cell.result)} {escape(cell.source)} &rarr; {escape(cell.to)}:{cell.port} over IPv{cell.family}"
    parts = [f"<dl>{facts}</dl>", _packets(trouble), _log_lines(trouble.log_lines)]
    return (
        f"<details{' open' if is_open else ''}><summary>{title}</summary>"
        f'<div class="story" id="{anchor}">{"".join(parts)}</div></details>'  # a link to it unfolds it
    )


def _packets(trouble: Trouble) -> str:
    if not trouble.packets:
        return "<h3>Packets</h3><p>None between the two pods while the call was under way.</p>"
    rows = [
        (str(row.number), f"{row.after_ms:.2f}", escape(row.link), escape(row.ends), escape(row.what))
        for row in trouble.packets
    ]
    more = f"<p>and {trouble.more_packets} more</p>" if trouble.more_packets else ""
    return (
        f"<h3>Packets at the two pods</h3>{_table(('no.', 'ms', 'link', 'from &rarr; to', 'what'), rows)}{more}"
        f"<p>On every link, in Wireshark: <code>{escape(trouble.display_filter)}</code></p>"
    )


def _log_lines(lines: Sequence[tuple[str, str]]) -> str:
    if not lines:
        return "<h3>Logs</h3><p>No line of a node proxy names these two pods at that time.</p>"
    return "<h3>Logs</h3>" + "".join(
        f'<p class="program">{escape(program)}</p><pre>{escape(line)}</pre>' for program, line in lines
    )


def _square(cells: Sequence[Cell], stories: Mapping[Cell, str]) -> str:
    """One pair: one word where all its calls came out alike."""
    if not cells:
        return '<td class="none" aria-label="not called"></td>'
    alike = len({(cell.seen, cell.expected, cell.result) for cell in cells}) == 1
    words = "".join(_word(cell, stories.get(cell, "")) for cell in (cells[:1] if alike else cells))
    return f"<td>{words}</td>"


def _word(cell: Cell, story: str) -> str:
    title = escape(f"IPv{cell.family}: {cell.outcome}; {cell.rule}")
    if cell.result is Result.HELD:
        return f'<span class="{cell.seen}" title="{title}">{cell.seen}</span>'
    wanted = f"not {cell.expected}" if cell.seen != cell.expected else cell.result.value
    return f'<a class="wrong" href="#{story}" title="{title}">{cell.seen} <small>{wanted}</small></a>'


def _badge(result: Result) -> str:
    return f'<span class="badge {result.value}">{result.value}</span>'


def _counted(rows: Sequence[Cell] | Sequence[Proof], noun: str) -> str:
    bad = Counter(row.result.value for row in rows if row.result is not Result.HELD)
    said = f" ({', '.join(f'{number} {word}' for word, number in bad.items())})" if bad else ""
    return f"{len(rows)} {noun}{'' if len(rows) == 1 else 's'}{said}"


def _details(title: str, body: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML already."""

    def cells(tag: str, row: Iterable[str]) -> Iterator[str]:
        return (f"<{tag}>{cell}</{tag}>" for cell in row)

    body = "".join(f"<tr>{''.join(cells('td', row))}</tr>" for row in rows)
    head = f"<thead><tr>{''.join(cells('th', heads))}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'
