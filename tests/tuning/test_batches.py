"""Which rows make up which batch, and that it never changes."""

import numpy as np
import pytest
import tensorflow as tf

from regraft.tuning.augment import augmentation
from regraft.tuning.batches import Batches, epoch_order, text_lengths
from tests.tuning.sources import InMemory, prepare_image, stripes


def image_batches(**changes):
    settings = {"source": stripes(20), "rows": np.arange(20), "prepare": prepare_image, "batch_size": 6, "seed": 3}
    return Batches(**{**settings, **changes})


def test_an_epoch_is_a_permutation_cut_to_whole_batches():
    rows = np.arange(100, 123)
    order = epoch_order(rows, 5, seed=1, epoch=1)
    assert len(order) == 20
    assert len(set(order)) == 20
    assert set(order) <= set(rows)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    rows = np.arange(50)
    first = epoch_order(rows, 5, seed=1, epoch=2)
    np.random.default_rng(0).random()
    assert (first == epoch_order(rows, 5, seed=1, epoch=2)).all()
    assert (first != epoch_order(rows, 5, seed=1, epoch=3)).any()
    assert (first != epoch_order(rows, 5, seed=2, epoch=2)).any()


def test_fewer_rows_than_a_batch_make_one_batch():
    assert sorted(epoch_order(np.arange(3), 8, seed=1, epoch=1)) == [0, 1, 2]
    assert Batches(stripes(3), np.arange(3), prepare_image, 8, 1).steps_per_epoch == 1


def test_batches_by_length_hold_like_lengths_and_still_every_row_once():
    lengths = np.random.default_rng(0).integers(1, 500, 640)
    order = epoch_order(np.arange(640), 8, seed=1, epoch=1, lengths=lengths)
    assert sorted(order) == list(range(640))
    spread = np.ptp(lengths[order].reshape(-1, 8), axis=1).mean()
    assert spread < 0.2 * np.ptp(lengths[epoch_order(np.arange(640), 8, seed=1, epoch=1)].reshape(-1, 8), axis=1).mean()


def test_labels_stay_with_their_images():
    for images, labels in image_batches().training(1):
        stands = tf.reduce_mean(images, axis=[1, 3]).numpy().max(axis=1)  # brightest column
        lies = tf.reduce_mean(images, axis=[2, 3]).numpy().max(axis=1)  # brightest row
        assert ((stands > lies) == labels.numpy().astype(bool)).all()


def test_reading_in_order_gives_every_row_once_and_unchanged():
    batches = image_batches(augment=augmentation(flip=True))
    labels = np.concatenate([labels.numpy() for _, labels in batches.in_order()])
    assert (labels == batches.source.labels).all()
    first = next(iter(batches.in_order()))[0][0]
    assert (first.numpy() == prepare_image(batches.source.inputs([0])[0]).numpy()).all()


def test_training_batches_are_the_same_twice_and_other_in_another_epoch():
    batches = image_batches(augment=augmentation(flip=True))
    first, again, later = (np.concatenate([x.numpy() for x, _ in batches.training(epoch)]) for epoch in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != later.tobytes()


def test_an_image_is_varied_alike_whatever_stands_beside_it():
    alone, together = (
        image_batches(rows=np.array(rows), augment=augmentation(flip=True), batch_size=1) for rows in ([4], [2, 9, 4])
    )
    [(image, _)] = list(alone.training(5))
    assert any((image.numpy() == other.numpy()).all() for other, _ in together.training(5))


def test_texts_go_through_prepare_batch_by_batch():
    source = InMemory("text", ["a", "bb", "ccc", "dddd"], [0, 1, 0, 1])
    batches = Batches(source, np.array([3, 0, 1]), tf.strings.length, 2, 0)
    assert [(x.numpy().tolist(), y.numpy().tolist()) for x, y in batches.in_order()] == [([4, 1], [1, 0]), ([2], [1])]
    assert text_lengths(source, rows_at_once=3).tolist() == [1, 2, 3, 4]


def test_a_number_of_steps_goes_on_into_the_next_epochs():
    batches = image_batches(augment=augmentation(flip=True))
    epochs = [images.numpy() for epoch in (1, 2, 3) for images, _ in batches.training(epoch)]
    steps = [images.numpy() for images, _ in batches.training_steps(7)]
    assert len(steps) == 7
    assert all((step == image).all() for step, image in zip(steps, epochs, strict=False))


@pytest.mark.parametrize("rows", [12, 13, 17])
def test_an_epoch_has_as_many_batches_as_it_says(rows):
    batches = image_batches(rows=np.arange(rows))
    assert len(list(batches.training(1))) == batches.steps_per_epoch == 2


def test_batches_have_the_images_prepared_and_varied_one_by_one():
    batches = image_batches(augment=augmentation(flip=True))
    order = epoch_order(batches.rows, 6, seed=3, epoch=4)

    def one(content, row):
        seed = tf.random.experimental.stateless_fold_in(tf.constant([3, 4], tf.int64), row)
        return augmentation(flip=True)(prepare_image(content)[None], seed[None])[0]

    contents = batches.source.inputs(order.tolist())
    expected = list(tf.data.Dataset.from_tensor_slices((contents, order)).map(one))
    found = [image for images, _ in batches.training(4) for image in images]
    assert len(found) == len(expected) == 18
    np.testing.assert_allclose(found, expected, atol=1e-2)  # but for rounding, which differs by place in a batch


@pytest.mark.parametrize(("kept_images", "reads"), [(20, 20), (5, 35), (0, 40)])
def test_images_are_read_once_as_far_as_there_is_room_to_keep_them(kept_images, reads, monkeypatch):
    monkeypatch.setattr("regraft.tuning.batches.KEPT_BYTES", kept_images * 8 * 8 * 3 * 4)
    read = []

    class Counted(InMemory):
        def inputs(self, indices):
            read.extend(indices)
            return super().inputs(indices)

    original = stripes(20)
    source = Counted("image", original.inputs(range(20)), original.labels)
    batches = image_batches(source=source)
    first, again = (
        np.concatenate([images.numpy() for images, _ in same.in_order()])
        for same in (batches, batches.of(batches.rows))
    )
    assert len(read) == reads
    assert first.tobytes() == again.tobytes()
