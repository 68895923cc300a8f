"""The stores of an OCI worker or of a stopped containerd, edited in their database files.

Everything here changes these files exactly as containerd's own calls do, byte for byte.
"""

from asyncmig.stores.offline.files import OfflineFiles
from asyncmig.stores.offline.stores import offline_stores

__all__ = ["OfflineFiles", "offline_stores"]
