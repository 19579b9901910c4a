"""How much of a known answer a text says, and how varied it is."""

import itertools
import re
from collections import Counter

import numpy as np
from rapidfuzz.distance import LCSseq

from unlearn_mlx.text.words import words

# RWKU's fluency takes pairs and triples of words, the latter at double weight (as ROME does).
_ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
LEAST_WORDS = 3  # that have a pair and a triple


def rouge_l_recall(answer: str, reference: str) -> float:
    """ROUGE-L recall (Lin 2004): longest common subsequence over the reference's length, in words.

    Equals the rouge-score package without stemming; 0 where either text has no words.
    """
    said, wanted = _rouge_words(answer), _rouge_words(reference)
    return LCSseq.similarity(said, wanted) / len(wanted) if wanted else 0.0


def ngram_entropy(text: str) -> float:
    """Mean of the entropies of word pairs and triples, in bits, weighted 2/3 and 4/3.

    RWKU's fluency (Jin et al. 2024, after Meng et al. 2022). Repetition lowers it; so does a short
    text, so that only answers of the same length limit compare. 0 for a text of one word.
    """
    sequence = words(text)
    entropies = []
    for length, weight in _ENTROPY_WEIGHTS.items():
        counts = Counter(itertools.pairwise(sequence) if length == 2 else _triples(sequence))
        shares = np.array(list(counts.values()), float) / max(1, counts.total())
        entropies.append(weight * float(-(shares * np.log2(shares)).sum()))
    return float(np.mean(entropies)) + 0.0


def at_equal_length(first: str, second: str) -> tuple[str, str] | None:
    """Two texts cut to the shorter's number of words; None where that is too few to repeat any.

    Repetition grows with length, and entropy too: unequal texts do not compare.
    """
    sequences = words(first), words(second)
    count = min(map(len, sequences))
    if count < LEAST_WORDS:
        return None
    return " ".join(sequences[0][:count]), " ".join(sequences[1][:count])


def _triples(sequence: list[str]) -> "zip[tuple[str, str, str]]":
    return zip(sequence, sequence[1:], sequence[2:], strict=False)


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
