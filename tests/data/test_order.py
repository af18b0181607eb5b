import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnets.data.order import PADDING, EpochBatches, EvaluationBatches

lengths, batch_sizes, worlds = st.integers(1, 60), st.integers(1, 7), st.integers(1, 5)


def epoch(
    length: int, size: int, world: int, *, start: int = 0, **options: int
) -> list[list[list[tuple[int, int, int]]]]:
    """Batches by process."""
    return [
        list(EpochBatches(length, size, 3, lambda: (2, start), rank=rank, world=world, **options))
        for rank in range(world)
    ]


@given(length=lengths, size=batch_sizes, world=worlds)
def test_processes_share_the_batches_of_one(length: int, size: int, world: int) -> None:
    (alone,) = epoch(length, size * world, 1)
    together = epoch(length, size, world)
    assert {len(batches) for batches in together} == {len(alone)}
    for number, batch in enumerate(alone):
        assert sorted(batch) == sorted(key for batches in together for key in batches[number])
    seen = [index for batches in together for batch in batches for _, index, _ in batch]
    assert len(seen) == len(set(seen)) == length - length % (size * world)


@given(length=lengths, size=batch_sizes, world=worlds, start=st.integers(0, 20))
def test_an_epoch_goes_on_at_any_batch(length: int, size: int, world: int, start: int) -> None:
    for whole, rest in zip(epoch(length, size, world), epoch(length, size, world, start=start), strict=True):
        assert rest == whole[start:]
    for rank, batches in enumerate(epoch(length, size, world)):
        order = EpochBatches(length, size, 3, lambda: (0, 0), rank=rank, world=world)
        assert [order.batch(2, number) for number in range(len(order))] == batches


@pytest.mark.parametrize("world", [1, 3])
def test_repeated_augmentation(world: int) -> None:
    processes = epoch(90, 5, world, repeats=3)
    keys = [key for batches in processes for batch in batches for key in batch]
    assert len(keys) == len(set(keys)) == 90
    by_image = {index: sorted(copy for _, i, copy in keys if i == index) for _, index, _ in keys}
    assert len(by_image) == 30
    assert all(copies == [0, 1, 2] for copies in by_image.values())
    if world == 3:  # the copies of an image are in different processes
        for batches in processes:
            indices = [index for batch in batches for _, index, _ in batch]
            assert len(indices) == len(set(indices))


@given(length=lengths, size=batch_sizes, world=worlds)
def test_an_evaluation_sees_every_image_once_in_equal_steps(length: int, size: int, world: int) -> None:
    processes = [list(EvaluationBatches(length, size, rank=rank, world=world)) for rank in range(world)]
    assert {len(batches) for batches in processes} == {len(EvaluationBatches(length, size, world=world))}
    for step in zip(*processes, strict=True):
        assert len({len(batch) for batch in step}) == 1
        assert 0 < len(step[0]) <= size
    seen = sorted(i for batches in processes for batch in batches for i in batch if i != PADDING)
    assert seen == list(range(length))
