"""The main job on the embedded world: look, cut at each place found, doubt, and say what was found."""

from mechunlearn.demo.running import Demo as Demo
from mechunlearn.demo.running import run as run

__all__ = ["Demo", "run"]
