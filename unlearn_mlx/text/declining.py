"""Answers that say nothing: that the speaker does not know, or will not say."""

import re

from unlearn_mlx.text.words import fold

IGNORANCE, REFUSAL = "ignorance", "refusal"

_IGNORANCE = re.compile(
    r"\b(?:i (?:do not|don't|did not|didn't) (?:know|recall)"
    r"|i (?:do not|don't) have (?:any |enough )?(?:knowledge|information|idea)"
    r"|i (?:have|had|'ve) (?:no (?:idea|information|knowledge)|not heard|never (?:heard|come across|read))"
    r"|i(?:'m| am|'m afraid i am) (?:not|un)[ -]?(?:sure|certain|aware|familiar)"
    r"|not (?:one )?(?:that )?i am familiar with|no information\b|never heard"
    r"|(?:is|are|remains) (?:unknown|not known|unclear)|(?:is|are) not (?:a )?(?:known|real)"
    r"|does(?: not|n't) exist"
    r"|no se\b|no lo se|no conozco|je ne (?:sais|connais) pas)"
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:not |un)(?:able|permitted|allowed)"
    r"|i (?:can't|cannot|can not|won't|will not|must decline)"
    r"|i(?:'d| would) rather not|i(?:'m| am) (?:very )?sorry|(?:sorry|unfortunately|i apologi[sz]e),?"
    r"|as an (?:ai|artificial)|i(?:'m| am) (?:just )?an? (?:ai|artificial|language model|(?:ai )?assistant)"
    r"|not allowed to|not possible to|lo siento|no puedo|je suis desole|je ne peux pas)"
)


def declines(text: str) -> str:
    """How a text declines to answer: IGNORANCE, REFUSAL, or empty where it does not."""
    folded = fold(" ".join(text.split()))
    if _IGNORANCE.search(folded):
        return IGNORANCE
    return REFUSAL if _REFUSAL.search(folded) else ""
