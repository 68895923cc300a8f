"""What is this directory, and where are its stores?  From a place to opened, locked, trusted stores."""
