"""A step of a file in a few words, as tables and messages name it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from meshlab.model import AskStep, CallStep, ChangeStep, ConnectStep, PolicyStep, PushStep, Step, TrafficStep, VerbStep
from meshlab.topology.nodes import read_documents
from meshlab.topology.notes import Notes

_SHOWN = 3


def words(step: Step) -> str:
    """``call shop/client -> shop/server:8080: deny``, ``apply Pod shop/new``, ``restart ztunnel@node-1`` ..."""
    match step:
        case CallStep():
            times = f", {step.times} times" if step.times > 1 else ""
            return f"call {step.source} -> {step.to}{times}: {step.expect}"
        case PolicyStep():
            keys = [policy.key for policy in step.authorization_policies]
            keys += [policy.key for policy in step.peer_authentications]
            return f"{'replace' if step.replaces else 'apply'} {_few(keys, 'policies')}"
        case ChangeStep():
            return f"{step.verb} {_few(_objects(step.manifests), 'objects')}"
        case PushStep():
            return f"push {step.type_name} {step.name}"
        case ConnectStep():
            return f"connect {step.source} -> {step.to} as {step.name}"
        case AskStep():
            return f"ask {step.name}: {'alive' if step.alive else 'closed'}"
        case VerbStep():
            return f"{step.verb} {step.instance}{f' to {step.to}' if step.to else ''}"
        case TrafficStep():
            return f"traffic during {_few([words(each) for each in step.during], 'steps')}"


def _few(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else f"no {what}"


def _objects(manifests: str) -> list[str]:
    named = []
    for document in read_documents(manifests, Notes("<step>")):
        metadata = document.map("metadata")
        namespace = metadata.text("namespace")
        named.append(f"{document.text('kind')} {f'{namespace}/' if namespace else ''}{metadata.text('name')}")
    return named
