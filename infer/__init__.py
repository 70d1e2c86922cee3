"""Predict masks for photographs, and score a checkpoint on shards."""
