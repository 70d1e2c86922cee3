"""Stream shards by the plan and train a SegFormer, on one process or under torchrun."""
