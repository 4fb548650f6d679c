"""``python -m meshlab.ztunnel``: the reference ztunnel on its own, configured by its environment."""

from __future__ import annotations

import os

from meshlab.ztunnel.main import main

main({"env": dict(os.environ)}, {})
