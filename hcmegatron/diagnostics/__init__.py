"""What the connections do while a run trains: recorded on held-out text, reduced by pure functions, kept in files."""
