"""Fuzzing: bytes that nobody expects, in place of files, values, journals, answers and connections.

``python -m tests.fuzz TARGET --seconds 60`` feeds one target, guided by atheris where it is installed (``--loop``: never).
An input that breaks a promise is printed in a form that repeats it; mended, it goes into ``corpus/TARGET`` under a name that
tells what was wrong, where every test run meets it again.  ``targets.py`` lists the targets; the campaign ``fuzz`` of
``make torture`` runs them all.
"""
