from collections import Counter

import pytest

from benchmarks.languages import NAMES, read


@pytest.mark.parametrize("labels", ["english", "own"])
@pytest.mark.parametrize("language", NAMES)
def test_each_language_has_the_same_tickets_apart_for_examples_and_questions(
    language: str, labels: str
) -> None:
    train, test = read(language, labels)
    english = read("en", "english")
    for found, kept, each in ((train, english[0], 4), (test, english[1], 6)):
        classes = [item.options.index(item.output) for item in found]
        assert classes == [item.options.index(item.output) for item in kept]
        assert Counter(classes) == dict.fromkeys(range(4), each)
    assert len({item.input for item in (*train, *test)}) == 40
    assert {item.options for item in (*train, *test)} == {train[0].options}
