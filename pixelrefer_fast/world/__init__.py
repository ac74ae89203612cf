"""The synthetic world: scenes of plain objects drawn from seeds, and questions about them with known answers."""

from pixelrefer_fast.world.asking import ask_about
from pixelrefer_fast.world.questions import CATEGORIES, Question, normalise
from pixelrefer_fast.world.scene import Scene, make_crowd, make_scene

__all__ = ["CATEGORIES", "Question", "Scene", "ask_about", "make_crowd", "make_scene", "normalise"]
