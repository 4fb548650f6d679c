"""What a lab leaves when something failed: captures, logs, rules, configuration; and a recorded conversation."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meshlab.errors import LabError, UsageError
from meshlab.topology import dump

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_ARTIFACTS = Path("meshlab-artifacts")


def save(lab: Lab, folder: Path) -> Path:
    """Save everything into ``folder``, which is made; the topology with the policies now in effect.

    A part that is gone is left out.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "topology.yaml").write_text(dump(replace(lab.topology, mesh=lab.mesh)), encoding="utf-8")
    if told := lab.told():
        (folder / "calls.txt").write_text("\n".join(told) + "\n", encoding="utf-8")
    with suppress(LabError):
        capture = lab.last_capture
        if capture is not None:
            capture.save(folder / "capture.pcapng")
    with suppress(LabError):
        _save_logs(lab, folder / "logs")
    with suppress(LabError):
        _save_rules(lab, folder / "rules")
    with suppress(LabError):
        status, _ = lab.site.programs.by_name["control-plane"].peer.ask("status")  # type: ignore[union-attr]
        (folder / "control-plane.json").write_text(json.dumps(status, indent=2), encoding="utf-8")
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


def save_somewhere(lab: Lab, wanted: Path | None, name: str) -> Path:
    """Save into ``wanted``, else into a folder of the working folder's, else where there is room for temporary files.

    Raises:
        LabError: ``wanted`` cannot be written.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = wanted or _ARTIFACTS / f"{name}-{stamp}-{time.monotonic_ns() % 10**6:06}"
    with suppress(OSError):
        return save(lab, folder)
    if wanted is not None:
        raise LabError(f"artifacts cannot be saved in {wanted}")
    return save(lab, Path(tempfile.mkdtemp(prefix=f"meshlab-{name}-")))


def write_conversation(lab: Lab, folder: Path) -> None:
    """What node proxies, control plane and agents said to each other, and the proxies' logs: ``--record``."""
    folder.mkdir(parents=True, exist_ok=True)
    events = list(lab.site.heard)
    for program in lab.site.programs.by_name.values():
        if program.peer is not None:
            events += program.peer.drain()
    entries = [event for event in events if event["event"] == "conversation"]
    lines = [json.dumps({key: value for key, value in entry.items() if key != "event"}) for entry in entries]
    lines = [line.replace(lab.site.token, "TOKEN") for line in lines]
    (folder / "conversation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in lab.site.programs.by_name:
        if name.startswith("ztunnel@"):
            (folder / f"{name}.log").write_text(lab.logs(name), encoding="utf-8")


def _save_logs(lab: Lab, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in lab.site.programs.by_name:
        if name != "recorder":
            (folder / f"{name.replace('/', '_')}.log").write_text(lab.logs(name), encoding="utf-8")


def _save_rules(lab: Lab, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for pod in lab.mesh.pods:
        text = lab.rules(pod.key)
        if text:
            (folder / f"{pod.namespace}_{pod.name}.nft").write_text(text, encoding="utf-8")
