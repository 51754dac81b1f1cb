# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import weakref
from collections import Counter

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from trl_focus.data.batches import LayoutBatchSampler, PreferenceRows, PreferenceStream, RowKey
from trl_focus.data.layout import Layout


WORLD_SIZES = [1, 2, 3, 5]
LAYOUTS = {
    "uneven": [*"aabacabcaabbaaaabcadaaab"],
    "one layout": [*"aaaaaaa"],
    "full batches": [*"aaaaaabbb"],
    "fewer batches than ranks": [*"aab"],
    "one row": [*"a"],
    "each its own": [*"abcdefg"],
}


def batches_per_rank(layouts, world_size, epoch=0, **kwargs):
    ranks = []
    for rank in range(world_size):
        sampler = LayoutBatchSampler(layouts, 3, rank, world_size, **kwargs)
        sampler.set_epoch(epoch)
        ranks.append([*sampler])
        assert len(sampler) == len(ranks[-1])
    return ranks


def check_ranks(ranks):
    """Ranks take the same number of steps; fillers are no more than these need. Returns the batches that count."""
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for step in zip(*ranks, strict=True) for batch in step]
    counting = [batch for batch in batches if all(key.counts for key in batch)]
    assert all(not key.counts for batch in batches if batch not in counting for key in batch)
    assert len(batches) - len(counting) == -len(counting) % len(ranks)
    return counting


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_row_once(world_size, layouts, shuffle, drop_last):
    ranks = batches_per_rank(layouts, world_size, 3, shuffle=shuffle, drop_last=drop_last)
    batches = check_ranks(ranks)
    for batch in [batch for rank in ranks for batch in rank]:
        assert 1 <= len(batch) <= 3
        assert len({layouts[key.row] for key in batch}) == 1

    rows = [key.row for batch in batches for key in batch]
    rows_per_layout = Counter(layouts)
    left_over = Counter({layout: n % 3 for layout, n in rows_per_layout.items()})
    assert len(rows) == len({*rows})
    assert Counter(layouts[row] for row in rows) == (rows_per_layout - left_over if drop_last else rows_per_layout)
    smaller = Counter({layouts[batch[0].row]: len(batch) for batch in batches if len(batch) < 3})
    assert smaller == (Counter() if drop_last else +left_over)
    assert sum(len(batch) < 3 for batch in batches) == len(smaller)


def test_shuffle():
    layouts = ["a"] * 40 + ["b"] * 20

    def order(epoch=0, seed=0):
        return batches_per_rank(layouts, 2, epoch, shuffle=True, seed=seed)

    def rows(ranks):
        return [[key.row for key in batch] for batches in ranks for batch in batches]

    assert order(1) == order(1)
    assert rows(order(0)) != rows(order(1))
    assert rows(order(0)) != rows(order(seed=1))
    assert {key.epoch for batches in order(7) for batch in batches for key in batch} == {7}
    # Neither rows nor layouts stay together
    assert not {frozenset(batch) for batch in rows(order(0))} & {frozenset(batch) for batch in rows(order(1))}
    (batches,) = batches_per_rank(layouts, 1, shuffle=True)
    drawn = [layouts[batch[0].row] for batch in batches]
    assert drawn != sorted(drawn) and drawn != sorted(drawn, reverse=True)


@pytest.mark.parametrize("epoch", [0, 5])
def test_unshuffled_order(epoch):
    (batches,) = batches_per_rank([*"abaabaa"], 1, epoch)
    rows = [[key.row for key in batch] for batch in batches]
    assert rows == [[0, 2, 3], [5, 6], [1, 4]]
    assert {key.epoch for batch in batches for key in batch} == {epoch}  # the same order, with draws of its own


# ---- Loaders ----


def keys_of(rows):
    return [row["key"] for row in rows]


def prepared(dataset, **kwargs):
    """A loader as the trainer makes it; its batches are lists of keys."""
    loader = DataLoader(dataset, collate_fn=keys_of, **kwargs)
    return prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False)


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    return [*loader]


def test_rows_are_looked_up_by_key():
    rows = PreferenceRows(Dataset.from_dict({"prompt": ["a", "b", "c"]}), [Layout((64, 64))] * 3)
    assert len(rows) == 3
    assert rows[RowKey(1, 4, False)] == {"prompt": "b", "key": RowKey(1, 4, False)}


@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume(workers, rank, world_size):
    layouts = LAYOUTS["uneven"]
    rows = PreferenceRows(Dataset.from_dict({"prompt": layouts}), layouts)

    def loader():
        sampler = LayoutBatchSampler(layouts, 3, rank, world_size, shuffle=True)
        return prepared(rows, batch_sampler=sampler, num_workers=workers)

    uninterrupted = loader()
    epochs = [epoch_of(uninterrupted, epoch) for epoch in range(4)]
    assert len(epochs[2]) == len(uninterrupted) and epochs[2] != epochs[1]

    resumed = loader()
    rest = skip_first_batches(resumed, 2)
    assert len(rest) == len(epochs[2]) - 2
    assert epoch_of(rest, 2) == epochs[2][2:]
    assert epoch_of(resumed, 3) == epochs[3]


# ---- Stream ----


def numbered(shards):
    for shard in shards:
        for x in shard:
            yield {"x": x}


def stream_of(n, shards=1):
    parts = [[*range(shard, n, shards)] for shard in range(shards)]
    return IterableDataset.from_generator(numbered, gen_kwargs={"shards": parts})


def layout_of(row, number):
    return Layout((row["x"] % 5 // 2, 0))  # of five rows two, two and one


def without_thirds(row, number):
    return None if number % 3 == 0 else layout_of(row, number)


def read(stream, workers=0, epoch=0):
    loader = DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=list)
    stream.set_epoch(epoch)
    return [*loader]


def stream_ranks(dataset, world_size, inspect=layout_of, **kwargs):
    return [read(PreferenceStream(dataset, inspect, 3, rank, world_size), **kwargs) for rank in range(world_size)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param(lambda: stream_of(37), id="one shard"),
        pytest.param(lambda: stream_of(37, shards=4), id="generator"),
        pytest.param(lambda: Dataset.from_dict({"x": range(37)}).to_iterable_dataset(num_shards=3), id="dataset"),
        pytest.param(lambda: stream_of(2, shards=2), id="two rows"),
        pytest.param(lambda: stream_of(0), id="empty"),
    ],
)
def test_stream_yields_every_row_once(dataset, world_size, workers):
    dataset = dataset()
    ranks = stream_ranks(dataset, world_size, workers=workers, epoch=2)
    assert len({len(batches) for batches in ranks}) == 1
    for batch in [batch for rank in ranks for batch in rank]:
        assert 1 <= len(batch) <= 3
        assert len({layout_of(row, 0) for row in batch}) == 1
        assert len({row["key"].counts for row in batch}) == 1
        assert {row["key"].epoch for row in batch} == {2}
    counting = [row for rank in ranks for batch in rank for row in batch if row["key"].counts]
    assert sorted(row["x"] for row in counting) == sorted(row["x"] for row in dataset)
    assert len({row["key"].row for row in counting}) == len(counting)
    fillers = sum(not batch[0]["key"].counts for rank in ranks for batch in rank)
    assert fillers <= (world_size - 1) * max(workers, 1)


def test_stream_batches_are_full_but_for_the_last_of_a_layout():
    (batches,) = stream_ranks(stream_of(37), 1)
    n_rows = Counter(layout_of({"x": x}, x) for x in range(37))
    expected = Counter({(layout, 3): n // 3 for layout, n in n_rows.items()})
    expected.update((layout, n % 3) for layout, n in n_rows.items() if n % 3)
    assert Counter((layout_of(batch[0], 0), len(batch)) for batch in batches) == expected


def test_stream_leaves_rows_out():
    ranks = stream_ranks(stream_of(20), 2, without_thirds)
    rows = [row for batches in ranks for batch in batches for row in batch if row["key"].counts]
    assert sorted(row["x"] for row in rows) == [x for x in range(20) if x % 3]
    assert all(row["key"].row == row["x"] for row in rows)  # rows that are left out keep their numbers
    assert stream_ranks(stream_of(5), 2, lambda row, number: None) == [[], []]


def test_stream_raises_what_inspect_raises():
    def refuse(row, number):
        raise ValueError(f"row {number}")

    with pytest.raises(ValueError, match="row 0"):
        next(iter(PreferenceStream(stream_of(5), refuse, 3)))


def test_shuffled_stream_has_an_order_for_each_epoch():
    dataset = stream_of(40).shuffle(seed=0, buffer_size=40)
    first, second = (
        [[row["x"] for rank in stream_ranks(dataset, 2, epoch=epoch) for batch in rank for row in batch] for _ in "ab"]
        for epoch in (0, 1)
    )
    assert first[0] == first[1] and second[0] == second[1]
    assert first[0] != second[0] and {*first[0]} == {*second[0]} == {*range(40)}


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_a_stream_learn_of_the_epoch(persistent):
    stream = PreferenceStream(stream_of(6, shards=2), layout_of, 2)
    loader = prepared(stream, batch_size=None, num_workers=2, persistent_workers=persistent)
    for epoch in (0, 1, 5):
        assert {key.epoch for batch in epoch_of(loader, epoch) for key in batch} == {epoch}


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_of_a_stream(workers):
    def loader():
        stream = PreferenceStream(stream_of(40, shards=2).shuffle(seed=0, buffer_size=10), layout_of, 3, 1, 2)
        return prepared(stream, batch_size=None, num_workers=workers)

    uninterrupted = loader()
    epochs = [epoch_of(uninterrupted, epoch) for epoch in range(4)]
    resumed = loader()
    assert epoch_of(skip_first_batches(resumed, 2), 2) == epochs[2][2:] != []
    assert epoch_of(resumed, 3) == epochs[3]


def test_stream_holds_no_more_rows_than_wait():
    class Row(dict):
        pass

    class Source:
        def __init__(self):
            self.alive = []

        def __iter__(self):
            for x in range(600):
                row = Row(x=x)
                self.alive = [alive for alive in self.alive if alive() is not None] + [weakref.ref(row)]
                yield row

    source = Source()
    layouts, batch_size, world_size = 3, 4, 2
    held = [len(source.alive) for _ in PreferenceStream(source, layout_of, batch_size, 0, world_size)]
    assert len(held) == 600 // (batch_size * world_size)
    # Each layout's waiting rows, the batches to be shared, and the row under inspection
    assert max(held) <= layouts * (batch_size - 1) + world_size * batch_size + 1


def test_a_stream_of_many_layouts_does_not_wait_for_ever(monkeypatch):
    """Endless rows, each of a layout of its own: batches come all the same, and few rows are held."""
    monkeypatch.setattr("trl_focus.data.batches.MAX_WAITING", 3)
    read = []

    def rows():
        for number in range(10_000):
            read.append(number)
            yield {"number": number}

    stream = PreferenceStream(
        IterableDataset.from_generator(rows), lambda row, number: Layout((number, 1)), batch_size=2
    )
    batches = [batch for batch, _ in zip(stream, range(5), strict=False)]
    assert [[row["number"] for row in batch] for batch in batches] == [[0], [1], [2], [3], [4]]
    assert len(read) < 20
