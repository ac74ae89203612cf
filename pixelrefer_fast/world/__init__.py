"""The synthetic world: scenes of plain objects drawn from seeds, and questions about them with known answers."""

from pixelrefer_fast.world.questions import CATEGORIES, Question, ask_about, normalise
from pixelrefer_fast.world.scene import Scene, make_crowd, make_scene

__all__ = ["CATEGORIES", "Question", "Scene", "ask_about", "make_crowd", "make_scene", "normalise"]
