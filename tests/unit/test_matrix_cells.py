"""Which cells a check has, what each is expected to let through, and what controls a denied one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlab.errors import UsageError
from meshlab.lab.proving.matrix import PlannedCell, cell_of, cells, control_for
from meshlab.model import (
    DATAPLANE_MODE,
    Action,
    AuthorizationPolicy,
    ContainerPort,
    Expectation,
    Family,
    Mesh,
    Namespace,
    Node,
    Operation,
    Pod,
    Rule,
    Service,
    ServicePort,
    Source,
    Topology,
    Verdict,
)
from meshlab.model.addresses import pod4, pod6, service4, service6


def _pod(place: int, name: str, *ports: int, node: int = 0, namespace: str = "shop", **labels: str) -> Pod:
    return Pod(
        name=name,
        namespace=namespace,
        node=f"node-{node + 1}",
        ipv4=pod4(node, place),
        ipv6=pod6(node, place),
        labels=labels,
        service_account=name,
        ports=tuple(ContainerPort(number=port) for port in ports),
    )


CLIENT = _pod(0, "client")
INTRUDER = _pod(1, "intruder")
SERVER = _pod(2, "server", 8080, 9090, node=1, app="server")
OUTSIDER = _pod(3, "outsider", namespace="outside")
AMBIENT = Namespace(name="shop", labels={DATAPLANE_MODE: "ambient"})
SERVICE = Service(
    name="server",
    namespace="shop",
    ipv4=service4(0),
    ipv6=service6(0),
    selector={"app": "server"},
    ports=(ServicePort(port=80, target_port=8080),),
)


def _only(*accounts: str, app: str = "server") -> AuthorizationPolicy:
    """Who may call the pods of ``app``."""
    principals = tuple(f"cluster.local/ns/shop/sa/{account}" for account in accounts)
    rules = (Rule(sources=(Source(principals=principals),)),) if accounts else ()
    return AuthorizationPolicy(name=f"only-{app}", namespace="shop", selector={"app": app}, rules=rules)


def _topology(*pods: Pod, policies: tuple[AuthorizationPolicy, ...] = (), **fields: object) -> Topology:
    services = fields.pop("services", ())
    mesh = Mesh(namespaces=(AMBIENT,), pods=pods, services=services, authorization_policies=policies)  # type: ignore[arg-type]
    topology = Topology(name="t", nodes=(Node(name="node-1"), Node(name="node-2")), mesh=mesh)
    return replace(topology, **fields)  # type: ignore[arg-type]


def _names(planned: list[PlannedCell]) -> list[str]:
    return [cell.name for cell in planned]


def _cell(planned: list[PlannedCell], name: str) -> PlannedCell:
    return next(cell for cell in planned if cell.name == name)


def test_a_pair_has_a_cell_for_each_port_and_family() -> None:
    assert _names(cells(_topology(CLIENT, SERVER))) == [
        "shop/client->shop/server:8080/4",
        "shop/client->shop/server:8080/6",
        "shop/client->shop/server:9090/4",
        "shop/client->shop/server:9090/6",
    ]


def test_a_pod_without_ports_is_only_a_source() -> None:
    assert {cell.to for cell in cells(_topology(CLIENT, INTRUDER, SERVER))} == {"shop/server"}


def test_a_pod_does_not_call_itself() -> None:
    assert cells(_topology(SERVER)) == []


def test_a_cell_dials_the_address_of_its_family() -> None:
    assert {cell.family: cell.address for cell in cells(_topology(CLIENT, SERVER))} == {4: SERVER.ipv4, 6: SERVER.ipv6}


def test_a_destination_out_of_the_mesh_has_no_policy() -> None:
    away = replace(SERVER, namespace="outside")
    (cell, *_) = cells(_topology(CLIENT, away, policies=(replace(_only(), namespace="outside"),)))
    assert (cell.oracle, cell.hbone) == ("allow", False)
    assert "not in the mesh" in cell.rule


def test_only_pods_of_the_mesh_call_services_by_vip() -> None:
    planned = cells(_topology(CLIENT, OUTSIDER, SERVER, services=(SERVICE,)))
    assert [cell.name for cell in planned if cell.to == "server.shop"] == [
        "shop/client->server.shop:80/4",
        "shop/client->server.shop:80/6",
        "shop/server->server.shop:80/4",
        "shop/server->server.shop:80/6",
    ]
    assert _cell(planned, "shop/client->server.shop:80/4").address == service4(0)


def test_a_service_without_an_address_of_a_family_has_no_cell_of_it() -> None:
    planned = cells(_topology(CLIENT, SERVER, services=(replace(SERVICE, ipv6=None),)))
    assert {cell.family for cell in planned if cell.to == "server.shop"} == {4}


def test_a_pod_that_may_pick_itself_through_a_service_is_a_hairpin() -> None:
    planned = cells(_topology(CLIENT, SERVER, services=(SERVICE,)))
    assert _cell(planned, "shop/server->server.shop:80/4").hairpin
    assert not _cell(planned, "shop/client->server.shop:80/4").hairpin


def test_a_service_whose_endpoints_disagree_is_mixed_and_called_often() -> None:
    other = _pod(4, "other", 8080, app="server", locked="yes")
    policy = replace(_only(), name="locked", selector={"locked": "yes"})
    cell = _cell(
        cells(_topology(CLIENT, SERVER, other, policies=(policy,), services=(SERVICE,))),
        "shop/client->server.shop:80/4",
    )
    assert (cell.expected, cell.oracle, cell.calls) == ("mixed", "mixed", 20)
    assert {way.path.server.pod: way.verdict for way in cell.due.ways} == {
        "shop/server": Verdict.ALLOW,
        "shop/other": Verdict.DENY,
    }


def test_a_cell_is_called_once_where_only_one_answer_is_right() -> None:
    assert {cell.calls for cell in cells(_topology(CLIENT, SERVER, services=(SERVICE,)))} == {1}


def test_an_endpoint_without_the_named_port_is_none() -> None:
    named = replace(SERVICE, ports=(ServicePort(port=80, target_port="http"),))
    other = replace(_pod(4, "other", app="server"), ports=(ContainerPort(number=7070, name="http"),))
    cell = _cell(cells(_topology(CLIENT, SERVER, other, services=(named,))), "shop/client->server.shop:80/4")
    assert {way.path.server.pod: way.verdict for way in cell.due.ways} == {"shop/other": Verdict.ALLOW}


def test_a_row_beats_the_oracle_as_what_is_expected() -> None:
    row = Expectation(source="shop/client", to="shop/server:8080", verdict=Verdict.DENY, family=6)
    planned = cells(_topology(CLIENT, SERVER, expect=(row,)))
    assert [(cell.expected, cell.oracle) for cell in planned if cell.port == 8080] == [
        ("allow", "allow"),
        ("deny", "allow"),
    ]


def test_a_row_without_a_family_is_for_both() -> None:
    row = Expectation(source="shop/client", to="server.shop:80", verdict=Verdict.DENY)
    planned = cells(_topology(CLIENT, SERVER, services=(SERVICE,), expect=(row,)))
    assert [cell.name for cell in planned if cell.expected == "deny"] == [
        "shop/client->server.shop:80/4",
        "shop/client->server.shop:80/6",
    ]


@pytest.mark.parametrize(
    ("source", "to", "why"),
    [
        pytest.param("shop/client", "shop/server:1", "no such pod, port", id="unknown port"),
        pytest.param("shop/server", "shop/server:8080", "never captured", id="itself"),
        pytest.param("outside/outsider", "server.shop:80", "the caller is not in it", id="service from outside"),
    ],
)
def test_a_row_that_names_no_cell_is_refused(source: str, to: str, why: str) -> None:
    row = Expectation(source=source, to=to, verdict=Verdict.ALLOW)
    with pytest.raises(UsageError, match=why):
        cells(_topology(CLIENT, SERVER, OUTSIDER, services=(SERVICE,), expect=(row,)))


def test_one_allowed_pair_of_each_family_carries_bulk_through_the_proxies_of_two_nodes() -> None:
    near = _pod(4, "near", 8080)
    planned = cells(_topology(OUTSIDER, CLIENT, near, SERVER))
    assert _names([cell for cell in planned if cell.bulk]) == [
        "shop/client->shop/server:8080/4",
        "shop/client->shop/server:8080/6",
    ]


def test_a_denied_cell_never_carries_bulk() -> None:
    planned = cells(_topology(CLIENT, INTRUDER, SERVER, policies=(_only("intruder"),)))
    assert {cell.source.name for cell in planned if cell.bulk} == {"intruder"}


def test_the_twin_is_another_source_of_the_same_destination_port_and_family() -> None:
    planned = cells(_topology(OUTSIDER, CLIENT, INTRUDER, SERVER, policies=(_only("client"),)))
    control = control_for(_cell(planned, "shop/intruder->shop/server:8080/6"), planned)
    assert control.twin is _cell(planned, "shop/client->shop/server:8080/6")


def test_the_twin_travels_as_the_denied_call_does_if_one_can() -> None:
    deny = AuthorizationPolicy(
        name="no-intruder",
        namespace="shop",
        action=Action.DENY,
        rules=(Rule(sources=(Source(principals=("cluster.local/ns/shop/sa/intruder",)),)),),
    )
    planned = cells(_topology(OUTSIDER, CLIENT, INTRUDER, SERVER, policies=(deny,)))
    control = control_for(_cell(planned, "shop/intruder->shop/server:8080/4"), planned)
    assert control.twin is not None
    assert control.twin.source is CLIENT


def test_a_call_that_stays_in_its_pod_is_no_twin() -> None:
    planned = cells(_topology(CLIENT, SERVER, policies=(_only("server"),), services=(SERVICE,)))
    assert _cell(planned, "shop/server->server.shop:80/4").oracle == "allow"
    assert control_for(_cell(planned, "shop/client->server.shop:80/4"), planned).twin is None


def test_a_twin_can_only_arrive_where_the_denied_call_could_have() -> None:
    planned = cells(_topology(CLIENT, INTRUDER, SERVER, policies=(_only("client"),), services=(SERVICE,)))
    denied = _cell(planned, "shop/intruder->server.shop:80/4")
    twin = control_for(denied, planned).twin
    assert twin is _cell(planned, "shop/client->server.shop:80/4")
    assert twin.servers == denied.denying == denied.servers


def test_a_port_denied_to_everyone_is_controlled_by_another_port_of_the_pod() -> None:
    deny = AuthorizationPolicy(
        name="no-8080", namespace="shop", action=Action.DENY, rules=(Rule(operations=(Operation(ports=("8080",)),)),)
    )
    planned = cells(_topology(CLIENT, INTRUDER, SERVER, policies=(deny,)))
    control = control_for(_cell(planned, "shop/intruder->shop/server:8080/4"), planned)
    assert control.twin is None
    assert control.elsewhere is not None
    assert (control.elsewhere.port, control.elsewhere.family) == (9090, 4)


def test_each_cell_is_found_by_its_call_and_what_is_no_cell_is_not() -> None:
    topology = _topology(CLIENT, INTRUDER, SERVER, OUTSIDER, services=(replace(SERVICE, ipv6=None),))
    for cell in cells(topology):
        found = cell_of(topology.mesh, cell.source.key, f"{cell.to}:{cell.port}", cell.family)
        assert found == replace(cell, bulk=False, balanced=False)
    assert cell_of(topology.mesh, "shop/client", "server.shop:80", 4) is not None
    assert cell_of(topology.mesh, "shop/client", "server.shop:80", 6) is None
    assert cell_of(topology.mesh, "shop/client", "shop/server:1", 4) is None


def test_a_service_without_endpoints_has_no_path_that_could_be_encrypted() -> None:
    nobody = replace(SERVICE, selector={"app": "nobody"})
    found = [cell for cell in cells(_topology(CLIENT, SERVER, services=(nobody,))) if cell.to == "server.shop"]
    assert found
    assert {(cell.expected, cell.hbone) for cell in found} == {("deny", False)}


DEAF: frozenset[tuple[str, int, Family]] = frozenset({("shop/server", 8080, 6)})


def test_a_cell_says_where_nobody_listens_and_keeps_what_the_policies_say() -> None:
    found = {cell.name: cell for cell in cells(_topology(CLIENT, SERVER, services=(SERVICE,)), DEAF)}
    quiet = found["shop/client->shop/server:8080/6"]
    assert (quiet.expected, quiet.oracle) == ("allow", "allow")
    assert "nobody listens there over IPv6 (in shop/server)" in quiet.rule
    silent = {name for name, cell in found.items() if not cell.listening}
    assert silent == {
        "shop/client->shop/server:8080/6",
        "shop/client->server.shop:80/6",
        "shop/server->server.shop:80/6",
    }


def test_a_cell_to_nobody_is_no_twin_and_carries_no_bulk() -> None:
    topology = _topology(CLIENT, INTRUDER, SERVER, policies=(_only("client"),))
    planned = cells(topology, DEAF)
    denied = next(cell for cell in planned if cell.name == "shop/intruder->shop/server:8080/6")
    assert control_for(denied, planned).twin is None
    assert all(cell.listening for cell in planned if cell.bulk)
