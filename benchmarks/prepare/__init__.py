"""`cocoseg prepare` against the plain way and its peers."""
