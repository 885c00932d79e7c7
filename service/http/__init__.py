"""The HTTP of the service: sockets, the protocol, the fast road of /predict, bodies, what describes it all."""
