"""Is this v2 cache sound?"""
