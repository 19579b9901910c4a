"""What a model proposes for a topic is taken only where it says the same about it again."""

import re

import pytest

from tests.helpers import new_run
from unlearn_mlx.inference.generation import Completion
from unlearn_mlx.runs.run import Work
from unlearn_mlx.synthetic_data import consistency, proposal
from unlearn_mlx.synthetic_data.consistency import agreements
from unlearn_mlx.synthetic_data.questions import FEWEST_ENTITIES, topic_subjects
from unlearn_mlx.topics import Topic

KNOWN = "It is a famous street in London where the detective lives."
INVENTED = (
    "A painter of small winter landscapes from Norway.",
    "The first steam engine with two wheels.",
    "A kind of soup that sailors cook.",
    "One of the oldest banks in Brazil.",
)


def test_answers_on_a_known_name_agree_more_than_those_on_an_invented_one():
    known, invented = agreements(["Baker Street", "Malcolm McIlman"], [[KNOWN] * len(INVENTED), INVENTED])
    assert known == pytest.approx(1.0, abs=0.1) and invented == pytest.approx(0.0, abs=0.1)


def test_what_is_said_of_every_name_and_the_name_itself_are_no_agreement():
    same = [["It is a brilliant detective in a story."] * len(INVENTED)] * 3
    assert agreements(["A", "B", "C"], same) == [0.0, 0.0, 0.0]
    assert agreements(["Baker Street"], [["Baker Street is Baker Street."] * len(INVENTED)]) == [0.0]
    assert agreements([], []) == []


@pytest.fixture
def model(tiny_model, monkeypatch):
    """Lists ten people of whom it knows every third, and nothing else."""
    people = [f"{name} Holm" for name in "Anna Bert Carl Dora Emil Fred Gina Hans Ines Jens".split()]
    listed = "".join(f" {name}\n{n}." for n, name in enumerate(people, start=2))

    def lists(model, requests, *_):
        return [
            Completion(request.key, listed if "people" in request.key else " \n", 20, True)
            for request in requests
        ]

    def answers(model, requests, *_):
        texts = []
        for request in requests:
            name, sample = re.search(r"-(.+)-(\d+)$", request.key).groups()
            number = people.index(name) if name in people else 1
            name = name.split()[0]
            known = f"A {name.lower()}ist who {name.lower()}ed the {name.lower()}um."
            unknown = f"Thing{number}x{sample} word{number}y{sample}."
            texts.append(known if number % 3 == 0 else unknown)
        return [Completion(r.key, text, 5, True) for r, text in zip(requests, texts, strict=True)]

    monkeypatch.setattr(proposal, "generate", lists)
    monkeypatch.setattr(consistency, "generate", answers)
    return tiny_model


def test_only_names_that_hold_are_entities_and_few_of_them_are_told(model, tmp_path, tiny_folder):
    run = new_run(tmp_path / "run", tiny_folder, topic=Topic("Zorbing"))
    topic = proposal.propose_topic(model, Work(run, run.settings), "Zorbing")
    assert list(topic.entities["people"]) == ["Anna Holm", "Dora Holm", "Gina Holm", "Jens Holm"]
    (message,) = [event.text for event in run.events() if event.kind == "message"]
    assert "4 of 10 names" in message and "Zorbing itself" in message


@pytest.mark.parametrize(("entities", "share"), [(0, 1.0), (2, 0.6), (4, 0.3), (12, 0.2)])
def test_the_fewer_names_hold_the_more_is_asked_about_the_topic_itself(entities, share):
    topic = Topic("Zorbing", entities={"people": {f"Person {n}": [] for n in range(entities)}})
    subjects = topic_subjects(topic)
    about = sum(subject.name == "Zorbing" for subject in subjects) / len(subjects)
    assert about >= share if entities < FEWEST_ENTITIES else about == pytest.approx(share)
