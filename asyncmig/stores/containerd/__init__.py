"""The stores of a containerd worker, in a running containerd, over gRPC on its unix socket.

Imports nothing, because importing grpclib takes longer than starting the whole command does.
"""
