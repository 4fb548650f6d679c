"""What should happen, judged from the manifests alone, and by which rule.

Pure and written apart: this room never sees the wire form that ``translate`` makes nor the evaluator of ``ztunnel``,
so that an agreement between the two says something.
"""

from meshlab.oracle.connections import ServiceDecision, connection, decide_service
from meshlab.oracle.decide import decide

__all__ = ["ServiceDecision", "connection", "decide", "decide_service"]
