"""One process or many: torchrun's processes, and what they tell each other."""
