"""What the names of folders say of splits: the words of Hugging Face's image folders, by their documentation."""

from __future__ import annotations

import pytest

from sapcli.datasets.split_names import SplitRole, file_role, mentioned_role, split_role

# https://huggingface.co/docs/datasets/repository_structure: the keywords of each split.
HUGGING_FACE = {
    SplitRole.TRAIN: ("train", "training"),
    SplitRole.VALIDATION: ("validation", "valid", "val", "dev"),
    SplitRole.TEST: ("test", "testing", "eval", "evaluation"),
}


@pytest.mark.parametrize(("role", "word"), [(role, word) for role, words in HUGGING_FACE.items() for word in words])
@pytest.mark.parametrize(
    "form", ["{}", "{}_set", "{}-set", "{} set", "{}set", "{}_images", "{}Images", "{}2017", "{}_1"]
)
def test_words_of_splits_in_any_spelling(role: SplitRole, word: str, form: str) -> None:
    for spelling in (word, word.upper(), word.capitalize()):
        assert split_role(form.format(spelling)) is role


@pytest.mark.parametrize("name", ["holdout", "hold-out", "Hold Out", "held_out", "holdout_set"])
def test_held_out_images_are_for_tests(name: str) -> None:
    assert split_role(name) is SplitRole.TEST


OTHERS = "trains,freight_train,invalid,retrain,contest,latest,data,images,2017,,devil,value,train_val,test-dev,trainer"


@pytest.mark.parametrize("name", OTHERS.split(","))
def test_other_names_are_no_splits(name: str) -> None:
    assert split_role(name) is None


def test_one_word_among_others() -> None:
    assert mentioned_role("seg_train") is SplitRole.TRAIN
    assert mentioned_role("intel test v2") is SplitRole.TEST
    assert mentioned_role("train_test") is None
    assert mentioned_role("cats") is None


def test_names_of_label_files() -> None:
    assert file_role("train") is file_role("train_labels") is file_role("Training-annotations") is SplitRole.TRAIN
    assert file_role("val_metadata") is SplitRole.VALIDATION
    assert file_role("labels") is file_role("metadata") is None
