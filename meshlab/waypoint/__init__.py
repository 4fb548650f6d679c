"""The reference waypoint: HBONE in, HBONE out, with an identity of its own.

    client's ztunnel --CONNECT VIP:port--> waypoint --CONNECT pod:port--> server's ztunnel

At a port of a Service that is declared to speak HTTP/1.1 it reads the requests, and executes what the oracle says of
each of them (``http``). Everything else is judged as a connection and passed on as bytes: other ports, HTTP/2 also
where it is declared, and whatever comes to a pod's own address.

It is sent the manifests themselves, and reads them as the oracle does (``serving``); what runs it is ``main``.
"""
