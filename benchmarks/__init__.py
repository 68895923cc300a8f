"""The benchmarks; ``python -m benchmarks`` runs them.

A suite is a module: ``offline``, ``bolt``, ``memory``, ``loop_lag``, ``startup``, ``cold``; ``live`` stands for itself.
``suite`` has what they share, ``child`` runs what is measured in a process of its own, ``tasks`` is what runs there.
``baseline`` builds the programs in Go that are compared with, ``equality`` tells whether they have made the same, and
``yardstick`` copies files.  ``model`` keeps results in files, ``compare`` holds them against each other, ``plots`` draws them,
``documents`` shows them.
"""
