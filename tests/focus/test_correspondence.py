# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_focus.focus.correspondence import (
    TOKENS_AT_ONCE,
    alignment_ratio,
    graded,
    masks_from_similarity,
    prototypes,
    similarity,
    top_k,
)


GRID = (4, 6)
BACKGROUND, A, B, C = range(4)
# A fills the 2 x 2 cells of the upper left, B the 2 x 3 of the lower right
RIGHT = torch.tensor(
    [
        [A, A, 0, 0, 0, 0],
        [A, A, 0, 0, 0, 0],
        [0, 0, 0, B, B, B],
        [0, 0, 0, B, B, B],
    ]
)
MASKS = torch.stack([RIGHT == A, RIGHT == B]).float()[None]
SUBJECTS = torch.tensor([[0, 1]])


def features(labels, dtype=torch.float32, seed=0, noise=0.05):
    """Features of what each token shows, with so much in common that their cosines are all above 0.8, as in a transformer."""
    look = torch.eye(4, 32)
    look[:, 4] = 3
    generator = torch.Generator().manual_seed(seed)
    feature = look[labels.flatten()]
    return (feature + noise * torch.randn(feature.shape, generator=generator)).to(dtype)[None]


def references(*shown, dtype=torch.float32):
    """Prototypes of references of 3 x 3 tokens with their subject in the middle row."""
    labels = [torch.tensor([[0] * 3, [subject] * 3, [0] * 3]) for subject in shown]
    mask = torch.tensor([[0.0] * 3, [1.0] * 3, [0.0] * 3]).reshape(1, 9)
    tokens = [features(label, dtype, seed=10 + i) for i, label in enumerate(labels)]
    return prototypes(tokens, [mask] * len(shown))


def seen(labels, shown=(A, B), dtype=torch.float32):
    """Similarity of references with an image that shows these labels."""
    return similarity(features(labels, dtype), references(*shown, dtype=dtype), tuple(labels.shape))


def changed(*cells):
    """The right image with other things in some cells, each `(row, column, label)`."""
    labels = RIGHT.clone()
    for row, column, label in cells:
        labels[row, column] = label
    return labels


def top_all(similarity_BRHW, subjects, masks):
    """top-k that looks for the whole of each subject."""
    return top_k(similarity_BRHW, subjects, masks, torch.ones(len(masks)))


def assert_close(actual, expected, atol=1e-5):
    for part, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(part, other, atol=atol, rtol=0)


WAYS = {"top_k": top_all, "graded": graded}
both_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class TestPrototypes:
    @pytest.mark.parametrize("tokens", [1, 7, TOKENS_AT_ONCE + 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_mean_under_the_mask(self, tokens, dtype):
        features_BnD, mask_Bn = (torch.randn(2, tokens, 5) + 1).to(dtype), torch.rand(2, tokens).to(dtype)
        expected = (features_BnD.double() * mask_Bn.double()[..., None]).sum(1) / mask_Bn.double().sum(1)[:, None]
        actual = prototypes([features_BnD], [mask_Bn])
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual[:, 0].double(), expected, rtol=1e-5, atol=1e-5)

    def test_references_of_different_sizes_keep_their_order(self):
        sizes = (3, 8, 1)
        tokens = [torch.full((2, n, 4), float(n)) for n in sizes]
        actual = prototypes(tokens, [torch.rand(2, n) for n in sizes])
        torch.testing.assert_close(actual, torch.tensor(sizes).float()[None, :, None].expand(2, 3, 4))

    def test_what_is_not_masked_does_not_count(self):
        tokens, mask = torch.rand(1, 4, 3), torch.tensor([[0.0, 1.0, 0.5, 0.0]])
        wild = tokens.clone()
        wild[:, [0, 3]] = 1e6
        torch.testing.assert_close(prototypes([wild], [mask]), prototypes([tokens], [mask]))

    def test_an_empty_mask_gives_zero(self):
        tokens = torch.randn(2, 4, 3)
        mask = torch.tensor([[0.0] * 4, [1.0] * 4])
        actual = prototypes([tokens, tokens], [mask, torch.ones(2, 4)])
        assert (actual[0, 0] == 0).all() and (actual[0, 1] != 0).all() and (actual[1] != 0).all()

    def test_as_many_masks_as_references(self):
        with pytest.raises(ValueError, match="shorter"):
            prototypes([torch.ones(1, 2, 3)] * 2, [torch.ones(1, 2)])


class TestSimilarity:
    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("dtype,atol", [(torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float64, 1e-6)])
    def test_cosine(self, dtype, atol, autocast):
        """The prototypes too come from bf16 features; nothing may be rounded to bf16 on the way, not even by autocast."""
        grid = (TOKENS_AT_ONCE // 4 + 1, 5)
        common = 2 * torch.randn(48)
        target_BPD = (torch.randn(2, grid[0] * grid[1], 48) + common).to(dtype)
        tokens_BnD = (torch.randn(2, 9, 48) + common).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            actual = similarity(target_BPD, prototypes([tokens_BnD] * 2, [torch.ones(2, 9)] * 2), grid)
        expected_BP = F.cosine_similarity(target_BPD.double(), tokens_BnD.double().mean(1, keepdim=True), dim=2)
        assert actual.shape == (2, 2, *grid) and actual.dtype == torch.float32
        torch.testing.assert_close(actual[:, 1].flatten(1).double(), expected_BP, rtol=0, atol=atol)

    def test_cells_are_in_rows(self):
        target_BPD = torch.eye(24)[None]
        for cell in (0, 8, 23):
            actual = similarity(target_BPD, torch.eye(24)[None, cell : cell + 1], GRID)
            assert actual[0, 0].nonzero().tolist() == [list(divmod(cell, GRID[1]))]

    @pytest.mark.parametrize("scale", [1e-4, 0.5, 1e4])
    def test_scale_does_not_matter(self, scale):
        target_BPD, prototypes_BRD = torch.randn(2, 24, 8), torch.randn(2, 3, 8)
        expected = similarity(target_BPD, prototypes_BRD, GRID)
        scales_BP1 = scale * torch.rand(2, 24, 1).add(0.5)
        actual = similarity(target_BPD * scales_BP1, prototypes_BRD / scale, GRID)
        torch.testing.assert_close(actual, expected)

    def test_zero_features_are_like_nothing(self):
        target_BPD, prototypes_BRD = torch.randn(1, 24, 8), torch.randn(1, 2, 8)
        target_BPD[0, 5] = 0
        prototypes_BRD[0, 1] = 0
        actual = similarity(target_BPD, prototypes_BRD, GRID).flatten(2)
        assert (actual[0, 1] == 0).all() and actual[0, 0, 5] == 0 and (actual[0, 0].abs() > 0).sum() == 23

    def test_at_most_1(self):
        target_BPD = torch.randn(1, 24, 3)
        actual = similarity(target_BPD, target_BPD, GRID)
        assert actual.max() <= 1 and similarity(target_BPD, -target_BPD, GRID).min() >= -1


@both_ways
class TestBothWays:
    """What the rank of the paper and our degree have in common."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_right_image_is_matched_and_leaks_nothing(self, way, dtype):
        similarity_BRHW = seen(RIGHT, dtype=dtype)
        assert similarity_BRHW.min() > 0.8
        matched, leak = way(similarity_BRHW, SUBJECTS, MASKS)
        assert (matched[0][RIGHT > 0] > 0.7).all()
        assert (matched[0][RIGHT == 0] == 0).all() and (leak[0][RIGHT == 0] == 0).all()
        assert leak.max() < 0.05

    def test_a_leak_is_found(self, way):
        """One of B's cells shows A, which also stands where it should."""
        matched, leak = way(seen(changed((2, 4, A))), SUBJECTS, MASKS)
        if way is top_all:  # A has as many matches as it has cells: one has to go for the leak to be seen
            matched, leak = top_k(seen(changed((2, 4, A))), SUBJECTS, MASKS, torch.tensor([1.25]))
        assert leak[0, 2, 4] > 0.7 and matched[0, 2, 4] < 0.1
        others = (RIGHT > 0).index_put([torch.tensor(2), torch.tensor(4)], torch.tensor(False))
        assert leak[0][others].max() < 0.1 and matched[0][others].min() > 0.7

    def test_swapped_subjects_leak_into_one_another(self, way):
        swapped = torch.tensor([0, B, A])[RIGHT]
        matched, leak = way(seen(swapped), SUBJECTS, MASKS)
        assert matched.max() < 0.1
        found = leak[0] > 0.7
        assert found[RIGHT == A].all() and found[RIGHT == B].sum() >= 4 and not found[RIGHT == 0].any()

    def test_a_subject_twice_leaks(self, way):
        """B's place shows A too. A rank shares A's matches between the places, and finds B's somewhere all the same."""
        matched, leak = way(seen(torch.where(RIGHT > 0, A, 0)), SUBJECTS, MASKS)
        assert leak[0][RIGHT == B].max() > 0.7
        if way is graded:
            assert leak[0][RIGHT == B].min() > 0.7 and matched[0][RIGHT == B].max() < 0.1
            assert leak[0][RIGHT == A].max() < 0.1 and matched[0][RIGHT == A].min() > 0.7

    def test_a_missing_subject_is_not_matched(self, way):
        """Both places show something that no reference does. A rank gives each reference its matches all the same."""
        nothing = torch.where(RIGHT > 0, C, 0)
        matched, leak = way(seen(nothing), SUBJECTS, MASKS)
        if way is graded:
            assert matched.max() < 0.3 and leak.max() < 0.3
        else:
            assert matched.max() == 1

    @pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
    def test_order_of_references_does_not_matter(self, way, order):
        similarity_BRHW, subjects = seen(changed((2, 4, A)), shown=(A, B, A)), torch.tensor([[0, 1, 0]])
        expected = way(similarity_BRHW, subjects, MASKS)
        actual = way(similarity_BRHW[:, order], subjects[:, order], MASKS)
        assert_close(actual, expected)

    def test_order_of_subjects_does_not_matter(self, way):
        similarity_BRHW = seen(changed((2, 4, A)))
        actual = way(similarity_BRHW, 1 - SUBJECTS, MASKS.flip(1))
        assert_close(actual, way(similarity_BRHW, SUBJECTS, MASKS))

    def test_images_do_not_mix(self, way):
        images = [seen(RIGHT), seen(changed((2, 4, A), (0, 0, C)))]
        alone = [way(image, SUBJECTS, MASKS) for image in images]
        together = way(torch.cat(images), SUBJECTS.expand(2, 2), MASKS.expand(2, -1, -1, -1))
        assert_close(together, map(torch.cat, zip(*alone, strict=True)))

    def test_two_references_of_a_subject_join(self, way):
        """A's left half looks like one reference, its right half like the other."""
        halves = changed((0, 1, C), (1, 1, C))
        similarity_BRHW = seen(halves, shown=(A, C, B))
        one, _ = way(similarity_BRHW[:, [0, 2]], SUBJECTS, MASKS)
        two, leak = way(similarity_BRHW, torch.tensor([[0, 0, 1]]), MASKS)
        assert (two >= one - 1e-6).all() and two[0][RIGHT > 0].min() > 0.7 and leak.max() < 0.1

    def test_subjects_that_look_alike_do_not_leak(self, way):
        """A subject given twice, as two: each is matched in the other's place, and neither leaks."""
        similarity_BRHW = seen(torch.where(RIGHT > 0, A, 0), shown=(A,)).expand(1, 2, *GRID)
        if way is top_all:
            matched, leak = top_k(similarity_BRHW, SUBJECTS, MASKS, torch.tensor([2.5]))
        else:
            matched, leak = way(similarity_BRHW, SUBJECTS, MASKS)
        assert leak.max() == 0 and matched[0][RIGHT > 0].min() > 0.7

    def test_an_empty_reference_matches_nothing(self, way):
        similarity_BRHW = seen(RIGHT)
        similarity_BRHW[:, 1] = 0
        matched, leak = way(similarity_BRHW, SUBJECTS, MASKS)
        assert matched[0][RIGHT == A].min() > 0.7 and matched[0][RIGHT == B].max() == 0 and leak.max() == 0
        nothing = way(torch.zeros(1, 2, *GRID), SUBJECTS, MASKS)
        assert all((part == 0).all() for part in nothing)

    @pytest.mark.parametrize("other", [-1, 2])
    def test_a_reference_of_no_subject_is_left_out(self, way, other):
        """A style reference, or padding."""
        similarity_BRHW = seen(changed((2, 4, C)), shown=(A, B, C))
        actual = way(similarity_BRHW, torch.tensor([[0, 1, other]]), MASKS)
        assert_close(actual, way(similarity_BRHW[:, :2], SUBJECTS, MASKS))

    def test_an_absent_subject_has_no_match(self, way):
        masks = MASKS * torch.tensor([1.0, 0.0])[:, None, None]
        matched, leak = way(seen(RIGHT), SUBJECTS, masks)
        assert matched[0][RIGHT == A].min() > 0.7
        assert (matched[0][RIGHT != A] == 0).all() and leak.max() < 0.1

    @pytest.mark.parametrize("references,subjects", [(2, 0), (0, 2), (0, 0)])
    def test_none_at_all(self, way, references, subjects):
        ids = torch.zeros(1, references, dtype=torch.long)
        parts = way(torch.rand(1, references, *GRID), ids, torch.ones(1, subjects, *GRID))
        assert all(part.shape == (1, *GRID) and (part == 0).all() for part in parts)

    def test_no_background(self, way):
        labels = torch.where(torch.arange(6) < 3, A, B).expand(GRID)
        masks = torch.stack([labels == A, labels == B]).float()[None]
        matched, leak = way(seen(labels), SUBJECTS, masks)
        assert matched.min() > 0.7 and leak.max() < 0.1

    def test_soft_masks_count_once(self, way):
        """A subject that covers a part of its cells is matched in full: the prior is what holds the part."""
        matched, leak = way(seen(RIGHT), SUBJECTS, MASKS * 0.5)
        hard = way(seen(RIGHT), SUBJECTS, MASKS)
        if way is graded:  # half of each subject's cells counts as background, which it resembles
            assert matched[0][RIGHT > 0].min() > 0.5
        else:
            assert matched.sum() == 5 and (matched <= hard.matched_BHW).all()
            matched, leak = top_k(seen(RIGHT), SUBJECTS, MASKS * 0.5, torch.tensor([2.0]))
            assert torch.equal(matched, hard.matched_BHW) and torch.equal(leak, hard.leak_BHW)

    def test_where_masks_overlap_a_match_goes_before_leakage(self, way):
        """A's place lies inside B's mask too."""
        masks = torch.stack([(RIGHT == A), (RIGHT > 0)]).float()[None]
        matched, leak = way(seen(RIGHT), SUBJECTS, masks)
        assert matched[0][RIGHT == A].min() > 0.7 and leak.max() < 0.2

    def test_no_gradient(self, way):
        parts = way(seen(RIGHT).requires_grad_(), SUBJECTS, MASKS.clone().requires_grad_())
        assert not any(part.requires_grad for part in parts)


class TestTopK:
    @pytest.mark.parametrize("share,a,b", [(1.0, 4, 6), (0.75, 3, 5), (0.5, 2, 3), (0.01, 1, 1), (0.0, 0, 0)])
    def test_number_of_matches(self, share, a, b):
        matched, _ = top_k(seen(RIGHT), SUBJECTS, MASKS, torch.tensor([share]))
        assert matched[0][RIGHT == A].sum() == a and matched[0][RIGHT == B].sum() == b

    def test_number_is_not_at_the_mercy_of_rounding(self):
        similarity_BRHW = torch.rand(1, 1, 40, 100)
        for area, share in [(10, 0.3), (50, 0.3), (1000, 0.3), (4000, 0.3), (10, 0.7), (4000, 1.0)]:
            mask = (torch.arange(4000) < area).reshape(1, 1, 40, 100).float()
            similarity_BRHW = torch.rand(1, 1, 40, 100) * mask
            matched, _ = top_k(similarity_BRHW, torch.zeros(1, 1).long(), mask, torch.tensor([share]))
            assert matched.sum() == round(share * area)

    def test_the_most_similar_are_matched_first(self):
        similarity_BRHW = seen(RIGHT)
        matched, _ = top_k(similarity_BRHW, SUBJECTS, MASKS, torch.tensor([0.5]))
        for reference, label in enumerate((A, B)):
            inside = RIGHT == label
            hits = matched[0][inside] > 0
            values = similarity_BRHW[0, reference][inside]
            assert values[hits].min() > values[~hits].max()

    def test_share_is_each_images_own(self):
        images, masks = seen(RIGHT).expand(2, -1, -1, -1), MASKS.expand(2, -1, -1, -1)
        matched, _ = top_k(images, SUBJECTS.expand(2, 2), masks, torch.tensor([1.0, 0.5]))
        assert matched.sum(dim=(1, 2)).tolist() == [10, 5]

    def test_equals_are_matched_together(self):
        """Whichever order the cells are in."""
        similarity_BRHW = torch.full((1, 2, *GRID), 0.5)
        matched, leak = top_k(similarity_BRHW, SUBJECTS, MASKS, torch.tensor([0.3]))
        assert torch.equal(matched[0], (RIGHT > 0).float()) and leak.max() == 0

    def test_a_match_outside_every_mask_is_lost(self):
        labels = changed((0, 4, A), (0, 5, A), (3, 0, A), (3, 1, A), (0, 0, C), (0, 1, C), (1, 0, C), (1, 1, C))
        matched, leak = top_all(seen(labels), SUBJECTS, MASKS)
        assert matched[0][RIGHT == A].max() == 0 and matched.sum() == 6 and leak.max() == 0

    def test_similarity_below_0_is_no_match(self):
        similarity_BRHW = torch.full((1, 2, *GRID), -0.5)
        assert top_all(similarity_BRHW, SUBJECTS, MASKS).matched_BHW.max() == 0


class TestGraded:
    def test_a_cell_half_way_is_half_matched(self):
        similarity_BRHW = torch.full((1, 1, *GRID), 0.9)  # the background
        similarity_BRHW[0, 0, 0, :2] = torch.tensor([1.0, 0.95])
        similarity_BRHW[0, 0, 1, :2] = torch.tensor([0.9, 0.85])
        matched, leak = graded(similarity_BRHW, torch.tensor([[0]]), MASKS[:, :1])
        torch.testing.assert_close(matched[0, :2, :2], torch.tensor([[1.0, 0.5], [0.0, 0.0]]), atol=1e-5, rtol=0)
        assert leak.max() == 0

    def test_leak_is_what_the_foreign_one_has_over_the_own(self):
        similarity_BRHW = torch.full((1, 2, *GRID), 0.5)
        similarity_BRHW[0, :, 0, 0] = torch.tensor([0.6, 0.9])  # 0.2 and 0.8 of the way
        matched, leak = graded(similarity_BRHW, SUBJECTS, MASKS)
        assert matched[0, 0, 0].item() == pytest.approx(0.2, abs=1e-5)
        assert leak[0, 0, 0].item() == pytest.approx(0.6, abs=1e-5)
        assert leak.sum().item() == pytest.approx(0.6, abs=1e-4)

    def test_a_leak_that_fills_the_image_is_seen(self):
        """A reference that resembles no cell is not an empty one."""
        similarity_BRHW = torch.full((1, 2, *GRID), 0.5)
        similarity_BRHW[0, 0] = 0.1
        similarity_BRHW[0, 1][RIGHT > 0] = 1.0
        assert graded(similarity_BRHW, SUBJECTS, MASKS).leak_BHW[0][RIGHT == A].min() > 0.99

    def test_a_common_rise_of_similarity_does_not_matter(self):
        """What all cells have in common, an offset of the features, moves every cosine towards 1."""
        similarity_BRHW = seen(changed((2, 4, A)))
        expected = graded(similarity_BRHW, SUBJECTS, MASKS)
        assert_close(graded(0.9 + 0.1 * similarity_BRHW, SUBJECTS, MASKS), expected, atol=1e-3)

    def test_a_flat_image_says_nothing(self):
        for value in (-1.0, 0.0, 0.7, 1.0):
            parts = graded(torch.full((1, 2, *GRID), value), SUBJECTS, MASKS)
            assert all((part < 1e-3).all() for part in parts)


def auc(score, positive):
    """Probability that a positive scores above a negative, ties halved."""
    above = score[positive][:, None] - score[~positive][None]
    return ((above > 0).float() + (above == 0).float() / 2).mean().item()


def test_degree_tells_a_whole_wrong_subject_where_a_rank_cannot():
    """
    In a set of images each subject is right, wrong in some cells, or wrong as a whole (it shows something that no reference
    does). The misaligned cells of all images together: a rank gives every reference its matches, so it misses the last.
    """
    generator = torch.Generator().manual_seed(0)
    scores, positives = {"top_k": [], "graded": []}, []
    for i in range(60):
        rate = torch.tensor([0.0, 0.3, 1.0])[torch.randint(3, (2,), generator=generator)]
        wrong = torch.rand(GRID, generator=generator) < torch.cat([torch.zeros(1), rate])[RIGHT]
        image = features(torch.where(wrong, C, RIGHT), seed=100 + i, noise=0.2)
        similarity_BRHW = similarity(image, references(A, B), GRID)
        for name, parts in [
            ("top_k", top_k(similarity_BRHW, SUBJECTS, MASKS, torch.tensor([0.65]))),
            ("graded", graded(similarity_BRHW, SUBJECTS, MASKS)),
        ]:
            scores[name].append(1 - parts.matched_BHW[0][RIGHT > 0])
        positives.append(wrong[RIGHT > 0])
    ranked, by_degree = (auc(torch.cat(scores[name]), torch.cat(positives)) for name in ("top_k", "graded"))
    print(f"AUC of misaligned cells: top-k {ranked:.3f}, graded {by_degree:.3f}")
    assert by_degree > 0.95 and by_degree > ranked + 0.05


class TestMasksFromSimilarity:
    SHARES = torch.tensor([[2 * 4 / 24, 2 * 6 / 24]])  # of the halves of the image that two references may have

    def test_they_are_where_the_subjects_are(self):
        masks_BSHW, subjects_BR = masks_from_similarity(seen(RIGHT), self.SHARES, torch.tensor([[0, 1]]))
        assert torch.equal(masks_BSHW[0], torch.stack([RIGHT == A, RIGHT == B]).float())
        assert subjects_BR.tolist() == [[0, 1]]

    @pytest.mark.parametrize("share,cells", [(0.0, 0), (0.1, 3), (1.0, 24)])
    def test_share_of_the_image(self, share, cells):
        similarity_BRHW = torch.rand(1, 1, *GRID) + 0.1
        masks_BSHW, _ = masks_from_similarity(similarity_BRHW, torch.tensor([[share]]), torch.zeros(1, 1).long())
        assert masks_BSHW.sum() == cells

    def test_an_empty_reference_adds_nothing(self):
        similarity_BRHW = seen(RIGHT)
        similarity_BRHW[:, 1] = 0
        masks_BSHW, _ = masks_from_similarity(similarity_BRHW, self.SHARES, torch.tensor([[0, 1]]))
        assert torch.equal(masks_BSHW[0], torch.stack([RIGHT == A, RIGHT == -1]).float())

    def test_references_of_one_subject_share_a_mask(self):
        """Subject 7 is shown by the first and the last reference, and the second shows none."""
        similarity_BRHW = torch.zeros(1, 3, 1, 6)
        similarity_BRHW[0, 0, 0, 0] = similarity_BRHW[0, 1, 0, 1] = similarity_BRHW[0, 2, 0, 4] = 0.9
        masks_BSHW, subjects_BR = masks_from_similarity(
            similarity_BRHW, torch.full((1, 3), 0.5), torch.tensor([[7, -1, 7]])
        )
        assert subjects_BR.tolist() == [[0, -1, 0]]
        assert masks_BSHW[0, :, 0].tolist() == [[1, 0, 0, 0, 1, 0], [0] * 6, [0] * 6]


class TestAlignmentRatio:
    def test_share_of_the_subjects_cells(self):
        prior_BHW = torch.tensor([[[1.0, 1.0, 0.5, 0.0]], [[0.0, 0.0, 0.0, 0.0]], [[0.3, 0.3, 0.3, 0.0]]])
        matched_BHW = torch.tensor([[[1.0, 0.0, 0.5, 1.0]], [[1.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0, 0.0]]])
        assert alignment_ratio(matched_BHW, prior_BHW).tolist() == pytest.approx([0.5, 0.0, 1.0])

    @both_ways
    def test_grows_as_the_image_comes_right(self, way):
        images = [torch.where(RIGHT > 0, C, 0), changed((0, 0, C), (2, 3, A), (2, 4, C)), RIGHT]
        ratios = [alignment_ratio(way(seen(i), SUBJECTS, MASKS)[0], MASKS.amax(1)).item() for i in images]
        assert ratios == sorted(ratios) and ratios[-1] > 0.8
        if way is graded:
            assert ratios[0] < 0.2

    def test_a_right_image_is_aligned_though_its_masks_are_soft(self):
        masks = MASKS * 0.6
        matched, _ = top_k(seen(RIGHT), SUBJECTS, masks, torch.tensor([1 / 0.6]))
        assert alignment_ratio(matched, masks.amax(1)).item() == pytest.approx(1)


@st.composite
def anything(draw):
    """Similarities, subjects and masks of any kind: empty, full, soft, tied, with references of no subject."""
    images, references, subjects, height, width = (draw(st.integers(low, 4)) for low in (1, 0, 0, 1, 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rand = functools.partial(torch.rand, generator=generator)
    similarity_BRHW = rand(images, references, height, width) * 2 - 1
    similarity_BRHW = draw(
        st.sampled_from([similarity_BRHW, similarity_BRHW.round(), similarity_BRHW.bfloat16(), similarity_BRHW * 0])
    )
    ids_BR = torch.randint(-1, subjects + 1, (images, references), generator=generator)
    masks_BSHW = rand(images, subjects, height, width)
    present = rand(images, subjects, 1, 1) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    soften = draw(st.sampled_from([torch.round, torch.ceil, torch.square, lambda mask: mask * 1e-6]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    share_B = draw(st.floats(0, 2)) * rand(images)
    return similarity_BRHW, ids_BR, (soften(masks_BSHW) * present).to(dtype), share_B


@settings(max_examples=200, deadline=None)
@given(anything())
def test_shares_of_cells_whatever_comes_in(inputs):
    similarity_BRHW, ids_BR, masks_BSHW, share_B = inputs
    outside = (masks_BSHW == 0).all(dim=1)
    for matched, leak in (top_k(*inputs), graded(*inputs[:3])):
        assert matched.shape == leak.shape == outside.shape and matched.dtype == leak.dtype == torch.float32
        for part in (matched, leak, matched + leak):
            assert part.isfinite().all() and (part >= 0).all() and (part <= 1 + 1e-6).all()
            assert (part[outside] == 0).all()
        if masks_BSHW.shape[1]:
            ratio_B = alignment_ratio(matched, masks_BSHW.amax(dim=1))
            assert ((0 <= ratio_B) & (ratio_B <= 1)).all()
    if similarity_BRHW.shape[1]:
        shares_BR = similarity_BRHW.float().abs().mean(dim=(2, 3))
        found_BSHW, subjects_BR = masks_from_similarity(similarity_BRHW, shares_BR, ids_BR)
        assert found_BSHW.shape == similarity_BRHW.shape and ((found_BSHW == 0) | (found_BSHW == 1)).all()
        assert ((-1 <= subjects_BR) & (subjects_BR < similarity_BRHW.shape[1])).all()


def whole(tokens, mask, target, subjects, masks, share):
    prototypes_BRD = prototypes([tokens, tokens], [mask, mask])
    similarity_BRHW = similarity(target, prototypes_BRD, GRID)
    found_BSHW, _ = masks_from_similarity(similarity_BRHW, mask.mean(dim=1, keepdim=True).expand(-1, 2), subjects)
    prior_BHW = found_BSHW.amax(dim=1)
    ranked, by_degree = top_k(similarity_BRHW, subjects, masks, share), graded(similarity_BRHW, subjects, masks)
    return prior_BHW, *ranked, *by_degree, alignment_ratio(ranked.matched_BHW, prior_BHW)


def test_nothing_waits_for_the_device_and_nothing_has_a_gradient():
    """A graph without breaks has no value read by the host."""
    inputs = [torch.randn(1, 9, 8), torch.rand(1, 9), torch.randn(1, 24, 8), SUBJECTS, MASKS.clone(), torch.ones(1)]
    inputs = [value if value.dtype == torch.long else value.requires_grad_() for value in inputs]
    eager, compiled = whole(*inputs), torch.compile(whole, fullgraph=True, backend="eager")(*inputs)
    assert_close(eager, compiled)
    assert not any(value.requires_grad for value in eager)
    assert not prototypes(inputs[:1], inputs[1:2]).requires_grad
