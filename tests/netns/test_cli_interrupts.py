"""Ctrl-C in a terminal while a lab is up."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

TOPOLOGY = """\
apiVersion: meshlab.dev/v1alpha1
kind: Lab
metadata: {name: interrupted}
spec:
  nodes: [node-1]
  pods: {shop/client: {}, shop/server: {ports: [8080]}}
"""
DEADLINE_S = 30.0


def _read_until(terminal: int, text: str) -> str:
    """What the terminal shows up to ``text``, or up to the end of the command where it never comes."""
    shown, deadline = "", time.monotonic() + DEADLINE_S
    while text not in shown and select.select([terminal], [], [], deadline - time.monotonic())[0]:
        try:
            shown += os.read(terminal, 4096).decode()
        except OSError:  # EIO: the last process that had the terminal is gone
            break
    return shown


def test_ctrl_c_tears_down_in_order_and_ends_130(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(TOPOLOGY)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from meshlab.cli import main; main()", "check", str(file)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, start_new_session=True)
    os.close(theirs)
    try:
        assert "calling" in _read_until(ours, "calling")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that is in its foreground
        rest = _read_until(ours, "no such text")
        assert process.wait(timeout=DEADLINE_S) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert rest.replace("\r", "").replace("\x1b[K", "").splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == [file]
