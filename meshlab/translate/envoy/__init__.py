"""The parts of what an Envoy waypoint is sent; ``for_envoy.resources`` puts them together.

serving     which addresses and ports the waypoint serves, and which upstreams it sends calls to
listeners   the three listeners, and a filter chain for each address and port
routes      a route configuration for each chain that reads HTTP
tokens      RequestAuthentications, as the filter that verifies tokens
rbac        AuthorizationPolicies, as rules of the RBAC filters
clusters    a cluster for each upstream, and the tunnels to its endpoints
forms       the forms that all of them write
"""
