"""meshlab: a network-namespace test lab for service-mesh proxies. Importing it loads nothing heavy."""

__version__ = "0.1.0"
