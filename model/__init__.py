"""What training and inference both need: the network, its weights, sizes and scores."""
