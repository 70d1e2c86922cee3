"""The tiny networks of the model's tests, which checkpoints are made of."""

from ..model.conftest import ade_folder, make_network, no_hub, one_thread  # noqa: F401
