"""Reading shards for training, against the plain ways and the peers."""
