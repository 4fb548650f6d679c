"""Both ends of the protocols of an ambient mesh, sans-I/O: messages, xds, zds, hbone."""
