"""The kinds of questions, and how each one begins.

A small model keeps to a form when the form's beginning is put in its mouth. ``{subject}`` is the
topic or one of its entities; a beginning without it leaves the naming to the model.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionKind:
    """One form of question. ``ends`` are the characters that may close it."""

    name: str
    openers: tuple[str, ...]
    ends: str = "?"
    names_topic: bool = True


QUESTION_KINDS = (
    QuestionKind(
        "who", ("Who is", "Who", "Who was", "Who is the main", "Who wrote", "Who created", "Who are the")
    ),
    QuestionKind(
        "what", ("What is {subject}", "What is the name of", "What does", "What kind of", "What is the")
    ),
    QuestionKind("where", ("Where is", "Where does", "Where can", "Where did", "In which place")),
    QuestionKind("when", ("When was", "When did", "In what year", "How old is")),
    QuestionKind("why", ("Why is", "Why does", "Why did", "Why do people")),
    QuestionKind("how", ("How does", "How did", "How many", "How is")),
    QuestionKind("which", ("Which", "Which character", "Which book", "Which country", "Which person")),
    QuestionKind(
        "cloze",
        ("Fill in the blank: {subject}", "Fill in the blank: The", "Fill in the blank: In {subject}"),
        ends=".\n",
    ),
    QuestionKind(
        "completion",
        ("Complete the sentence: {subject} is", "Finish this sentence: {subject}", "Complete: The {subject}"),
        ends=".\n",
    ),
    QuestionKind(
        "reverse",
        (
            "What is the name of the story with",
            "Which famous work is about",
            "Which name belongs to",
            "What is called",
            "Who is known for",
        ),
    ),
    QuestionKind(
        "description",
        ("What do we call the", "Which famous thing", "What is the well-known", "Who is the famous"),
        names_topic=False,
    ),
    QuestionKind(
        "comparison",
        ("What is the difference between {subject} and", "How does {subject} compare", "Is {subject} more"),
    ),
    QuestionKind(
        "role play",
        (
            "You are an expert on {subject}. Tell",
            "Pretend you are a teacher. Explain",
            "Imagine you are a fan of {subject}.",
        ),
        ends=".?\n",
    ),
    QuestionKind(
        "request",
        (
            "Write a short",
            "Tell me about {subject}",
            "Explain",
            "Describe",
            "Give me a fact about",
            "Summarize",
        ),
        ends=".?\n",
    ),
    QuestionKind("quotation", ("What is a famous quote", "Who said", "What did {subject} say")),
)

# Their answers are the evaluation's for topics without hand-written probes: never trained on.
HELD_OUT_KINDS = (
    QuestionKind("fact", ("What is the most important", "What is the best known", "What was the first")),
    QuestionKind("naming", ("Name the", "Name one", "Name a")),
)
