"""Runs a file once and writes what came of it into one folder, and that folder into a .zip beside it."""

from __future__ import annotations

import json
import platform
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshlab.errors import UsageError
from meshlab.lab.proving import check
from meshlab.lab.proving.check import Checked
from meshlab.lab.proving.evidence import Evidence, save_parts, writable
from meshlab.lab.sources import Source
from meshlab.model.report import CheckReport, Result
from meshlab.proofs import pcapng
from meshlab.proofs.route import hops, routes
from meshlab.report.bundle.annotate import Frame, Told, comments
from meshlab.report.bundle.dumps import resources_as_json
from meshlab.report.bundle.evidence import log_lines, trouble
from meshlab.report.bundle.page import Page, Trouble
from meshlab.topology import dump
from meshlab.version import __version__

_WHAT = {
    "at-the-end.yaml": "the same, with the policies that were in effect at the end",
    "report.json": "what `check --json` prints",
    "capture.pcapng": "every packet on every link, with the calls of each flow in its first packet's comment",
    "calls.txt": "each call and its end, with the rule that decides it",
    "resources.json": "what the control plane sent to the node proxies",
    "control-plane.json": "who subscribed to what, what was acknowledged, which certificates were issued",
    "logs/": "what each program printed",
    "rules/": "the redirect rules in each pod, read back from the kernel",
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """Where it is, and what the run came to."""

    folder: Path
    archive: Path
    report: CheckReport
    """``unsaved`` says what is missing, on a full disk for one."""


def make(source: Source, folder: Path, run: Callable[..., CheckReport] = check.run, **options: Any) -> Bundle:
    """Run a file once, and keep everything.

    Args:
        folder: made, or an earlier bundle that is replaced.
        run: ``check.run``, or what takes the same and calls ``keep`` as it does.
        options: those of ``run``.

    Raises:
        UsageError: ``folder``, or the archive beside it, is something else's, or cannot be written.
    """
    _refuse_what_is_no_bundle(folder)
    if not folder.exists():
        if _archive(folder).exists():
            raise UsageError(f"'{_archive(folder)}' is there already, without its folder: say another --output")
        writable(folder)
    name, text = _file(source)

    unsaved: list[str] = []

    def keep(checked: Checked) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        unsaved.extend(_write(checked, folder, name, text))

    report = run(source.topology, source_path=source.path, keep=keep, **options)
    unsaved += _zipped(folder)
    return Bundle(folder, _archive(folder), replace(report, unsaved=(*report.unsaved, *unsaved)))


def _file(source: Source) -> tuple[str, str]:
    """Name and text, as given where it is a file."""
    if source.path is None:
        return "lab.yaml", dump(source.topology)
    return source.path.name, source.path.read_text(encoding="utf-8")


def _refuse_what_is_no_bundle(folder: Path) -> None:
    if folder.exists() and not all((folder / name).is_file() for name in ("index.html", "report.json")):
        raise UsageError(f"{folder} is there already and is no bundle; give --output another folder")


def _write(checked: Checked, folder: Path, name: str, text: str) -> list[str]:
    """Save all that there is; what could not be saved, a sentence each."""
    lab, report = checked.lab, checked.report
    told, frames = _told(checked), _frames(checked)
    evidence = Evidence(folder)
    evidence.write(name, text)
    evidence.write("at-the-end.yaml", dump(replace(lab.topology, mesh=lab.mesh)))
    evidence.write("report.json", _as_json(report.to_json()))
    evidence.write("calls.txt", "".join(f"{one.sentence}\n" for one in told))
    evidence.write("resources.json", _as_json(resources_as_json(lab)))
    save_parts(lab, evidence)
    evidence.file("capture.pcapng", lambda path: path.write_bytes(_capture(checked, frames, told)))
    page = Page(
        report=report,
        troubles=_troubles(checked, frames, told),
        versions=_versions(),
        files=_files(folder, name),
        topology=text,
    )
    evidence.write("index.html", page.html())
    return evidence.unsaved


def _told(checked: Checked) -> list[Told]:
    capture = checked.capture
    return [
        Told(call, cell, tuple(hops(routes(capture.wiring, call, capture.paths(call)))))
        for cell, calls in zip(checked.report.cells, checked.calls, strict=True)
        for call in calls
    ]


def _frames(checked: Checked) -> list[Frame]:
    """Of every link, in the order of time."""
    wiring = checked.capture.wiring
    frames = [(wiring.link(*link), out, at, frame) for link, out, at, frame in checked.capture.window.frames()]
    return sorted(frames, key=lambda frame: frame[2])


def _capture(checked: Checked, frames: list[Frame], told: list[Told]) -> bytes:
    links = sorted({*checked.capture.wiring.links.values(), *(link for link, *_ in frames)})
    said = f"meshlab {__version__}: {checked.report.topology}, {checked.report.result.value}"
    secrets = checked.lab.tls_secrets()
    return b"".join(pcapng.write(links, frames, comment=said, comments=comments(frames, told), secrets=secrets))


def _troubles(checked: Checked, frames: list[Frame], told: list[Told]) -> list[Trouble]:
    proxies = [program.name for program in checked.lab.site.programs.of_role("ztunnel")]
    logs = {name: checked.lab.logs(name) for name in proxies}
    found = []
    for cell in checked.report.cells:
        if cell.result is not Result.HELD:
            of_cell = [one for one in told if one.cell is cell]
            found.append(trouble(cell, frames, of_cell, log_lines(logs, of_cell)))
    return found


def _versions() -> dict[str, str]:
    return {
        "meshlab": __version__,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
    }


def _files(folder: Path, name: str) -> Mapping[str, str]:
    return {name: "the file that was run", **{path: what for path, what in _WHAT.items() if (folder / path).exists()}}


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _archive(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.zip")


def _zipped(folder: Path) -> list[str]:
    """Put the folder into the archive beside it; why that could not be, or nothing."""
    evidence = Evidence(folder.parent)
    evidence.file(_archive(folder).name, lambda path: _zip(folder, path))
    return evidence.unsaved


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target.write(path, Path(folder.name) / path.relative_to(folder))
