"""BLEU of one sequence against one reference (Papineni et al. 2002), with n-grams of 1 to 4 and no smoothing.

    BLEU = BP · (p1 p2 p3 p4)^(1/4)          BP = 1 if the candidate is at least as long as the reference,
                                             otherwise exp(1 - reference length / candidate length)

p_n is the share of the candidate's n-grams that stand in the reference, each counted at most as often as it stands
there. If no n-gram of one length matches, BLEU is 0; so it is for a candidate of fewer than four items. This is
`nltk.translate.bleu_score.sentence_bleu` with its defaults, up to 1e-76, which nltk gives instead of 0.

A string is a sequence of characters: the scores of the Trojan Detection Challenge are BLEU of characters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

LONGEST = 4


def bleu(candidate: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """BLEU of a candidate, from 0 to 1.

    Args:
      candidate: words, tokens, or a string, whose items are its characters.
      reference: the sequence that it should equal, in the same kind of items.
    """
    logs = 0.0
    for n in range(1, LONGEST + 1):
        given, wanted = _ngrams(candidate, n), _ngrams(reference, n)
        matches = sum((given & wanted).values())
        if not matches:
            return 0.0
        logs += math.log(matches / given.total()) / LONGEST
    return math.exp(logs + min(0.0, 1 - len(reference) / len(candidate)))


def _ngrams(items: Sequence[Hashable], n: int) -> Counter:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))
