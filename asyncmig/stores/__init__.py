"""The three stores a cache keeps its data in, as ports, and one adapter package for each way to reach them."""
