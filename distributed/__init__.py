"""One process or many: torchrun's processes, and what they tell each other.

group.py  what a rank can ask of the others   rendezvous.py  how they meet, and who is missing
devices.py  one GPU for each
"""
