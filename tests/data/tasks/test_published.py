"""Rows of published data sets become examples, or are refused with the reason."""

import pytest

from cogcalib_jax.data.example import BadRow, NoLabel
from cogcalib_jax.data.tasks import (
    CATEGORIES,
    GROUPS,
    SUBCATEGORIES,
    SUBJECTS,
    TASKS,
    group_twins,
)
from cogcalib_jax.data.tasks.fields import accepted, check


def lettered_row(**changes):
    row = {
        "id": "x1",
        "question": "Which one?",
        "choices": {"text": ["a cat", "a dog", "a cow"], "label": ["A", "B", "C"]},
        "answerKey": "C",
    }
    return {**row, **changes}


@pytest.mark.parametrize(
    ("labels", "key", "answer"),
    [("ABC", "C", 2), ("123", "1", 0), ("123", 2, 1), ("ABC", " B ", 1)],
)
def test_an_answer_key_is_looked_up_among_the_rows_own_labels(labels, key, answer):
    choices = {"text": ["a cat", "a dog", "a cow"], "label": list(labels)}
    read = TASKS["arc_challenge"].read
    assert read(lettered_row(choices=choices, answerKey=key), 1).answer == answer


def test_openbookqa_and_arc_name_the_question_differently():
    row = lettered_row(question_stem="A stem")
    assert TASKS["openbookqa"].read(row, 1).question == "A stem"
    assert TASKS["arc_easy"].read(row, 1).question == "Which one?"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answerKey": "D"}, "not one of the labels A, B, C"),
        ({"answerKey": True}, "not one of the labels"),
        ({"question": "  "}, "'question' is empty"),
        ({"question": 3}, "must be a text"),
        ({"question": "half \ud800"}, "lone surrogate"),
        ({"choices": ["a", "b"]}, '"text" and "label"'),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "do not match"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "do not match"),
        ({"choices": {"text": "ab", "label": ["A", "B"]}}, "must be a list of texts"),
        ({"choices": {"text": ["a", ""], "label": ["A", "B"]}}, "is empty"),
    ],
)
def test_a_lettered_row_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadRow, match=reason):
        TASKS["arc_easy"].read(lettered_row(**changes), 1)


def test_a_missing_field_is_refused_with_the_fields_there_are():
    with pytest.raises(BadRow, match="no field 'question_stem' .*answerKey"):
        TASKS["openbookqa"].read(lettered_row(), 1)


@pytest.mark.parametrize("key", ["", None, -1, "-1"])
def test_an_absent_answer_is_told_apart_from_a_wrong_one(key):
    with pytest.raises(NoLabel):
        TASKS["arc_easy"].read(lettered_row(answerKey=key), 1)


@pytest.mark.parametrize(
    ("columns", "choice"),
    [
        ({"answer": False}, "no"),
        ({"answer": True}, "yes"),
        ({"answer": "yes"}, "yes"),
        ({"label": 1}, "yes"),
        ({"label": "0"}, "no"),
        ({"label": "No"}, "no"),
        ({"answer": None, "label": True}, "yes"),
        ({"answer": True, "label": 1}, "yes"),
    ],
)
def test_boolq_answers_are_booleans_or_labels(columns, choice):
    row = {"question": "is it", "passage": "It is."}
    example = TASKS["boolq"].read(row | columns, 7)
    assert (example.choices[example.answer], example.passage) == (choice, "It is.")


@pytest.mark.parametrize(
    ("columns", "refusal", "reason"),
    [
        ({"answer": "perhaps"}, BadRow, "expected true or false, yes or no, or 1 or 0"),
        ({"answer": True, "label": 0}, BadRow, "answer is True and label is 0; remove one"),
        ({"answer": -1}, NoLabel, "has no answer"),
        ({"label": -1}, NoLabel, "has no answer"),
        ({"verdict": 1}, NoLabel, "no answer and no label .*verdict"),
    ],
)
def test_a_boolq_row_without_a_clear_answer_says_why(columns, refusal, reason):
    with pytest.raises(refusal, match=reason):
        TASKS["boolq"].read({"question": "is it", "passage": "It is."} | columns, 7)


def test_rows_without_id_get_one_from_place_and_content():
    row = {"sentence": "The _ is red.", "option1": "car", "option2": "bus", "answer": "2"}
    read = TASKS["winogrande_s"].read
    assert read(row, 3).id == read(row, 3).id
    assert len({read(row, 3).id, read(row, 4).id, read({**row, "option1": "van"}, 3).id}) == 3
    assert read(row, 3).answer == 1
    with pytest.raises(BadRow, match="no blank"):
        read({**row, "sentence": "No gap."}, 1)


def test_winogrande_twins_share_a_group_and_strangers_do_not():
    def row(sentence, first, second):
        read = TASKS["winogrande_s"].read
        stored = {"sentence": sentence, "option1": first, "option2": second, "answer": "1"}
        return read(stored, 1)

    examples = [
        row("Ann lent Bo the pen because _ was kind.", "Ann", "Bo"),
        row("The cup did not fit the box as the _ was big.", "cup", "box"),
        row("Ann lent Bo the pen because _ was in need.", "Bo", "Ann"),
        row("Ann never sings, whereas all day long we hear _ next door.", "Ann", "Bo"),
        row("Ann lent Bo the pen because _ was kind.", "Ann", "Carl"),
    ]
    groups = [example.group for example in group_twins(examples)]
    assert groups[0] == groups[2]
    assert len(set(groups)) == 4


def test_equal_wrong_choices_pass_but_an_equal_right_one_does_not():
    choices = {"text": ["a cat", "a cat", "a cow"], "label": ["A", "B", "C"]}
    read = TASKS["arc_easy"].read
    assert check(read(lettered_row(choices=choices), 1)).answer == 2
    with pytest.raises(BadRow, match="twice"):
        check(read(lettered_row(choices=choices, answerKey="B"), 1))
    assert check(read(lettered_row(choices=choices, answerKey="B"), 1), True).answer == 1
    genotypes = {"text": ["AA", "Aa", "aa"], "label": ["A", "B", "C"]}
    assert check(read(lettered_row(choices=genotypes), 1)).answer == 2
    one = {"text": ["a cat"], "label": ["A"]}
    with pytest.raises(BadRow, match="at least 2"):
        check(read(lettered_row(choices=one, answerKey="A"), 1))


def mmlu_row(**changes):
    row = {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3}
    return {**row, **changes}


def test_mmlu_has_the_subjects_and_levels_its_authors_publish():
    assert (len(SUBJECTS), len(SUBCATEGORIES), len(CATEGORIES)) == (57, 17, 4)
    assert len(set(SUBJECTS)) == 57
    assert sorted(part for parts in CATEGORIES.values() for part in parts) == sorted(SUBCATEGORIES)
    # Counted in the published tables of results by category.
    sizes = {name: len(GROUPS[name]) for name in CATEGORIES}
    assert sizes == {"stem": 18, "humanities": 13, "social_sciences": 12, "other": 14}


@pytest.mark.parametrize(
    ("group", "subjects"),
    [
        ("business", {"business_ethics", "management", "marketing"}),
        ("culture", {"human_sexuality", "sociology"}),
        (
            "history",
            {
                "high_school_european_history",
                "high_school_us_history",
                "high_school_world_history",
                "prehistory",
            },
        ),
        ("psychology", {"high_school_psychology", "professional_psychology"}),
    ],
)
def test_the_groups_of_the_paper_are_subcategories_of_mmlu(group, subjects):
    assert set(SUBCATEGORIES[group]) == GROUPS[group] == subjects


def test_no_name_of_mmlu_means_two_things():
    """`philosophy` and `other` are names at two levels of the authors' table."""
    assert len(GROUPS) == len(SUBJECTS) + len(SUBCATEGORIES) + len(CATEGORIES) == 78
    assert all(name.isidentifier() and name == name.lower() for name in GROUPS)
    assert GROUPS["philosophy"] == {"philosophy"} < GROUPS["philosophy_all"]
    assert GROUPS["misc"] < GROUPS["other"]


def test_an_mmlu_row_knows_its_subject_subcategory_and_category():
    read = TASKS["mmlu"].read
    example = read(mmlu_row(), 1)
    assert (example.choices, example.answer) == (("a", "b", "c", "d"), 3)
    assert example.extra == {"subject": "anatomy", "subcategory": "health", "category": "other"}
    assert read(mmlu_row(subject=""), 1).extra == {}
    assert read(mmlu_row(), 2).id != example.id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": "anatomie"}, "not one of MMLU's 57 subjects; did you mean anatomy"),
        ({"subject": 3}, "must be a text"),
        ({"answer": "D"}, "must be the index"),
        ({"answer": True}, "must be the index"),
        ({"answer": 4}, "not from 0 to 3"),
        ({"choices": {"text": ["a"]}}, "must be a list"),
    ],
)
def test_an_mmlu_row_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadRow, match=reason):
        check(TASKS["mmlu"].read(mmlu_row(**changes), 1))


def test_accepted_answers_stand_once_with_the_reference_first():
    assert accepted(["The  Ga\n", "ga", "the ga", "", "GA"]) == ("The Ga", "ga")
    # Scores fold case by lower() and leave Unicode alone: what they tell apart must stay.
    assert accepted(["Straße", "Strasse", "u\u0308", "ü"]) == ("Straße", "Strasse", "u\u0308", "ü")
    with pytest.raises(NoLabel):
        accepted(["", " "])


def hotpot_row(**changes):
    row = {
        "id": "made1",
        "question": "How long is it?",
        "answer": "212 km",
        "type": "bridge",
        "level": "easy",
        "context": {
            "title": ["Mill", "Onder"],
            "sentences": [["A mill.", "", " It grinds."], ["212 km."]],
        },
    }
    return {**row, **changes}


def test_hotpotqa_is_read_with_and_without_its_paragraphs():
    closed = check(TASKS["hotpotqa"].read(hotpot_row(), 1))
    assert (closed.passage, closed.choices, closed.aliases) == ("", ("212 km",), ("212 km",))
    assert closed.extra == {"type": "bridge", "level": "easy"}
    context = check(TASKS["hotpotqa_context"].read(hotpot_row(), 1))
    assert context.passage == "Mill: A mill. It grinds.\nOnder: 212 km."
    assert context.question == closed.question


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (None, '"title" and "sentences"'),
        ({"title": ["a"], "sentences": []}, "do not match"),
        ({"title": ["a"], "sentences": ["text"]}, "must be a list of texts"),
        ({"title": ["a"], "sentences": [[3]]}, "must be a text"),
        ({"title": [], "sentences": []}, "no paragraphs"),
    ],
)
def test_a_hotpotqa_row_without_usable_paragraphs_is_refused(context, reason):
    with pytest.raises(BadRow, match=reason):
        TASKS["hotpotqa_context"].read(hotpot_row(context=context), 1)


def trivia_row(**answer):
    return {"question": "Which mark?", "question_id": "q1", "answer": {"value": "Ga", **answer}}


def test_triviaqa_accepts_the_aliases_after_the_value():
    read = TASKS["triviaqa"].read
    example = check(read(trivia_row(aliases=["gallium", "GA"], normalized_aliases=["", "ga x"]), 1))
    assert example.aliases == ("Ga", "gallium", "ga x")
    assert (example.choices, example.answer) == (("Ga",), 0)
    assert example.extra == {"question_id": "q1"}
    assert read(trivia_row(), 1).id != read(trivia_row(), 2).id
    for reason, answer in [("list of texts", {"aliases": "Ga"}), ("must be a text", {"value": 4})]:
        with pytest.raises(BadRow, match=reason):
            read(trivia_row(**answer), 1)
    with pytest.raises(BadRow, match='must hold "value"'):
        read({**trivia_row(), "answer": "Ga"}, 1)
    for value in ("<unk>", "", None):
        with pytest.raises(NoLabel):
            read(trivia_row(value=value), 1)


def test_nq_open_accepts_every_answer_of_its_list():
    read = TASKS["nq_open"].read
    row = {"question": "what is grey", "answer": ["a heron", "A heron", "herons"]}
    assert check(read(row, 1)).aliases == ("a heron", "herons")
    with pytest.raises(BadRow, match="must be a list"):
        read({**row, "answer": "a heron"}, 1)
    with pytest.raises(NoLabel):
        read({**row, "answer": []}, 1)
