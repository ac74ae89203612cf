"""The synthetic world: seeded scenes of plain objects, and questions about them whose answers are known."""

from pixelrefer_fast.world.questions import CATEGORIES, Question, ask_about, normalise
from pixelrefer_fast.world.scene import Scene, make_crowd, make_scene

__all__ = ["CATEGORIES", "Question", "Scene", "ask_about", "make_crowd", "make_scene", "normalise"]
