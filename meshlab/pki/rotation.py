"""A root that takes the place of another, without a handshake that fails on the way.

    step       who signs SVIDs      roots that are handed out    the next step may come when
    trusting   the old root's CA    the old one, the new one     every proxy has renewed each of its certificates
    signing    the new root's CA    the old one, the new one     every proxy has renewed each of its certificates
    finished   the new root's CA    the new one                  (the old root is forgotten)

A mesh that skips ``trusting`` breaks for a while: proxies that have renewed show certificates of a root that those
which have not do not know. Certificates of servers, such as the control plane's own, stay the old root's, since what
verifies them was given that root when it started.

Source: https://istio.io/latest/docs/tasks/security/cert-management/plugin-ca-cert/
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshlab.pki.issuer import Issuer

if TYPE_CHECKING:
    from meshlab.pki.authority import MeshCA


@dataclass(frozen=True, slots=True)
class Rotation:
    """Two roots, and what signs at each step."""

    old: MeshCA
    new: MeshCA

    @property
    def trusting(self) -> Issuer:
        """Signs as before the rotation, and has both roots trusted."""
        return dataclasses.replace(self.old.issuer, roots=self._both)

    @property
    def signing(self) -> Issuer:
        """Signs under the new root, and has both roots trusted."""
        return dataclasses.replace(self.new.issuer, roots=self._both)

    @property
    def finished(self) -> Issuer:
        """Signs under the new root, and has it alone trusted."""
        return self.new.issuer

    @property
    def _both(self) -> str:
        return "\n".join(issuer.roots.strip() for issuer in (self.old.issuer, self.new.issuer)) + "\n"
