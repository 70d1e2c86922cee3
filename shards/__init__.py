"""The contract between the stages: tar shards, their manifest and index, and the order of samples."""
