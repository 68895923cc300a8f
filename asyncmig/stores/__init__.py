"""The three stores of a cache: the ports, and an adapter package for each way to reach the stores."""
