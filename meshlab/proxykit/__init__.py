"""What any proxy of ours is made of, and no policy is in: it imports no proxy, and each proxy imports it.

tunnel, pool, connection_state    HBONE connections, and who may share one
tls, credentials, certificates    mutual TLS, and one SVID for each identity, renewed
ca_client, xds_client, config     the control plane, as a proxy in a cluster reaches it
splice, sockets, listener         bytes from here to there, sockets in pods, listeners that lose nobody
tasks, status                     tasks, HTTP pages
"""
