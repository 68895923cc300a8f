"""One call of an entry point, from the path to the report.

Empty on purpose: the public face needs :mod:`asyncmig.runs.options` at once, the rest is imported at the first call.
"""
