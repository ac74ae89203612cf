"""What judges are told: in our words, or in those of a checkout of the authors' repository.

Scores depend on these words as they depend on the judge. Those of the paper's numbers belong to the authors and to the
benchmarks that they are from, so they are read from a checkout where `--reference` names one; results say which.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

CAPTION, QUESTION = "{pred_caption}", "{question_text_str}"
CANDIDATES, TARGETS = "{candidate_statements}", "{target_statements}"
NAME = "{class_name}"
OWN = "own"
_HOLE = re.compile(r"\{[a-z_]+\}")


def filled(template: str, **holes: str) -> str:
    """A template with texts in its holes; what looks like a hole inside a text stays."""
    return _HOLE.sub(lambda found: holes.get(found.group()[1:-1], found.group()), template)


@dataclass(frozen=True)
class JudgePrompts:
    """The texts of all judged benchmarks.

    Attributes:
        clair: Ref-L4's, with CANDIDATES and TARGETS in it; asks for JSON with "score" from 0 to 100.
        choice: DLC-Bench's, with CAPTION and QUESTION in it; asks for one of the choices.
        one_object, many_objects: DLC-Bench's first question, with NAME in it (an article included for one).
        rating: VideoRefer-Bench-D's system message; asks for four numbered lines `NAME: 0 to 5`.
        condensing: Ref-L4's system message, which makes a phrase of a description.
        review: Ferret's system message.
        origin: `own`, or the checkout's commit.
    """

    clair: str = (
        "Two lists of captions follow. Each list describes one image.\n\n"
        f"Candidate captions:\n{CANDIDATES}\nReference captions:\n{TARGETS}\n"
        "How sure are you that both lists are about the same image? Reply with a JSON object alone: "
        '"score", a number from 0 (certainly not) to 100 (certainly), and "reason", a sentence.'
    )
    choice: str = (
        "Below is a description of one object in an image, then a question with lettered choices. Judge by the "
        "description alone and pick the choice that comes nearest, even where the words differ. Reply with that one "
        f"choice and nothing else.\n\nDescription:\n{CAPTION}\n\nQuestion:\n{QUESTION}\n"
    )
    one_object: str = f"Could the described object be {NAME}, or something of a similar kind?"
    many_objects: str = f"Could the described objects be {NAME}, or things of a similar kind?"
    rating: str = (
        "You compare a description of an object in a video with the correct one. Give four whole numbers from 0 "
        "(nothing fits) to 5 (all fits), each with a short reason:\n"
        "Subject Correspondence: is it about the same subject?\n"
        "Appearance Description: are colours, shapes, sizes and textures right?\n"
        "Temporal Description: are movements and their order right?\n"
        "Hallucination Detection: is everything that it says really there? 5 if nothing is made up.\n"
        "Reply in exactly this form:\n"
        "1. Subject Correspondence: N\nReason: ...\n2. Appearance Description: N\nReason: ...\n"
        "3. Temporal Description: N\nReason: ...\n4. Hallucination Detection: N\nReason: ..."
    )
    condensing: str = (
        "Shorten the description of an object that you are given to one short phrase: what it is, and what marks it "
        'out, such as "a red mug with a chipped rim". Reply with the phrase alone.'
    )
    review: str = "You rate how well answers to questions about images are written and whether they are right."
    origin: str = OWN

    def provenance(self) -> dict[str, Any]:
        """Where the words are from, and a digest that tells them from others."""
        texts = {name: text for name, text in asdict(self).items() if name != "origin"}
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        return {"origin": self.origin, "sha256": digest[:16]}
