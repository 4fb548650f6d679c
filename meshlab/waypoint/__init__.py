"""The reference waypoint: HBONE in, HBONE out, with an identity of its own. It parses no byte that it passes on.

    client's ztunnel --CONNECT VIP:port--> waypoint --CONNECT pod:port--> server's ztunnel

It is sent the manifests themselves, and reads them as the oracle does (``serving``); what runs it is ``main``.
"""
