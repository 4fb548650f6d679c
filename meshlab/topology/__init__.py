"""Text to model and back. Pure: it opens no file.

``load`` reads a topology file, ``read`` also says what it read over, ``dump`` writes one; ``load_manifests``,
``without`` and ``replaced`` are what ``lab.apply``, ``lab.delete`` and ``lab.replace`` do to the mesh,
``after`` what a step does to it, ``with_target_ports`` what Services do to its pods. What a file may hold is the table
in ``keys``.
"""

from meshlab.topology.changes import check_labels, load_manifests, replaced, without
from meshlab.topology.dumper import dump
from meshlab.topology.keys import render_keys_page
from meshlab.topology.loader import Reading, load, read
from meshlab.topology.placement import with_target_ports
from meshlab.topology.steps import after

__all__ = [
    "Reading",
    "after",
    "check_labels",
    "dump",
    "load",
    "load_manifests",
    "read",
    "render_keys_page",
    "replaced",
    "with_target_ports",
    "without",
]
