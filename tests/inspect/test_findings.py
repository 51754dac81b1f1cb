# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from tests.fixtures.broken import mask, pair, picture, table
from trl_focus.inspect import find


MASKED = {"chosen_masks": [mask()], "rejected_masks": [mask()]}


def test_by_hand():
    dataset = table(
        pair(**MASKED),
        pair(prompt="", **MASKED),
        pair(rejected=picture(), **MASKED),
        pair(prompt="bare"),
        pair(**{**MASKED, "rejected_masks": [None]}, prompt="gone"),
        pair(**MASKED),
        pair(chosen=picture("blue"), rejected=picture(), **MASKED),
    ).add_column("problems", [[], [], [], ["`chosen`: 'cat' is not found"], [], [], []])
    kinds, reasons = find(dataset)
    assert kinds == {
        "refused by training": [1],
        "tie": [2],
        "masks not sure": [3],
        "no masks": [3],
        "a subject is absent": [4],
        "the same pair twice": [0, 5],
        "contradicted": [0, 5, 6],
    }
    assert reasons[0] == ["rows 0, 5 are the same pair", "rows 6 prefer the other image"]
    assert reasons[1] == ["`prompt` is empty: give the caption that the images were made for"]
    assert "`chosen`: 'cat' is not found" in reasons[3]
    assert reasons[6] == ["rows 0, 5 prefer the other image"]


def test_nothing_to_say():
    kinds, reasons = find(table(pair(**MASKED), pair(prompt="another", **MASKED)))
    assert kinds == {} and reasons == [[], []]
