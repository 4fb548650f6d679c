"""Which program stands for a container image: the file's ``spec.images`` first, then the entries built in."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from meshlab.model import Program

BUILT_IN: tuple[str, ...] = (
    "*/curlimages/curl*",
    "*/governmentpaas/curl-ssl*",
    "*/kennethreitz/httpbin*",
    "*/mccutchen/go-httpbin*",
    "*/fortio/fortio*",
    "*/tcp-echo-server*",
    "*/examples-helloworld-*",
    "*/examples-bookinfo-*",
    "*/istio*/app:*",
    "registry.istio.io/testing/app:*",
    "*/gateway-api/conformance/echo-basic*",
    "*/gateway-api/conformance/echo-advanced*",
)
"""Images of Istio's and Gateway API's samples that only answer, or only wait to be called from: the built-in echo."""


def find(image: str, images: Mapping[str, Program | None]) -> tuple[bool, Program | None]:
    """Whether there is an entry for ``image``, and its program (``None``: the built-in echo). The first match wins."""
    names = (image, full_name(image))
    for pattern, program in (*images.items(), *((pattern, None) for pattern in BUILT_IN)):
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return True, program
    return False, None


def full_name(image: str) -> str:
    """``image`` with all that container runtimes add: ``nginx`` -> ``docker.io/library/nginx:latest``.

    Source: https://pkg.go.dev/github.com/distribution/reference#ParseNormalizedNamed
    """
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif "." not in first and ":" not in first and first != "localhost":
        image = f"docker.io/{image}"
    has_tag = ":" in image.rpartition("/")[2] or "@" in image
    return image if has_tag else f"{image}:latest"


def line_to_add(image: str) -> str:
    """The entry of ``spec.images`` that a message shows for ``image``."""
    name = full_name(image).partition("@")[0]
    folder, _, last = name.rpartition("/")
    return f'"{folder}/{last.partition(":")[0]}*": {{run: [PROGRAM, ARGUMENT]}}'
