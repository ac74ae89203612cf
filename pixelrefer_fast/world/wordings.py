"""The wordings of each kind of question. `{}` is an object; {word}, {what} and {list} are filled in first."""

NAME = (
    "What shape is {}?",
    "What is the shape of {}?",
    "Which shape does {} have?",
    "Name the shape of {}.",
    "What kind of shape is {}?",
    "Tell me the shape of {}.",
    "What would you call the shape {}?",
)
COLOR = (
    "What color is {}?",
    "What is the color of {}?",
    "Which color does {} have?",
    "Name the color of {}.",
    "What is the main color of {}?",
    "Tell me the color of {}.",
    "In which color is {} painted?",
)
PATTERN = (
    "What pattern does {} have?",
    "What is the pattern of {}?",
    "Which pattern is on {}?",
    "Is {} solid, striped or dotted?",
    "Name the pattern of {}.",
    "How is {} filled?",
    "Tell me the fill pattern of {}.",
)
DESCRIPTION = (
    "Describe {}.",
    "Please describe {}.",
    "Please describe {} in detail.",
    "Please describe in detail the marked object {} in the {where}.",
    "Give a short description of {}.",
    "Describe {} in a few words.",
    "What do you see at {}?",
    "What is {}? Tell its size, color, pattern and shape.",
    "Describe the object {} with its size, color and pattern.",
)
SIDE = (  # yes or no
    "Is {} {word} {}?",
    "Does {} lie {word} {}?",
    "Is {} located {word} {}?",
    "Can {} be found {word} {}?",
    "Is it true that {} is {word} {}?",
    "Would you say that {} is {word} {}?",
)
WHERE = (  # left, right, above, below
    "Where is {} relative to {}?",
    "Where is {} as seen from {}?",
    "On which side of {other} is {one}?",
    "In which direction from {other} does {one} lie?",
    "Where does {} lie with respect to {}?",
    "What is the position of {} relative to {}?",
)
LARGER = (  # the first or the second; {word}: larger, smaller
    "Which is {word}, {} or {}?",
    "Which one is {word}: {} or {}?",
    "Which of {} and {} is {word}?",
    "Which object is {word}, {} or {}?",
    "Of {} and {}, which is {word}?",
    "Compare {} and {}: which is {word}?",
)
TOUCH = (  # yes or no
    "Do {} and {} touch?",
    "Do {} and {} touch or overlap?",
    "Is {} touching {}?",
    "Does {} touch {}?",
    "Are {} and {} in contact?",
    "Do {} and {} overlap or touch each other?",
)
SAME = (  # yes or no; {word}: color, shape, pattern
    "Are {} and {} the same {word}?",
    "Do {} and {} have the same {word}?",
    "Is the {word} of {} the same as that of {}?",
    "Does {} have the same {word} as {}?",
    "Do {} and {} share their {word}?",
    "Is {} of the same {word} as {}?",
)
EXTREME = (  # the first, second or third; {word}: the leftmost, ...
    "Which of {list} is {word}?",
    "Of {list}, which is {word}?",
    "Which one is {word}: {list}?",
    "Which object is {word} among {list}?",
    "Among {list}, which one is {word}?",
    "Look at {list}. Which is {word}?",
)
COUNT = (  # {word}: color, shape
    "How many objects have the same {word} as {}, itself included?",
    "Counting {} itself, how many objects share its {word}?",
    "How many objects are of the same {word} as {}, including it?",
    "How many objects in all have the {word} of {}?",
    "Count the objects with the same {word} as {}, itself included.",
    "What is the number of objects with the {word} of {}, itself included?",
)
TOUCHED = (
    "What is touching {}?",
    "What touches {}?",
    "Which object is in contact with {}?",
    "What object does {} touch?",
    "What is {} in contact with?",
    "Name the object that touches {}.",
)
TOUCHED_COLOR = (
    "What color is the object touching {}?",
    "What is the color of the object that touches {}?",
    "Which color does the object in contact with {} have?",
    "Name the color of the object touching {}.",
    "What color is the object next to {} that touches it?",
    "Tell me the color of the object that {} touches.",
)
BEHIND = (
    "What is behind {}?",
    "What is partly hidden by {}?",
    "Which object lies behind {}?",
    "What does {} partly cover?",
    "Name the object behind {}.",
    "What object is covered in part by {}?",
)
BEHIND_COLOR = (
    "What color is the object behind {}?",
    "What is the color of the object that {} partly covers?",
    "Which color does the object behind {} have?",
    "Name the color of the object behind {}.",
    "What color is the object partly hidden by {}?",
    "Tell me the color of what lies behind {}.",
)
FRONT = (
    "What is in front of {}?",
    "What partly hides {}?",
    "Which object lies in front of {}?",
    "What partly covers {}?",
    "Name the object in front of {}.",
    "Which object covers a part of {}?",
)
MOVES = (
    "How does {} move?",
    "What happens to {} over time?",
    "What is {} doing?",
    "How does {} change in the video?",
    "Describe the motion of {}.",
    "What does {} do during the video?",
    "In what way does {} move or change?",
)
MOVING = (  # yes or no
    "Is {} moving?",
    "Does {} move?",
    "Does {} change its place in the video?",
    "Is {} in motion?",
    "Does {} go anywhere?",
    "Does the position of {} change over time?",
)
RESIZING = (  # yes or no
    "Does the size of {} change?",
    "Does {} change its size?",
    "Is the size of {} changing over time?",
    "Does {} become larger or smaller?",
    "Does {} grow or shrink?",
    "Is {} of a different size at the end?",
)
SELECT = (  # {what}: is a red circle, is striped, is the smallest, moves left
    "Which of {list} {what}?",
    "Of {list}, which one {what}?",
    "Which one {what}: {list}?",
    "Among {list}, which {what}?",
    "Which object {what} among {list}?",
    "Look at {list}. Which one {what}?",
)
