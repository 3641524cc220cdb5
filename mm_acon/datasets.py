"""The public name of the room ``demo``."""
from .demo import *  # noqa: F403
