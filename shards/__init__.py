"""The contract between the stages: tar shards, manifest, index, and the order of samples."""
