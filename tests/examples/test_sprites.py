# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import itertools

import numpy as np
import pytest
import torch

from examples.sprites.data import RENDERED, best_and_worst, make_pairs, rendered_pair, sampled_row
from examples.sprites.pipeline import BASE, ENCODE_PROMPT_KWARGS, load_base, untrained_pipeline, untrained_vae
from examples.sprites.pretrain import with_habit
from examples.sprites.sampling import draw
from examples.sprites.scorer import PRESENT, look, own_accuracy, score, score_all
from examples.sprites.world import (
    GROUNDS,
    QUADRANT,
    REFERENCE,
    ROOM,
    SCENE,
    SUBJECTS,
    TOKEN,
    Scene,
    Subject,
    draw_scene,
    generator,
    leaks,
    paste,
    prompt_of,
    references_of,
    render,
    scene_masks,
    split_of,
)
from trl_focus.data import validate_dataset


def scenes(n, split="validation", n_subjects=2):
    return [draw_scene(generator(split, 99, i), split, n_subjects) for i in range(n)]


# ---- The world ----


def test_splits_ask_for_different_scenes():
    """Whatever the seeds: a scene of the test split can't be drawn for training, tuning or as a pair."""
    for split in ("train", "validation", "test"):
        for scene in scenes(50, split):
            assert split_of(scene) == split
    for regime in RENDERED:
        for i in range(20):
            assert split_of(rendered_pair(regime, generator("train", 98, i), "train").asked) == "train"


def test_split_knows_neither_the_order_of_references_nor_the_layout():
    scene = scenes(1, n_subjects=3)[0]
    for order in itertools.permutations(range(3)):
        parts = [tuple(part[i] for i in order) for part in (scene.subjects, scene.slots, scene.corners)]
        assert split_of(Scene(*parts, scene.ground)) == split_of(scene)
    assert split_of(scene._replace(corners=(0, 0, 0), texture=3, strength=0.1)) == split_of(scene)


def test_splits_have_random_numbers_of_their_own():
    draws = {generator(split, key).integers(2**60) for split in ("train", "validation", "test") for key in range(3)}
    assert len(draws) == 9


def test_held_out_subjects_are_shown_by_unseen_scenes_alone():
    held_out = [subject for subject in SUBJECTS if subject.held_out]
    assert len(held_out) == len(SUBJECTS) / 8
    assert not any(subject.held_out for scene in scenes(100, "train", 4) for subject in scene.subjects)
    unseen = draw_scene(generator("test", 1), "test", 2, unseen=True)
    assert all(subject.held_out for subject in unseen.subjects)
    for i, scene in enumerate(scenes(100, "train", 3)):
        assert not any(subject.held_out for subject in with_habit(scene, generator("train", 97, i)).subjects)
        assert not any(s.held_out for leaked in leaks(scene, 0) for s in leaked.subjects)


@pytest.mark.parametrize("n_subjects", [1, 2, 3, 4])
def test_masks_are_exact_and_subjects_small(n_subjects):
    scene = scenes(1, n_subjects=n_subjects)[0]
    image = render(scene).astype(int)
    for which, mask in enumerate(scene_masks(scene)):
        others = [[part[i] for i in range(n_subjects) if i != which] for part in scene[:3]]
        changed = np.abs(image - render(Scene(*map(tuple, others), scene.ground))).max(axis=2) > 0
        assert (changed <= (mask_dilated(mask) > 0)).all()  # nothing of the subject is outside of its mask's border
        assert (mask > 0).sum() > 0.8 * changed.sum()
        cells = mask.reshape(SCENE // TOKEN, TOKEN, SCENE // TOKEN, TOKEN).max(axis=(1, 3)) > 0
        assert 0 < cells.mean() <= 0.1


def mask_dilated(mask):
    padded = np.pad(mask, 1)
    return np.max([np.roll(padded, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2)], axis=0)[
        1:-1, 1:-1
    ]


def test_a_leak_gives_one_subject_one_attribute_of_another():
    for scene in scenes(20, n_subjects=3):
        for leaked in leaks(scene, 1):
            assert (leaked.subjects[0], leaked.subjects[2]) == (scene.subjects[0], scene.subjects[2])
            (changed,) = [k for k in range(3) if leaked.subjects[1][k] != scene.subjects[1][k]]
            assert leaked.subjects[1][changed] in (scene.subjects[0][changed], scene.subjects[2][changed])


def test_prompts_name_shapes_references_places_and_ground_but_no_colour_and_pattern():
    scene = Scene((Subject(0, 1, 2), Subject(5, 0, 3)), (3, 0), (1, 2), 2)
    assert prompt_of(scene) == "disc 1 bottom-right, star 2 top-left, mint ground"


# ---- The scorer ----


@pytest.mark.parametrize("n_subjects", [1, 2, 3, 4])
def test_scorer_reads_what_was_rendered(n_subjects):
    for scene in scenes(10, n_subjects=n_subjects):
        ground, seen = look(render(scene))
        assert ground == scene.ground
        found = {slot: (SUBJECTS[s[0]], s[1]) for slot, s in enumerate(seen) if s[2] >= PRESENT}
        assert found == dict(zip(scene.slots, zip(scene.subjects, scene.places, strict=True), strict=True))
        values = score(render(scene), scene)
        assert values["identity"] == values["position"] == 1
        assert values["leakage"] == values["extra"] == values["background_error"] == 0
        assert values["residual"] < 0.002  # what rounding leaves


def test_scorer_tells_leaks_absences_moves_and_additions():
    for scene in scenes(10):
        leaked = leaks(scene, 0)[0]
        (changed,) = [k for k in range(3) if leaked.subjects[0][k] != scene.subjects[0][k]]
        values = score(render(leaked), scene)
        assert values["identity"] == values["leakage"] == 0.5
        assert [values[name] for name in ("shape", "colour", "pattern")] == [
            0.5 if k == changed else 1 for k in range(3)
        ]

        alone = Scene(*(part[:1] for part in scene[:3]), scene.ground)
        values = score(render(alone), scene)
        assert values["identity"] == values["present"] == 0.5 and values["leakage"] == 0
        assert score(render(scene), alone)["extra"] == pytest.approx(1 / 3)

        other = scene._replace(ground=(scene.ground + 3) % 6)
        assert score(render(other), scene)["background_error"] > 0.05 and score(render(other), scene)["identity"] == 1


def test_scorer_finds_subjects_between_the_corners_and_says_so():
    canvas = np.empty((SCENE, SCENE, 3))
    canvas[:] = [*GROUNDS.values()][0]
    scene = Scene((Subject(1, 2, 3),), (3,), (0,), 0)
    paste(canvas, scene.subjects[0], (QUADRANT + TOKEN, QUADRANT + ROOM))
    values = score(canvas, scene)
    assert values["identity"] == 1 and values["position"] == 0


def test_scorer_withstands_noise_and_loses_identity_to_blur():
    accuracy = own_accuracy(24)
    assert accuracy["clean"]["identity"] == accuracy["noise 40"]["identity"] == 1
    assert accuracy["blur 3"]["identity"] < 0.9
    assert accuracy["blur 1"]["residual"] < accuracy["blur 2"]["residual"] < accuracy["blur 3"]["residual"]


# ---- Pairs ----


@pytest.mark.parametrize("regime", RENDERED)
def test_pairs_differ_as_their_regime_says(regime):
    for i in range(20):
        pair = rendered_pair(regime, generator("train", 96, i), "train")
        (which,) = pair.relevant
        assert pair.chosen.subjects[which] == pair.asked.subjects[which] != pair.rejected.subjects[which]
        textures = [scene.texture if scene.strength else None for scene in (pair.chosen, pair.rejected)]
        others = [
            [subject for k, subject in enumerate(scene.subjects) if k != which]
            for scene in (pair.chosen, pair.rejected)
        ]
        if regime == "minimal":
            assert textures == [None, None] and pair.chosen == pair.asked
        elif regime.startswith("nuisance"):
            assert None not in textures and textures[0] != textures[1]
        else:
            assert (textures[0] is None) == (regime == "confounded-rejected") == (textures[1] is not None)
        assert (others[0] == others[1]) or regime == "nuisance-strong"


def test_nuisance_pairs_vary_independently_of_their_label():
    pairs = [rendered_pair("nuisance-strong", generator("train", 95, i), "train") for i in range(300)]
    moved = np.mean([pair.chosen.corners != pair.rejected.corners for pair in pairs])
    assert 0.85 < moved < 1  # 15 of 16
    kept = [
        np.mean(
            [
                getattr(pair, image).subjects[1 - pair.relevant[0]] == pair.asked.subjects[1 - pair.relevant[0]]
                for pair in pairs
            ]
        )
        for image in ("chosen", "rejected")
    ]
    assert max(kept) < 0.05


@pytest.mark.parametrize("relevant_only", [False, True])
def test_rows_are_of_the_preference_schema(relevant_only):
    pairs = make_pairs("nuisance-weak", 4, relevant_only=relevant_only)
    validate_dataset(pairs)
    for row in pairs:
        assert sum(mask is not None for mask in row["chosen_masks"]) == (1 if relevant_only else 2)
        assert row["references"][0].size == (REFERENCE, REFERENCE)
    again = make_pairs("nuisance-weak", 4, relevant_only=relevant_only)
    assert all(one == other for one, other in zip(pairs, again, strict=True))
    assert pairs[0] != make_pairs("nuisance-weak", 1, seed=1)[0]


def test_best_and_worst_of_samples():
    scene = scenes(1)[0]
    leaked = leaks(scene, 0)[0]
    worst = leaked._replace(subjects=(leaked.subjects[0], leaks(scene, 1)[0].subjects[1]))
    images = [render(picture) for picture in (leaked, scene._replace(corners=(0, 3)), worst)]
    shown = best_and_worst(scene, images)
    row = sampled_row(scene, shown, False, generator("train", 1))
    assert (np.asarray(row["chosen"]) == images[1]).all() and (np.asarray(row["rejected"]) == images[2]).all()
    assert (np.asarray(row["chosen_masks"][1]) == scene_masks(scene._replace(corners=(0, 3)))[1]).all()
    assert best_and_worst(scene, images[:1] * 2) is None
    row = sampled_row(scene, best_and_worst(scene, images[:2]), True, generator("train", 1))
    assert [mask is not None for mask in row["chosen_masks"]] == [True, False]


# ---- The pipeline ----


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    pipeline = untrained_pipeline(untrained_vae().eval(), width=32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_prompts_of_four_subjects_fit_without_unknown_words(pipeline):
    tokenizer = pipeline.tokenizer
    for scene in scenes(20, n_subjects=4):
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt_of(scene)}], tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) <= ENCODE_PROMPT_KWARGS["max_sequence_length"]
        assert tokenizer.unk_token_id not in ids


def test_scenes_are_drawn_as_the_pipeline_draws_them_one_by_one(pipeline):
    asked = scenes(2)
    references = [references_of(scene.subjects, generator("test", i)) for i, scene in enumerate(asked)]
    images = draw(pipeline, asked, references, [5, 6], n_steps=3)
    for scene, shown, seed, image in zip(asked, references, [5, 6], images, strict=True):
        theirs = pipeline(
            image=shown,
            prompt=prompt_of(scene),
            height=SCENE,
            width=SCENE,
            num_inference_steps=3,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **ENCODE_PROMPT_KWARGS,
        ).images[0]
        assert np.abs(theirs * 255 - image).max() <= 1
    assert np.abs(images[0].astype(int) - images[1]).max() > 10


def test_shipped_base_is_small_and_draws_what_it_is_asked_for():
    base = load_base()
    assert sum(file.stat().st_size for file in BASE.rglob("*")) < 16e6
    asked = scenes(8, n_subjects=1)
    references = [references_of(scene.subjects, generator("validation", 94, i)) for i, scene in enumerate(asked)]
    scores = score_all(draw(base, asked, references, range(8)), asked)
    assert scores["identity"].mean() > 0.6
    # other references, another picture: it looks at them
    swapped = score_all(draw(base, asked, references[1:] + references[:1], range(8)), asked)
    assert swapped["identity"].mean() < 0.3
