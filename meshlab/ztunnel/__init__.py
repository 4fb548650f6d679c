"""The reference ztunnel: a readable specification of a node proxy of Istio's ambient mode.

One process serves every captured pod of a node. It is driven by Istio's own protocols and nothing else:

    agent --ZDS, a netns per pod--> pods       listeners in each pod's netns: 15001, 15006, 15008
    istiod --delta xDS--> state                workloads, services, policies
    istiod --CreateCertificate--> certificates one SVID per identity of this node

    app --> 15001 outbound --pool--> tunnel (TLS 1.3, HTTP/2 CONNECT) ==> 15008 inbound --> app
                     `-- plain, to what is not in the mesh      other --> 15006 inbound --> app

``routing`` decides where an outbound connection goes, ``rbac`` whether an inbound one may; both are pure. ``tunnel``
and ``splice`` move bytes. Left out, and refused rather than passed in clear: waypoints and other networks. DNS is not
captured.
"""
