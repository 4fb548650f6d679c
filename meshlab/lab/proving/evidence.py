"""What a lab leaves when something failed: captures, logs, rules, configuration; and a recorded conversation."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from meshlab.controlplane.requests import ReadStatus
from meshlab.errors import EvidenceError, LabError, UsageError
from meshlab.lab.view import ViewForEvidence
from meshlab.topology import dump

_ARTIFACTS = Path("meshlab-artifacts")


class Evidence:
    """Files in one folder, each whole or not there at all; what could not be saved is in ``unsaved``, with the reason.

    A disk that is full costs the files that did not fit, and never the result of a check.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unsaved: list[str] = []
        """A sentence for each file that could not be written."""

    def file(self, name: str, write: Callable[[Path], object]) -> None:
        """Have ``write`` write to a path, which is renamed to ``name`` when it is whole."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(part)
            part.replace(path)
        except OSError as error:
            self.unsaved.append(f"{path}: {error.strerror or error}")
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        self.file(name, lambda path: path.write_text(text, encoding="utf-8"))


def save(lab: ViewForEvidence, folder: Path) -> Evidence:
    """Save everything into ``folder``, which is made; the topology with the policies now in effect.

    A part of the lab that is gone is left out, and what cannot be written is named.
    """
    evidence = Evidence(folder)
    evidence.write("topology.yaml", dump(replace(lab.topology, mesh=lab.mesh)))
    if told := lab.told():
        evidence.write("calls.txt", "\n".join(told) + "\n")
    save_parts(lab, evidence)
    if lab.last_capture is not None:  # last, since it is the largest by far
        with suppress(LabError):
            evidence.file("capture.pcapng", lab.last_capture.save)
    return evidence


def save_parts(lab: ViewForEvidence, evidence: Evidence) -> None:
    """Save what the parts of the lab say of themselves: logs, rules, and the control plane's status."""
    for part in (_save_logs, _save_rules, _save_status):
        with suppress(LabError):
            part(lab, evidence)


def save_all(lab: ViewForEvidence, folder: Path) -> Path:
    """Save everything, as ``save`` does.

    Raises:
        EvidenceError: not all could be saved; the rest is there.
    """
    evidence = save(lab, folder)
    if evidence.unsaved:
        raise EvidenceError("not saved: " + "; ".join(evidence.unsaved))
    return folder


def writable(folder: Path) -> None:
    """See that ``folder`` can be made and written, before anything is found that belongs there. Nothing stays.

    Raises:
        UsageError: it cannot be.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"'{folder}' is no folder that can be written: {error.strerror}") from None
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()


def save_somewhere(lab: ViewForEvidence, wanted: Path | None, name: str) -> Evidence:
    """Save into ``wanted``, else into a folder of the working folder's, else among the machine's temporary files."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    evidence = save(lab, wanted or _ARTIFACTS / f"{name}-{stamp}-{time.monotonic_ns() % 10**6:06}")
    if wanted is not None or not evidence.unsaved:
        return evidence
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix=f"meshlab-{name}-"))
    except OSError:
        return evidence
    with suppress(OSError):
        evidence.folder.rmdir()  # where nothing at all could be saved in it
    return save(lab, elsewhere)


def write_conversation(lab: ViewForEvidence, folder: Path) -> Evidence:
    """Save what node proxies, control plane and agents said to each other, and the proxies' logs: ``--record``."""
    evidence = Evidence(folder)
    evidence.write("conversation.jsonl", "\n".join(_conversation(lab)) + "\n")
    for program in lab.site.programs.of_role("ztunnel"):
        evidence.write(f"{program.name}.log", lab.logs(program.name))
    return evidence


def _conversation(lab: ViewForEvidence) -> Iterator[str]:
    events, tokens = list(lab.site.heard), lab.site.tokens
    for program in lab.site.programs.by_name.values():
        if program.peer is not None:
            events += program.peer.drain()
    for event in events:
        if event["event"] == "conversation":
            line = json.dumps({key: value for key, value in event.items() if key != "event"})
            for token in tokens:
                line = line.replace(token, "TOKEN")
            yield line


def _save_logs(lab: ViewForEvidence, evidence: Evidence) -> None:
    for name in lab.site.programs.by_name:
        if name != "recorder":
            evidence.write(f"logs/{name.replace('/', '_')}.log", lab.logs(name))


def _save_rules(lab: ViewForEvidence, evidence: Evidence) -> None:
    for pod in sorted(lab.mesh.pods, key=lambda pod: pod.key in lab.pending):  # an agent may not know a pending one
        if text := lab.rules(pod.key):
            evidence.write(f"rules/{pod.namespace}_{pod.name}.nft", text)


def _save_status(lab: ViewForEvidence, evidence: Evidence) -> None:
    peer = lab.site.peer("control-plane")
    if peer is None:
        raise LabError("no control plane runs")
    evidence.write("control-plane.json", json.dumps(peer.ask(ReadStatus())[0], indent=2))
