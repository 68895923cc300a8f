"""BuildKit's cache metadata database, on top of the bolt format: record values, v1 keys read, v2 keys written."""
