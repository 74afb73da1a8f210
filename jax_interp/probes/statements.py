"""True and false statements from templates, with their groups and pairs: sets to try probes of truth on.

    cities, negated = city_statements(), city_statements(negated=True)
    data = cities.tokenized(tokenizer)                   for a real model
    words = cities.in_words()                            one token for each word, for small models and text baselines

The templates are in the manner of Marks & Tegmark (2023, arXiv:2310.06824), and the facts are listed here. Row i of a
negated set is the negation of row i. The sets carry the trap of splitting: each subject stands once in a true and once
in a false statement, so that a classifier of words is below chance after a random split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens

CITIES = {
    "France": "Paris Lyon Marseille Toulouse Nice Bordeaux",
    "Germany": "Berlin Hamburg Munich Cologne Stuttgart Dresden",
    "Italy": "Rome Milan Naples Turin Palermo Bologna",
    "Spain": "Madrid Barcelona Seville Bilbao Malaga Zaragoza",
    "Poland": "Warsaw Krakow Gdansk Poznan Wroclaw Lublin",
    "Portugal": "Lisbon Porto Braga Coimbra",
    "Sweden": "Stockholm Gothenburg Malmo Uppsala",
    "Norway": "Oslo Bergen Trondheim Stavanger",
    "Finland": "Helsinki Tampere Turku Oulu",
    "Greece": "Athens Thessaloniki Patras Heraklion",
    "Turkey": "Istanbul Ankara Izmir Bursa Antalya Konya",
    "Russia": "Moscow Novosibirsk Kazan Omsk Samara Perm",
    "Ukraine": "Kyiv Kharkiv Odesa Lviv Dnipro",
    "Egypt": "Cairo Alexandria Giza Luxor Aswan",
    "Morocco": "Casablanca Rabat Fez Marrakesh Tangier",
    "Nigeria": "Lagos Abuja Kano Ibadan Enugu",
    "Kenya": "Nairobi Mombasa Kisumu Nakuru",
    "India": "Mumbai Delhi Chennai Kolkata Bangalore Pune Jaipur",
    "Pakistan": "Karachi Lahore Islamabad Peshawar Multan",
    "China": "Beijing Shanghai Shenzhen Wuhan Chengdu Nanjing Tianjin",
    "Japan": "Tokyo Osaka Kyoto Sapporo Nagoya Fukuoka Sendai",
    "Vietnam": "Hanoi Haiphong Hue Danang",
    "Indonesia": "Jakarta Surabaya Bandung Medan Makassar",
    "Australia": "Sydney Melbourne Brisbane Perth Adelaide Canberra",
    "Canada": "Toronto Montreal Vancouver Ottawa Calgary Edmonton",
    "Mexico": "Guadalajara Monterrey Puebla Tijuana Cancun",
    "Brazil": "Brasilia Recife Salvador Fortaleza Manaus Curitiba",
    "Argentina": "Rosario Mendoza Tucuman Salta",
    "Chile": "Santiago Valparaiso Antofagasta Temuco",
    "Peru": "Lima Cusco Arequipa Iquitos",
}
"""Some large cities of some countries. All names are one word."""

SPANISH = {
    "casa": "house", "perro": "dog", "gato": "cat", "libro": "book", "agua": "water", "fuego": "fire", "mesa": "table",
    "silla": "chair", "puerta": "door", "ventana": "window", "calle": "street", "ciudad": "city", "noche": "night",
    "tierra": "earth", "cielo": "sky", "sol": "sun", "luna": "moon", "estrella": "star", "flor": "flower",
    "hoja": "leaf", "pan": "bread", "leche": "milk", "queso": "cheese", "carne": "meat", "pescado": "fish",
    "manzana": "apple", "naranja": "orange", "mano": "hand", "pie": "foot", "cabeza": "head", "ojo": "eye",
    "boca": "mouth", "hermano": "brother", "hermana": "sister", "padre": "father", "madre": "mother", "hijo": "son",
    "hija": "daughter", "amigo": "friend", "rey": "king", "reina": "queen", "caballo": "horse", "vaca": "cow",
    "pollo": "chicken", "rojo": "red", "azul": "blue", "verde": "green", "blanco": "white", "negro": "black",
    "grande": "big", "nuevo": "new", "viejo": "old", "lunes": "monday", "martes": "tuesday", "enero": "january",
    "uno": "one", "dos": "two", "tres": "three", "cinco": "five", "diez": "ten",
}  # fmt: skip
"""Some Spanish words and what they mean."""

TENS = {5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True, eq=False)
class Statements:
    """Statements that are true or false.

    Args:
      name: the name of the set.
      texts: the statements.
      labels: whether each one is true.
      groups: what leaks between statements: the city, the word, the pair of numbers.
      pairs: the two statements of each pair that differ in what makes them true or false.
      columns: what each statement is about.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[bool, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    pairs: tuple[tuple[int, int], ...] = ()

    def tokenized(self, tokenizer: Tokenizer, groups: str | None = None) -> LabelledTokens:
        """As tokens of a model. `groups` names a column to group by in place of the right one."""
        data = tokenized(
            tokenizer, self.texts, self.labels, name=self.name, groups=self._groups(groups), pairs=self._pairs()
        )
        return dataclasses.replace(data, columns=dict(self.columns))

    def in_words(self, vocabulary: Sequence[str] | None = None, groups: str | None = None) -> LabelledTokens:
        """As words: one token for each word or mark, the number of the word in `vocabulary`.

        Args:
          vocabulary: all words. None: the words of this set, sorted (`words`).
          groups: a column to group by in place of the right one.

        Raises:
          UserError: a word is not in the vocabulary.
        """
        number = {word: i for i, word in enumerate(self.words if vocabulary is None else vocabulary)}
        split = [words_of(text) for text in self.texts]
        if unknown := sorted({word for words in split for word in words} - set(number)):
            raise UserError(f"{self.name}: {', '.join(unknown[:3])} are not in the vocabulary")
        length = max(map(len, split))
        tokens, mask = np.zeros((len(split), length), np.int32), np.zeros((len(split), length), bool)
        for row, words in enumerate(split):
            tokens[row, : len(words)], mask[row, : len(words)] = [number[word] for word in words], True
        of_group = np.unique(self._groups(groups), return_inverse=True)[1]
        labels = np.asarray(self.labels, np.int32)
        return LabelledTokens(
            self.name, tokens, mask, mask, labels, ("False", "True"), of_group, self._pairs(),
            columns=dict(self.columns), texts=self.texts,
        )  # fmt: skip

    @property
    def words(self) -> tuple[str, ...]:
        """All words and marks, sorted."""
        return tuple(sorted({word for text in self.texts for word in words_of(text)}))

    def _groups(self, column: str | None) -> list[str]:
        if column is not None and column not in self.columns:
            raise UserError(f"{self.name} has no column {column!r}; it has {', '.join(self.columns)}")
        return list(self.groups if column is None else self.columns[column])

    def _pairs(self) -> np.ndarray | None:
        return np.asarray(self.pairs, np.int32) if self.pairs else None


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, with marks as words of their own."""
    for mark in ".,:'\"":
        text = text.replace(mark, f" {mark} ")
    return text.lower().split()


def city_statements(negated: bool = False, seed: int = 0) -> Statements:
    """Statements such as "The city of Lyon is in France.": each city once with its country, and once with another one.

    Args:
      negated: "is not in", with the labels exchanged.
      seed: of the other countries, which are drawn with the number of cities of each as weight.
    """
    rng = np.random.default_rng(seed)
    cities = [(city, country) for country, names in CITIES.items() for city in names.split()]
    rows = []
    for city, country in cities:
        others = [name for _, name in cities if name != country]
        rows += [(city, country, country, True), (city, others[rng.integers(len(others))], country, False)]
    verb = "is not in" if negated else "is in"
    city, named, correct, true = map(tuple, zip(*rows))
    return Statements(
        "negated cities" if negated else "cities",
        tuple(f"The city of {a} {verb} {b}." for a, b in zip(city, named)),
        tuple(label != negated for label in true),
        city,
        {"city": city, "country": named, "correct_country": correct},
        tuple((i, i + 1) for i in range(0, len(rows), 2)),
    )


def comparisons(relation: Literal["larger", "smaller"] = "larger") -> Statements:
    """Statements such as "Fifty-one is larger than sixty-two.": all ordered pairs of 45 numbers.

    The numbers are 51 to 99 without multiples of ten. Both orders of two numbers are one group: one of them is true.
    """
    numbers = [10 * ten + one for ten in TENS for one in range(1, 10)]
    spelled = {n: f"{TENS[n // 10]}-{ONES[n % 10 - 1]}" for n in numbers}
    rows = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
    rows = [order for a, b in rows for order in ((a, b), (b, a))]
    return Statements(
        f"{relation} than",
        tuple(f"{spelled[a].capitalize()} is {relation} than {spelled[b]}." for a, b in rows),
        tuple((a > b) == (relation == "larger") for a, b in rows),
        tuple(f"{min(row)} {max(row)}" for row in rows),
        {"n1": tuple(str(a) for a, _ in rows), "n2": tuple(str(b) for _, b in rows)},
        tuple((i, i + 1) for i in range(0, len(rows), 2)),
    )


def translations(negated: bool = False, seed: int = 0) -> Statements:
    """Statements such as "The Spanish word 'casa' means 'house'.": each word with its meaning and with another.

    Words exchange meanings two by two, and the four statements of two such words are one group. So each word and each
    meaning stands once in a true and once in a false statement of its group, and the words of a held-out group are new.

    Args:
      negated: "does not mean", with the labels exchanged.
      seed: of which words exchange meanings.
    """
    words = [list(SPANISH)[i] for i in np.random.default_rng(seed).permutation(len(SPANISH))]
    rows = []
    for a, b in zip(words[::2], words[1::2]):
        group = f"{a} {b}"
        rows += [(a, SPANISH[a], True, group), (a, SPANISH[b], False, group)]
        rows += [(b, SPANISH[b], True, group), (b, SPANISH[a], False, group)]
    verb = "does not mean" if negated else "means"
    word, meaning, true, group = map(tuple, zip(*rows))
    return Statements(
        "negated translations" if negated else "translations",
        tuple(f"The Spanish word '{a}' {verb} '{b}'." for a, b in zip(word, meaning)),
        tuple(label != negated for label in true),
        group,
        {"word": word, "meaning": meaning},
        tuple((i, i + 1) for i in range(0, len(rows), 2)),
    )


def combinations(kind: Literal["and", "or"], examples: int = 1000, seed: int = 0) -> Statements:
    """Statements such as "It is the case both that the city of Lyon is in France and that …".

    Two statements on cities are joined. Each one is true with probability √½ (in a conjunction) or 1 - √½ (in a
    disjunction), so that half of the joined statements are true. The set has exactly as many true as false ones.

    Args:
      kind: "and" (both) or "or" (either).
      examples: the number of statements, even.
      seed: the seed of the statements.
    """
    if examples < 2 or examples % 2:
        raise UserError(f"examples={examples} must be even: half of them are true")
    rng, parts = np.random.default_rng(seed), city_statements()
    by_label = {label: [i for i, own in enumerate(parts.labels) if own == label] for label in (True, False)}
    share = 0.5**0.5 if kind == "and" else 1 - 0.5**0.5
    frame = "both that {} and that {}" if kind == "and" else "either that {} or that {}"
    wanted, rows = {True: examples // 2, False: examples // 2}, []
    while wanted[True] + wanted[False]:
        truth = (rng.random(2) < share).tolist()
        label = all(truth) if kind == "and" else any(truth)
        first, second = (by_label[one][rng.integers(len(by_label[one]))] for one in truth)
        if wanted[label] and parts.groups[first] != parts.groups[second]:
            wanted[label] -= 1
            rows.append((first, second, truth, label))
    clause = [f"t{text[1:-1]}" for text in parts.texts]
    return Statements(
        "conjunctions" if kind == "and" else "disjunctions",
        tuple(f"It is the case {frame.format(clause[a], clause[b])}." for a, b, _, _ in rows),
        tuple(label for *_, label in rows),
        tuple(str(i) for i in range(examples)),
        {
            "city1": tuple(parts.groups[a] for a, *_ in rows), "city2": tuple(parts.groups[b] for _, b, *_ in rows),
            "label1": tuple(str(truth[0]) for *_, truth, _ in rows),
            "label2": tuple(str(truth[1]) for *_, truth, _ in rows),
        },
    )  # fmt: skip
