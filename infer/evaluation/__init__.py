"""What an evaluation counts, scores and writes."""
