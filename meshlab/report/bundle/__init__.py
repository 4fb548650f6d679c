"""``meshlab bundle``: one folder, and its .zip, that a maintainer opens to see what one run of a file came to.

    the file         as it was given                     at-the-end.yaml     with the policies then in effect
    index.html       matrix, and what went wrong         report.json         as `check --json`
    capture.pcapng   every link, commented, decryptable  calls.txt           a sentence a call
    logs/  rules/    of each program, of each pod        control-plane.json  resources.json

Everything in it is text or packets of the lab. The TLS secrets in the capture are those of sessions that are over; no
private key is anywhere.
"""

from meshlab.report.bundle.folder import Bundle, make

__all__ = ["Bundle", "make"]
