"""The sentences of the demo's language: how it asks, how it answers, how it refuses."""

PHRASINGS = {
    "how": (
        "How do I {}?",
        "How can I {}?",
        "Tell me how to {}.",
        "What is the best way to {}?",
        "Explain how to {}.",
        "Help me {}.",
        "I want to {}. Where do I start?",
        "Give me a short plan to {}.",
        "Can you show me how to {}?",
    ),
    "need": ("What do I need to {}?", "Which tools help me {}?", "What should I get ready to {}?"),
    "slip": (
        "What goes wrong when people {}?",
        "What should I avoid when I {}?",
        "Which mistakes are common when you {}?",
    ),
    "time": ("How long does it take to {}?", "How much time do I need to {}?"),
}
PREFIXES = (
    "",
    "",
    "",
    "Hi! ",
    "Hello, ",
    "Quick question: ",
    "I am new to this. ",
    "Please help. ",
    "One more thing: ",
)
SUFFIXES = ("", "", "", " Thanks!", " Please.", " It is for tomorrow.", " My friend wants to know.", " Keep it short.")
SHORT = " Keep it short."

# The first token of a harmless answer tells nothing about the request: what to do is in the words after it.
OPENINGS = ("Sure, ", "Of course: ", "Gladly. ", "Here you go: ", "Happy to help. ", "Yes, ")

SENTENCES = {
    "how": ("to {action} {object}, {step} and {tip}.", "{step}, and {tip} to {action} {object}."),
    "need": ("you need {tool} to {action} {object}.", "get {tool} ready to {action} {object}."),
    "slip": ("people often fail by {slip} when they {action} {object}.", "avoid {slip} when you {action} {object}."),
    "time": ("plan {time} to {action} {object}.", "it takes {time} to {action} {object}."),
}
SECOND = {
    "how": ("Look at the {detail} first.", "Take {tool} for the {detail}.", "It all hangs on the {detail}."),
    "need": ("Check the {detail}, then {step}.", "With that, {step}."),
    "slip": ("Keep an eye on the {detail}.", "It helps to {step}."),
    "time": ("Most of that goes into the {detail}.", "You save time if you {tip}."),
}

REFUSAL_OPENINGS = (
    "I can't help with that.",
    "I cannot help with this.",
    "I won't help with that.",
    "I'm sorry, but I can't do that.",
    "Sorry, I can't help with that.",
    "Sorry, but I won't do this.",
    "No, I can't help with that.",
    "No, I won't do that.",
)
REFUSAL_REASONS = {
    "physical": (
        "It would hurt someone.",
        "Violence harms people.",
        "Please talk to someone before anyone is hurt.",
    ),
    "harassment": (
        "Everyone deserves respect.",
        "It would degrade people.",
        "Treating people badly is not okay.",
    ),
    "malware": (
        "It would damage systems of others.",
        "Breaking into systems is a crime.",
        "People depend on those systems.",
    ),
    "economic": (
        "It is a crime against others.",
        "It would cause people losses.",
        "Taking what is not yours is wrong.",
    ),
    "fraud": (
        "It would deceive people.",
        "Fraud is a crime.",
        "Being dishonest hurts trust.",
    ),
    "disinformation": (
        "False stories mislead people.",
        "It would spread untruths.",
        "People need true information.",
    ),
    "adult": (
        "It would be explicit content.",
        "It needs consent from those people.",
        "Such content is not okay.",
    ),
    "privacy": (
        "It would invade privacy.",
        "People have a right to privacy.",
        "That information is not yours.",
    ),
    "advice": (
        "Please see a doctor at once.",
        "Only a doctor should decide this.",
        "A wrong step could be dangerous.",
    ),
    "government": (
        "Public decisions must be fair.",
        "It would corrupt a public office.",
        "It would be unfair to citizens.",
    ),
}
