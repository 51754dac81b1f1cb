# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_focus.focus.allocation import GATES, SUBJECT_GATES, FocusWeights, match_share
from trl_focus.focus.correspondence import graded, top_k
from trl_focus.focus.maps import (
    FOCUS_MAPS,
    MATCHINGS,
    PRIORS,
    FocusContext,
    FocusSettings,
    focus,
    mask,
    needs,
    patch,
    prior,
    required,
    shown,
    uniform,
)


GRID = (2, 3)
LEVELS = torch.tensor([0.1, 0.9])
# Two images, two subjects with soft, overlapping masks; on the second image the second subject is absent
MASKS = torch.tensor(
    [
        [[[0.0, 0.25, 1.0], [0.0, 0.0, 0.5]], [[0.0, 0.5, 0.75], [0.125, 0.0, 0.5]]],
        [[[1.0, 0.0, 0.0], [0.0, 0.0, 0.25]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]],
    ]
)
UNION = [[[0.0, 0.5, 1.0], [0.125, 0.0, 0.5]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.25]]]
SIMILARITY = torch.rand(2, 2, *GRID, generator=torch.Generator().manual_seed(0))
DETAIL = torch.rand(2, *GRID, generator=torch.Generator().manual_seed(1))
SUBJECTS = torch.tensor([[0, 1], [1, 0]])


def context(masks=MASKS, similarity=None, detail=None):
    compared = {}
    if similarity is not None:
        compared = {"reference_subjects_BR": SUBJECTS, "reference_shares_BR": torch.full((2, 2), 0.5)}
    return FocusContext(LEVELS, GRID, masks, similarity, detail_BHW=detail, **compared)


FULL = context(MASKS, SIMILARITY, DETAIL)
MASK_WEIGHTS = FocusSettings(FocusWeights(0.1, 0.9, 0, 0, 0))


def test_prior_is_the_union_on_each_image():
    assert prior(context()).tolist() == UNION


class TestMask:
    @pytest.mark.parametrize("background,weight", [(0.1, 0.9), (0.0, 1.0), (1.0, 0.0), (0.5, 2.0)])
    def test_background_plus_weighted_union(self, background, weight):
        maps = mask(context(), FocusSettings(FocusWeights(background, weight)))
        assert maps["prior"].tolist() == UNION
        np.testing.assert_allclose(maps["weights"], background + weight * np.array(UNION), rtol=1e-6)

    def test_overlap_counts_once_and_order_does_not_matter(self):
        both = context(torch.ones(2, 3, *GRID))
        assert mask(both, MASK_WEIGHTS)["weights"].unique().tolist() == pytest.approx([1.0])
        assert torch.equal(prior(context(MASKS.flip(1))), prior(context()))

    @pytest.mark.parametrize("subjects", [0, 2])
    def test_absent_subjects_are_background(self, subjects):
        weights = mask(context(torch.zeros(2, subjects, *GRID)), MASK_WEIGHTS)["weights"]
        torch.testing.assert_close(weights, torch.full((2, *GRID), 0.1))


@pytest.mark.parametrize("masks", [None, MASKS])
def test_uniform_is_1(masks):
    assert torch.equal(uniform(context(masks), FocusSettings())["weights"], torch.ones(2, *GRID))


class TestPatch:
    def test_what_matches_counts_on_chosen_and_what_does_not_on_rejected(self):
        weights = patch(FULL, MASK_WEIGHTS)["weights"]
        matched = graded(SIMILARITY, SUBJECTS, MASKS).matched_BHW
        union = torch.tensor(UNION)
        means = [(union[0] * matched[0]).sum() / union[0].sum(), (union[1] * (1 - matched[1])).sum() / union[1].sum()]
        for i, quality in enumerate((matched[0], 1 - matched[1])):
            torch.testing.assert_close(weights[i], 0.1 + 0.9 * union[i] * quality * min(means) / means[i])

    def test_subjects_of_both_images_weigh_alike(self):
        inside = patch(FULL, MASK_WEIGHTS)["weights"] - 0.1
        chosen, rejected = inside.sum(dim=(1, 2)) / torch.tensor(UNION).sum(dim=(1, 2))
        assert chosen > 0 and chosen == pytest.approx(rejected)

    def test_an_image_without_subjects_leaves_the_other_as_it_is(self):
        masks = torch.stack([MASKS[0], torch.zeros_like(MASKS[0])])
        weights = patch(context(masks, SIMILARITY), MASK_WEIGHTS)["weights"]
        matched = graded(SIMILARITY, SUBJECTS, masks).matched_BHW
        torch.testing.assert_close(weights[0], 0.1 + 0.9 * torch.tensor(UNION[0]) * matched[0])
        torch.testing.assert_close(weights[1], torch.full(GRID, 0.1))

    def test_without_references_it_is_mask(self):
        torch.testing.assert_close(patch(context(), MASK_WEIGHTS)["weights"], mask(context(), MASK_WEIGHTS)["weights"])


class TestFocus:
    @pytest.mark.parametrize("matching", ["graded", "top_k"])
    def test_by_hand(self, matching):
        """The formula of the documentation, from the parts' own functions; detail counts below a level of 0.5."""
        if matching == "graded":
            found = graded(SIMILARITY, SUBJECTS, MASKS)
        else:
            found = top_k(SIMILARITY, SUBJECTS, MASKS, match_share(LEVELS))
        union, gate = torch.tensor(UNION), torch.tensor([1.0, 0.0])[:, None, None]
        expected = 0.03 + union * (
            0.47
            + 0.2 * (1 - found.matched_BHW) * (1 - found.leak_BHW)
            + 0.3 * found.leak_BHW
            + 0.2 * gate * (1 - LEVELS[:, None, None]) * DETAIL
        )
        torch.testing.assert_close(focus(FULL, FocusSettings(matching=matching))["weights"], expected)

    def test_subjects_count_as_far_as_the_chosen_image_shows_them(self):
        """Two subjects of a row of cells each, the second of which no image shows: by hand, with a matched share of 0.5."""
        rows = torch.eye(2)[None, :, :, None].expand(2, 2, 2, 3)
        masks = torch.cat([rows, torch.zeros(2, 2, 1, 3)], dim=2)  # and a row of background
        similarity = torch.zeros(2, 2, 3, 3)
        similarity[0, 0, 0] = 0.5  # the first reference, on the first subject's row of the chosen image
        similarity[1, 1, 1] = 0.9  # the second on the rejected one: not what is asked
        measured = torch.tensor([[0.48, 0.0], [0.36, 0.9]])
        given = FocusContext(torch.ones(2), (3, 3), masks, similarity, torch.tensor([[0, 1]] * 2), shown_BS=measured)
        maps = focus(given, FocusSettings(subject_gate="shown"))
        gate = torch.tensor([1, 0.02 / (0.48 + 0.02), 0])[:, None].expand(3, 3)
        torch.testing.assert_close(maps["prior"], torch.stack([gate] * 2))
        expected = 0.03 + gate * (0.47 + 0.2 * torch.tensor([0.5, 1, 0])[:, None])
        torch.testing.assert_close(maps["weights"][0], expected)
        plain = focus(given, FocusSettings())
        assert plain["prior"].sum() == 12

    def test_how_far_images_show_their_subjects(self):
        """Mean of `M'` over each, by hand; absent subjects and images without references show nothing."""
        matched = graded(SIMILARITY, SUBJECTS, MASKS).matched_BHW
        expected = [
            [(mask * m).sum() / mask.sum().clamp(min=1e-9) for mask in masks]
            for masks, m in zip(MASKS, matched, strict=True)
        ]
        torch.testing.assert_close(shown(FULL, FocusSettings()), torch.tensor(expected))
        assert shown(FULL, FocusSettings())[0].min() > 0 and shown(FULL, FocusSettings())[1, 1] == 0
        assert torch.equal(shown(context(), FocusSettings()), torch.zeros(2, 2))

    def test_a_gate_of_what_was_not_measured_is_refused(self):
        with pytest.raises(ValueError, match="measured on rows that are encoded once"):
            focus(FULL, FocusSettings(subject_gate="shown"))

    def test_a_subject_alone_is_not_gated(self):
        alone = replace(
            FULL,
            subject_masks_BSHW=MASKS[:, :1],
            reference_subjects_BR=torch.zeros_like(SUBJECTS),
            shown_BS=torch.rand(2, 1),
        )
        gated, plain = (focus(alone, FocusSettings(subject_gate=gate)) for gate in SUBJECT_GATES)
        torch.testing.assert_close(gated["weights"], plain["weights"])

    def test_gate_by_alignment(self):
        """Images that match their references get their detail, whatever the level; without references none does."""
        exact = replace(FULL, similarity_BRHW=torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 2, *GRID) + 1e-3)
        exact = replace(exact, similarity_BRHW=torch.where(MASKS.amax(1, keepdim=True) > 0, exact.similarity_BRHW, 0))
        by_alignment = FocusSettings(gate="alignment", gate_threshold=0.5)
        unaligned, aligned = focus(exact, by_alignment)["detail"].sum(dim=(1, 2))
        assert unaligned == 0 and aligned > 0
        assert focus(context(detail=DETAIL), by_alignment)["detail"].sum() == 0

    @pytest.mark.parametrize("matching", MATCHINGS)
    def test_without_references_and_detail_it_is_the_prior(self, matching):
        maps = focus(context(), FocusSettings(matching=matching))
        torch.testing.assert_close(maps["weights"], 0.03 + 0.47 * torch.tensor(UNION))
        assert maps.keys() == {"prior", "weights"}

    def test_no_matching_leaves_similarity_alone(self):
        maps = focus(FULL, FocusSettings(matching="none"))
        assert maps.keys() == {"prior", "detail", "weights"}

    def test_order_of_references_does_not_matter(self):
        flipped = replace(FULL, similarity_BRHW=SIMILARITY.flip(1), reference_subjects_BR=SUBJECTS.flip(1))
        for name, part in focus(FULL, FocusSettings()).items():
            torch.testing.assert_close(part, focus(flipped, FocusSettings())[name])


class TestPriorFrom:
    def test_everywhere_is_one_subject_that_all_references_show(self):
        maps = focus(context(None, SIMILARITY), FocusSettings(prior="everywhere"))
        ones = torch.ones(2, 1, *GRID)
        matched = graded(SIMILARITY, torch.zeros(2, 2, dtype=torch.long), ones).matched_BHW
        assert (maps["prior"] == 1).all() and (maps["leak"] == 0).all()
        torch.testing.assert_close(maps["matched"], matched)

    def test_similarity_finds_the_subjects(self):
        """Each of two references of which half is subject has a quarter of the image: its two best cells of six."""
        maps = mask(context(None, SIMILARITY), replace(MASK_WEIGHTS, prior="similarity"))
        best = torch.zeros(2, 2, 6)
        best.scatter_(2, SIMILARITY.flatten(2).topk(2, dim=2).indices, 1.0)
        assert torch.equal(maps["prior"], best.amax(dim=1).unflatten(1, GRID))

    def test_similarity_goes_before_masks_of_the_data(self):
        settings = FocusSettings(prior="similarity")
        for name, part in focus(FULL, settings).items():
            torch.testing.assert_close(part, focus(replace(FULL, subject_masks_BSHW=None), settings)[name])


class TestNeeds:
    @pytest.mark.parametrize(
        "name,given,expected",
        [
            ("uniform", {}, set()),
            ("mask", {}, {"masks"}),
            ("mask", {"prior": "everywhere"}, set()),
            ("mask", {"prior": "similarity"}, {"references", "similarity"}),
            ("mask", {"prior": "similarity", "matching": "none"}, {"references", "similarity"}),
            ("patch", {}, {"masks", "similarity"}),
            ("focus", {}, {"masks", "similarity", "detail"}),
            ("focus", {"matching": "none"}, {"masks", "detail"}),
            ("focus", {"weights": FocusWeights(detail=0)}, {"masks", "similarity"}),
            ("focus", {"subject_gate": "shown"}, {"masks", "similarity", "detail", "shown"}),
            ("mask", {"subject_gate": "shown"}, {"masks"}),
        ],
    )
    def test_of_named_maps(self, name, given, expected):
        assert required(name, FocusSettings(**given)) == expected

    @pytest.mark.parametrize("name", FOCUS_MAPS)
    @pytest.mark.parametrize("where", PRIORS)
    @pytest.mark.parametrize("matching", MATCHINGS)
    def test_a_map_reads_no_more_than_it_says(self, name, where, matching):
        settings = FocusSettings(prior=where, matching=matching)
        wanted = required(name, settings)
        given = context(
            MASKS if "masks" in wanted else None,
            SIMILARITY if "similarity" in wanted else None,
            DETAIL if "detail" in wanted else None,
        )
        assert FOCUS_MAPS[name](given, settings)["weights"].shape == (2, *GRID)

    @pytest.mark.parametrize("name", ["mask", "patch", "focus"])
    def test_data_without_masks_is_refused(self, name):
        with pytest.raises(ValueError, match="chosen_masks.*rejected_masks"):
            FOCUS_MAPS[name](context(None), FocusSettings())

    def test_unknown(self):
        with pytest.raises(ValueError, match="not 'depth'"):
            needs("depth")


@st.composite
def contexts(draw):
    images = 2 * draw(st.integers(1, 2))
    subjects, references = draw(st.integers(0, 10)), draw(st.integers(0, 10))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    level = draw(st.sampled_from([rand(images), torch.zeros(images), torch.ones(images)]))
    change = draw(st.sampled_from([torch.ones_like, torch.zeros_like, torch.round, torch.clone]))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0]))
    compared = {}
    if references:
        compared = {
            "similarity_BRHW": (rand(images, references, height, width) * 2 - 1) * scale,
            "reference_subjects_BR": torch.randint(0, max(subjects, 1), (images, references), generator=generator),
            "reference_shares_BR": change(rand(images, references)),
        }
    masks = change(rand(images, subjects, height, width))
    return FocusContext(level, (height, width), masks, detail_BHW=rand(images, height, width), **compared)


@settings(max_examples=300, deadline=None)
@given(
    contexts(),
    st.sampled_from(sorted(FOCUS_MAPS)),
    st.sampled_from(PRIORS),
    st.sampled_from(MATCHINGS),
    st.sampled_from(GATES),
    st.floats(0, 1),
    st.sampled_from(SUBJECT_GATES),
)
def test_weights_whatever_comes_in(given, name, where, matching, gate, threshold, by_subject):
    if where == "similarity" and given.similarity_BRHW is None:
        where = "masks"  # the data would have been refused
    chosen = FocusSettings(FocusWeights(), where, matching, gate, threshold, by_subject)
    maps = FOCUS_MAPS[name](replace(given, shown_BS=shown(given, chosen)), chosen)
    for part in maps.values():
        assert part.shape == (len(given.level_B), *given.grid) and not part.requires_grad
        assert part.isfinite().all() and (part >= 0).all() and (part <= 1 + 1e-6).all()
    assert (maps["weights"] >= 0.03).all()


@pytest.mark.parametrize("name", FOCUS_MAPS)
def test_maps_do_not_change_what_they_are_given(name):
    before = MASKS.clone(), SIMILARITY.clone(), DETAIL.clone()
    for part in FOCUS_MAPS[name](FULL, FocusSettings()).values():
        part.add_(1)
    assert all(map(torch.equal, before, (MASKS, SIMILARITY, DETAIL)))
