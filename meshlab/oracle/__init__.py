"""What should happen, judged from the manifests alone, and by which rule.

Pure and written apart: this room never sees the wire form that ``translate`` makes nor the evaluator of ``ztunnel``,
so that an agreement between the two says something.
"""

from meshlab.oracle.decide import decide
from meshlab.oracle.expected import connection, expected, travelled

__all__ = ["connection", "decide", "expected", "travelled"]
