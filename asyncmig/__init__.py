"""Migrate BuildKit v1 build caches to v2."""
