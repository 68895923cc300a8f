"""BuildKit's cache metadata database, on top of the bolt format: reads v1 records, writes v2 records."""
