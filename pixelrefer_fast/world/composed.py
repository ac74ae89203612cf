"""Wordings put together from parts, so that a frame learnt with one kind of question is understood with another.

`spoken.py` has what people said; here is what follows from it: every "Can you tell me whether ...?" before everything
that is so or not, every word for a colour in every place where one is asked for. Slots are as in `wordings.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelrefer_fast.world.spoken import HELD_OUT, bare

_NOUNS = {
    "name": ("shape", "form", "figure", "outline", "geometric shape", "kind of shape"),
    "color": ("color", "hue", "shade", "tone", "main color"),
    "pattern": ("pattern", "texture", "fill", "filling", "kind of pattern", "surface pattern"),
    "size": ("size", "scale", "relative size"),
}
_NOUN_FRAMES = (
    "What is the {noun} of {}?",
    "What's the {noun} of the object {}?",
    "Tell me the {noun} of {}.",
    "Give me the {noun} of {}.",
    "Give the {noun} of {}, please.",
    "Name the {noun} of the thing {}.",
    "I would like to know the {noun} of {}.",
    "I need the {noun} of {}.",
    "Do you know the {noun} of {}?",
    "Can you see the {noun} of {}?",
    "Can you identify the {noun} of {}?",
    "What do you think the {noun} of {} is?",
    "Look at {}. What is its {noun}?",
    "For {}, what is the {noun}?",
    "{}: its {noun}?",
    "{}, which {noun} is it?",
    "the {noun} of {}",
    "{noun} of the object {}",
    "{} has which {noun}?",
    "What {noun} does {} have?",
    "What {noun} can you see at {}?",
    "Which {noun} would you say {} has?",
    "What {noun} is {}?",
    "What {noun} is the marked thing {}?",
    "Determine the {noun} of {}.",
    "Report the {noun} of {}.",
)
_CHOICES = {
    "name": ("a circle, a star or something else", "a square, a triangle or what", "round, square or of another shape"),
    "color": ("red, green or another color", "blue, yellow or what", "black, white or some other color"),
    "pattern": ("striped or dotted or plain", "solid or with stripes or dots", "plain or does it have a pattern"),
    "size": ("small or large or in between", "big, medium or small", "little, medium or big"),
}
_CHOICE_FRAMES = (
    "Is {} {choice}?",
    "{}: is it {choice}?",
    "Would you call {} {choice}?",
    "Tell me if {} is {choice}.",
    "Is the object {} {choice}?",
)
_MORE = {
    "pattern": (
        "Does {} have stripes or dots, or is it plain?",
        "Are there stripes or dots on {}?",
        "Has {} stripes, dots or nothing?",
        "Is there a pattern on {}, and which?",
        "stripes, dots or solid: {}",
    ),
    "size": ("How large or small is {}?", "How big would you say {} is?", "Tell me how big {} is.", "how large {}"),
    "color": ("How is {} colored?", "In what color is {}?", "What color was {} painted?", "Of what color is {}?"),
    "name": (
        "How is {} shaped?",
        "Of what shape is {}?",
        "How would you call the form of {}?",
        "What is {} shaped like?",
    ),
}
_SO = {  # what is so or not
    "check": ("{} is {value}", "the object {} is {value}", "the thing {} is {value}", "this {} is {value}"),
    "side": ("{} is {word} {}", "{} lies {word} {}", "the object {} is {word} {}", "{} can be seen {word} {}"),
    "touch": ("{} and {} touch", "{} touches {}", "{} is touching {}", "{} and {} are in contact", "{} meets {}"),
    "same": (
        "{} and {} have the same {word}",
        "{} has the same {word} as {}",
        "the {word} of {} and {} is the same",
        "{} and {} share one {word}",
        "{} is like {} in {word}",
    ),
    "moving": ("{} moves", "{} is moving", "{} changes its place", "{} goes somewhere else", "{} is going anywhere"),
    "resizing": (
        "{} changes its size",
        "the size of {} changes",
        "{} grows or shrinks",
        "{} gets bigger or smaller",
        "the size of {} is different later",
    ),
}
_SO_FRAMES = (
    "Tell me if {so}.",
    "Tell me whether {so}.",
    "Can you tell me whether {so}?",
    "Could you tell me if {so}?",
    "Can you say if {so}?",
    "Can you see if {so}?",
    "Say whether {so}.",
    "Check if {so}.",
    "Please check whether {so}.",
    "Could you check that {so}?",
    "I want to know whether {so}.",
    "I would like to know if {so}.",
    "I wonder if {so}.",
    "Let me know whether {so}.",
    "Would you say that {so}?",
    "Would you say {so}?",
    "Do you think that {so}?",
    "Do you think {so}?",
    "Is it true that {so}?",
    "Is it right that {so}?",
    "Is it correct to say that {so}?",
    "Is it the case that {so}?",
    "Do you agree that {so}?",
    "{so}?",
    "{so}, yes or no?",
    "{so}, right?",
    "{so}, true?",
    "Yes or no: {so}?",
)
_WHAT = {  # what is asked for, as a part of a sentence
    "description": ("what {} is", "what the object {} is", "what the thing at {} is", "what kind of thing {} is"),
    "where": (
        "where {} is relative to {}",
        "where {} is in relation to {}",
        "where {} lies with respect to {}",
        "where {} is compared to {}",
        "where {} is when seen from {}",
        "on which side of {other} {one} is",
        "in which direction {one} is from {other}",
    ),
    "larger": (
        "which is {word}, {} or {}",
        "which one of {} and {} is {word}",
        "which of {} and {} is the {word} one",
        "whether {} or {} is {word}",
    ),
    "extreme": ("which of {list} is {word}", "which one is {word} of {list}", "which object of {list} is {word}"),
    "counting": (
        "how many objects have the same {word} as {}",
        "how many objects have the {word} of {}",
        "how many things share the {word} of {}",
        "how many objects are of the {word} of {}",
        "how many of the objects are like {} in {word}",
        "the number of objects that have the {word} of {}",
    ),
    "touched": (
        "what touches {}",
        "what {} touches",
        "which object {} is touching",
        "what is in contact with {}",
        "which thing touches {}",
    ),
    "touched color": (
        "what color the object that touches {} is",
        "which color the object touching {} has",
        "the color of the object in contact with {}",
        "the color of the thing that {} touches",
    ),
    "behind": (
        "what is behind {}",
        "what {} covers",
        "what {} hides",
        "which object {} is in front of",
        "which thing lies behind {}",
    ),
    "behind color": (
        "what color the object behind {} is",
        "the color of what {} hides",
        "the color of the thing behind {}",
        "which color the object that {} covers has",
    ),
    "front": (
        "what is in front of {}",
        "what covers {}",
        "what hides {}",
        "which object {} is behind",
        "which thing lies in front of {}",
    ),
    "moves": (
        "how {} moves",
        "how {} is moving",
        "what {} does",
        "what {} is doing in the video",
        "what is happening to {}",
        "what happens to {}",
        "where {} is going",
        "which way {} goes",
        "in what direction {} is moving",
        "how {} changes",
        "the movement of {}",
        "the motion of {}",
    ),
    "selection": ("which of {list} {what}", "which one {what} of {list}", "which object of {list} {what}"),
}
_WHAT_FRAMES = (
    "Tell me {what it is}.",
    "Please tell me {what it is}.",
    "Can you tell me {what it is}?",
    "Could you tell me {what it is}?",
    "Can you say {what it is}?",
    "Can you see {what it is}?",
    "Do you know {what it is}?",
    "Do you see {what it is}?",
    "Say {what it is}.",
    "Explain {what it is}.",
    "Describe {what it is}.",
    "Find out {what it is}.",
    "I want to know {what it is}.",
    "I would like to know {what it is}.",
    "Let me know {what it is}.",
    "{what it is}?",
    "{what it is}",
    "Look and tell me {what it is}.",
    "Determine {what it is}.",
)
_ASKED = {  # the same as whole questions
    "where": (
        "Is {} left or right of, above or below {}?",
        "Is {} to the left, to the right, above or below {}?",
        "Left, right, above or below {other}: where is {one}?",
        "Compared to {other}, where is {one}?",
        "In relation to {other}, where does {one} lie?",
        "With respect to {other}, where is {one}?",
        "If you look from {other}, where is {one}?",
        "Which side of {other} is {one} on?",
        "To which side of {other} does {one} lie?",
        "What is the place of {} relative to {}?",
        "Where can {} be found relative to {}?",
    ),
    "larger": ("Compare {} with {}: which one is {word}?", "The {word} of {} and {}?", "Pick the {word} of {} and {}."),
    "extreme": ("Pick the one of {list} that is {word}.", "Who is {word}: {list}?", "Find {word} of {list}."),
    "counting": (
        "Count the things with the {word} of {}.",
        "Count everything that has the same {word} as {}.",
        "Count how many objects share the {word} of {}.",
        "With the {word} of {}, how many objects are there?",
        "Number of objects with the {word} of {}?",
    ),
    "touched": (
        "Does something touch {}, and what is it?",
        "Is anything touching {}, and what?",
        "What thing does {} touch?",
        "{}: what touches it?",
        "Who is touching {}?",
        "Name the neighbor that touches {}.",
    ),
    "behind": ("Is there something behind {}, and what?", "{}: what is behind it?", "What is hidden behind {}?"),
    "front": ("Is there something in front of {}, and what?", "{}: what is in front of it?", "What stands before {}?"),
    "moves": (
        "What kind of motion does {} make?",
        "Which motion does {} have?",
        "Where does {} go?",
        "Where is {} going?",
        "Does {} move, grow, shrink or turn, and how?",
        "What movement does {} make?",
        "{}: how does it move?",
        "What goes on with {}?",
    ),
    "moving": ("Does {} move at all?", "Does {} travel?", "Does {} leave its place?"),
    "resizing": ("Does {} get bigger or smaller?", "Does {} become another size?"),
    "selection": ("Pick the one of {list} that {what}.", "Point out which of {list} {what}.", "Who {what}: {list}?"),
    "same": ("Same {word} for {} and {}?", "Do {} and {} match in {word}?", "Are {} and {} equal in {word}?"),
    "touch": ("Any contact between {} and {}?", "Do {} and {} meet?", "Are {} and {} next to each other and touching?"),
    "side": ("Is {} somewhere {word} {}?", "Is {} placed {word} {}?", "Do you find {} {word} {}?"),
    "check": ("{value}, is that {}?", "Is {} really {value}?", "Is that thing {} {value}?"),
}
_VERBS = ("describe", "explain", "identify", "characterize", "summarize", "label", "caption", "recognize", "name")
_VERB_FRAMES = (
    "{verb} {}.",
    "{verb} {}",
    "Please {verb} {}.",
    "{verb} {} for me.",
    "Can you {verb} {}?",
    "Could you {verb} {} for me, please?",
    "{verb} the object {}.",
    "{verb} the thing at {}.",
    "{verb} the marked object {} in the {where}.",
    "I want you to {verb} {}.",
)
_TEXTS = ("description", "caption", "label", "short text", "summary", "title", "short caption")
_TEXT_FRAMES = (
    "Write a {text} for {}.",
    "Give a {text} of {}.",
    "Give me a {text} for {}.",
    "Make a {text} of the object {}.",
    "I need a {text} of {}.",
    "{text} of {}",
    "A {text} for {}, please.",
)


def _written(text: str) -> str:
    return text[:1].upper() + text[1:] if text[-1] in ".?" else text


def _filled(frames: Sequence[str], slot: str, parts: Sequence[str]) -> Iterator[str]:
    """Every frame with every part; the frames have no other slot that a part could be mistaken for."""
    for frame in frames:
        for part in parts:
            yield _written(frame.replace(slot, part))


def _of(kind: str) -> Iterator[str]:
    yield from _filled(_NOUN_FRAMES, "{noun}", _NOUNS.get(kind, ()))
    yield from _filled(_CHOICE_FRAMES, "{choice}", _CHOICES.get(kind, ()))
    yield from _filled(_SO_FRAMES, "{so}", _SO.get(kind, ()))
    yield from _filled(_WHAT_FRAMES, "{what it is}", _WHAT.get(kind, ()))
    yield from (*_MORE.get(kind, ()), *_ASKED.get(kind, ()))
    if kind == "description":
        yield from _filled(_VERB_FRAMES, "{verb}", _VERBS)
        yield from _filled(_TEXT_FRAMES, "{text}", _TEXTS)


def _learnt(kind: str) -> tuple[str, ...]:
    kept = {bare(wording) for wording in HELD_OUT[kind]}
    return tuple(wording for wording in dict.fromkeys(_of(kind)) if bare(wording) not in kept)


COMPOSED: dict[str, tuple[str, ...]] = {kind: _learnt(kind) for kind in dict.fromkeys((*_NOUNS, *_SO, *_WHAT, *_ASKED))}
"""Wordings by kind of question: all that the parts make, but for those held out."""
