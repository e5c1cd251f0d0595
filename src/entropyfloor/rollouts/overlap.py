"""Which prompts are among the rows that a model was trained on, or will be: exactly or nearly.

    exact        the same text
    normalised   the same after NFKC, case folding, and without blanks and closing punctuation:
                 "3 + 4 ="  and  "3+4="  are one, "3+4" and "3-4" are two
    near         at least ``threshold`` of the prompt's n-grams of words are in the row's text

Every text of a row is compared: prompt, completion, messages, and the paragraphs of long ones. Near
ones are found by MinHash (Broder, SEQUENCES 1997) with locality-sensitive hashing, of the package
datasketch, and then checked by their true containment ``|G(prompt) & G(text)| / |G(prompt)|``.
Sketches see Jaccard similarity: a prompt inside a text many times as long, without a paragraph of
its own, is missed.

Prompts are held in memory, ``BLOCK`` of them at a time with their sketches, and the rows stream by,
once for each block: a million rows take no more room than one. Give the larger set as ``rows``.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from entropyfloor.rollouts.answers import completion_text

EXACT, NORMALISED, NEAR = LEVELS = ("exact", "normalised", "near")
NGRAM, THRESHOLD = 3, 0.8
BLOCK = 20_000
# 32 bands of 4: of two texts of one length that share 0.8 of their n-grams, Jaccard 0.67, 999 in
# 1,000 pairs meet in a band; at Jaccard 0.2 five in a hundred do, and are checked in vain.
_BANDS, _PER_BAND = 32, 4
_LONG = 400  # characters above which paragraphs are compared too
# A letter of Chinese, Japanese or Korean is a word; elsewhere a run of letters or digits is one.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")
_CLOSING = frozenset(".,;:!?\"'`*_#…“”‘’。，、；：！？")


@dataclass(frozen=True)
class Match:
    """One prompt, and the row that it overlaps most with."""

    prompt_index: int
    row_index: int
    level: str  # exact, normalised or near
    containment: float  # share of the prompt's n-grams that are in the row's text; 1 if not near
    prompt: str
    text: str  # of the row


@dataclass(frozen=True)
class Overlap:
    """What prompts and rows have in common."""

    num_rows: int
    num_prompts: int
    matches: tuple[Match, ...]  # one per prompt that overlaps, by its index
    ngram: int
    threshold: float

    def count(self, level: str) -> int:
        """Prompts whose closest match is of that level."""
        return sum(match.level == level for match in self.matches)

    @property
    def share(self) -> float:
        """Of the prompts that overlap, in any way."""
        return len(self.matches) / self.num_prompts

    def words(self) -> str:
        """One sentence."""
        parts = ", ".join(f"{self.count(level)} {level}" for level in LEVELS)
        return (
            f"{len(self.matches)} of {self.num_prompts} prompts ({self.share:.1%}) are among "
            f"{self.num_rows} rows: {parts}"
        )

    def counts(self) -> dict[str, int | float]:
        """Prompts by level, and the share of all that overlap."""
        return {**{level: self.count(level) for level in LEVELS}, "share": self.share}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), **self.counts()}


def find_overlap(
    rows: Callable[[], Iterable[Mapping[str, Any]]],
    prompts: Sequence[str],
    *,
    ngram: int = NGRAM,
    threshold: float = THRESHOLD,
    near: bool = True,
) -> Overlap:
    """Compare every prompt with every row.

    Args:
        rows: gives the rows, anew at every call: with ``prompt``, ``completion``, ``messages`` or
            ``text``.
        prompts: their texts.
        ngram: words of an n-gram; a shorter text is one n-gram.
        threshold: containment from which a prompt is near, in (0, 1].
        near: False leaves out what needs datasketch.

    Raises:
        ValueError: an impossible n or threshold, no prompts, or no rows.
        ModuleNotFoundError: ``near`` without datasketch.

    """
    if ngram < 1:
        raise ValueError(f"ngram is a number of words, 1 or more; got {ngram}")
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold is a containment in (0, 1], such as 0.8; got {threshold}")
    if not prompts:
        raise ValueError("there are no prompts to look for")
    matches: dict[int, Match] = {}
    count = 0
    for start in range(0, len(prompts), BLOCK):
        block = _Block(prompts[start : start + BLOCK], start, ngram, threshold if near else None)
        count = 0
        for index, row in enumerate(rows()):
            count += 1
            for text in texts_of(row):
                block.compare(index, text)
        matches |= block.matches
    if not count:
        raise ValueError("there are no rows to compare with")
    listed = tuple(matches[index] for index in sorted(matches))
    return Overlap(count, len(prompts), listed, ngram, threshold)


def texts_of(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a row: prompt, completion, messages, text; then the paragraphs of long ones."""
    for name in ("prompt", "completion", "messages", "text"):
        value = row.get(name)
        messages = value if isinstance(value, list) else [{"content": value}]
        for message in messages:
            text = completion_text([message] if isinstance(message, Mapping) else None)
            if not text.strip():
                continue
            yield text
            if len(text) > _LONG:
                yield from (part for part in text.split("\n\n") if part.strip() and part != text)


class _Block:
    """Some prompts with their sketches, and the best match of each so far."""

    def __init__(
        self, prompts: Sequence[str], start: int, ngram: int, threshold: float | None
    ) -> None:
        self.matches: dict[int, Match] = {}
        self._prompts, self._start, self._ngram = prompts, start, ngram
        self._threshold = threshold
        self._exact: dict[str, list[int]] = {}
        self._normalised: dict[str, list[int]] = {}
        words = [words_of(prompt) for prompt in prompts]
        for index, prompt in enumerate(prompts):
            self._exact.setdefault(prompt.strip(), []).append(index)
            self._normalised.setdefault(" ".join(words[index]), []).append(index)
        if threshold is None:
            return
        # Kept out of the module's head: an optional dependency, the extra `overlap`.
        from datasketch import MinHash, MinHashLSH
        from xxhash import xxh32_intdigest

        self._grams = [grams(part, ngram) for part in words]
        self._known = frozenset[str]().union(*self._grams)
        # One sketch is filled again and again: making one takes longer than filling it.
        self._sketch = MinHash(num_perm=_BANDS * _PER_BAND, hashfunc=xxh32_intdigest)
        self._sketches = MinHashLSH(num_perm=_BANDS * _PER_BAND, params=(_BANDS, _PER_BAND))
        with self._sketches.insertion_session() as session:
            for index, part in enumerate(self._grams):
                if part:
                    session.insert(index, self._sketch_of(part))

    def compare(self, row: int, text: str) -> None:
        """Take note of the prompts that a text of a row is."""
        for index in self._exact.get(text.strip(), ()):
            self._note(index, row, EXACT, 1.0, text)
        words = words_of(text)
        for index in self._normalised.get(" ".join(words), ()):
            self._note(index, row, NORMALISED, 1.0, text)
        if self._threshold is None or not words:
            return
        of_text = grams(words, self._ngram)
        if of_text.isdisjoint(self._known):
            return  # nearly all texts of another subject
        for index in self._sketches.query(self._sketch_of(of_text)):
            prompt = self._grams[index]
            containment = len(prompt & of_text) / len(prompt)
            if containment >= self._threshold:
                self._note(index, row, NEAR, containment, text)

    def _sketch_of(self, parts: Iterable[str]) -> Any:
        self._sketch.clear()
        self._sketch.update_batch([part.encode() for part in parts])
        return self._sketch

    def _note(self, index: int, row: int, level: str, containment: float, text: str) -> None:
        place = self._start + index
        before = self.matches.get(place)
        closer = before is None or (LEVELS.index(level), -containment) < (
            LEVELS.index(before.level),
            -before.containment,
        )
        if closer:
            prompt = self._prompts[index]
            self.matches[place] = Match(place, row, level, containment, prompt, text)


def words_of(text: str) -> list[str]:
    """Words and signs of a text after NFKC and case folding, without closing punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [word for word in _WORD.findall(folded) if word not in _CLOSING]


def grams(words: Sequence[str], ngram: int) -> frozenset[str]:
    """Distinct n-grams; all words together where there are fewer."""
    if len(words) <= ngram:
        return frozenset([" ".join(words)]) if words else frozenset()
    return frozenset(" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1))
