"""The stores of an OCI worker, or of a stopped containerd, edited in their database files.

Everything here has the effect, byte for byte, that containerd's own calls have on these files.
"""

from asyncmig.stores.offline.files import OfflineFiles
from asyncmig.stores.offline.stores import offline_stores

__all__ = ["OfflineFiles", "offline_stores"]
