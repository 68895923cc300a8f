"""The stores of a containerd worker in a running containerd, reached over gRPC on its unix socket.

This file imports nothing: importing grpclib takes longer than starting the whole command.
"""
