"""The migration: one module a stage, in the order read, resolve, blobs, chains, build, then the tail that nothing cancels.

It sees the stores through their ports only, and the metadata database through :mod:`asyncmig.buildkit`.
"""
