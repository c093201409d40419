"""Greetings, thanks and goodbyes.   in: dice   out: Exchange   who calls: dialogues

Read next: dialogues.py (which puts them around questions).
"""

from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange

__all__ = ["farewell", "greeting", "smalltalk", "thanks"]

_GREETING = "Hello! How can I help you?"
_THANKS = "You are welcome!"
_FAREWELL = "Goodbye! Have a nice day."
_GREETINGS = (
    "Hello!",
    "Hi!",
    "Hello",
    "hi",
    "Good morning!",
    "Good evening!",
    "Hey!",
    "Hello nanochat!",
    "Hi there!",
    "Good day!",
)
_THANKINGS = (
    "Thank you!",
    "Thanks!",
    "thanks",
    "Thank you very much!",
    "Great, thank you!",
    "Thanks a lot!",
    "That was helpful.",
    "Well done!",
)
_FAREWELLS = (
    "Goodbye!",
    "Bye!",
    "bye",
    "See you!",
    "See you tomorrow!",
    "I have to go now.",
    "Good night!",
)
_SAYINGS = (
    ("How are you?", "I am fine, thank you. What would you like to know?"),
    ("How are you today?", "I am fine, thank you. What would you like to know?"),
    ("How do you do?", "I am fine, thank you. What would you like to know?"),
    ("Can I ask you something?", "Of course! Please ask."),
    ("I have a question.", "Of course! Please ask."),
    ("May I ask a question?", "Of course! Please ask."),
    ("I am bored.", "Then let us play with words or numbers. Ask me to spell a word!"),
    ("What shall we do?", "Then let us play with words or numbers. Ask me to spell a word!"),
    ("I am sad.", "I am sorry to hear that. Shall I tell you a story?"),
    ("I had a bad day.", "I am sorry to hear that. Shall I tell you a story?"),
    ("I am happy.", "That is good to hear!"),
    ("I had a good day.", "That is good to hear!"),
    ("You are clever.", "Thank you, that is kind of you!"),
    ("I like you.", "Thank you, that is kind of you!"),
    ("What is the weather like?", "I cannot look out of the window, so I do not know."),
    ("What time is it?", "I have no clock, so I do not know."),
    ("Which day is it today?", "I have no clock, so I do not know."),
)


def greeting(dice: Dice) -> Exchange:
    """A greeting, greeted back."""
    return Exchange(dice.pick(_GREETINGS), _GREETING)


def thanks(dice: Dice) -> Exchange:
    """Thanks and the reply to them."""
    return Exchange(dice.pick(_THANKINGS), _THANKS)


def farewell(dice: Dice) -> Exchange:
    """A goodbye."""
    return Exchange(dice.pick(_FAREWELLS), _FAREWELL)


def smalltalk(dice: Dice) -> Exchange:
    """A greeting, or a few words about nothing much."""
    if dice.chance(0.3):
        return dice.weighted(((2, greeting), (1, thanks), (1, farewell)))(dice)
    return Exchange(*dice.pick(_SAYINGS))
