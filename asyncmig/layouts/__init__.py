"""What is this directory, and where are its stores?  Turns a path into opened, locked and trusted stores."""
