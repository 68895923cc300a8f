"""hatchling, behind a look at the version of Python.

pip reads requires-python of a directory only when it has installed what builds it, and looked up every dependency.  That takes
minutes on a slow network, and on Python 3.10 all of it is in vain.  pyproject.toml asks for hatchling on newer versions only,
so that pip comes here at once.  Must be readable for old versions of Python.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("asyncmig needs Python 3.11 or newer; this is Python %d.%d.%d" % sys.version_info[:3])

from hatchling.build import *  # noqa: F403
