"Which images a step reads, and with which random numbers, whatever the ranks and parts."
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import complaint, photos, stripes
from torch.testing import assert_close

from farmer.batches import BatchStream, OnlyReadable, ReadableImages, add_randomness, explained_workers, image_numbers, image_seeds, read_batches, split_batch
from farmer.data import ArrayDataset
from farmer.folders import FolderDataset
from farmer.patches import add_gaussian_noise, dequantize
from farmer.prior import drop_labels


def test_every_epoch_sees_every_image_once_in_a_new_order():
    batches = list(BatchStream(length=10, batch_size=4, seed=0, first_step=0, last_step=5))
    stream = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(stream[:10]) == list(range(10)) and sorted(stream[10:]) == list(range(10)) and stream[:10] != stream[10:]
    assert list(BatchStream(10, 4, 0, 3, 5)) == batches[3:]
    assert len(list(BatchStream(3, 8, 0, 0, 2))[0]) == 8


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (1, 4), (2, 1), (4, 2), (2, 4)])
def test_ranks_and_parts_read_each_image_of_a_batch_once(ranks, accumulation):
    data, stream = stripes(), BatchStream(50, 16, 0, 2, 6)
    reads = [read_batches(data, stream, split_batch(16, rank, ranks, accumulation), 0, 1, pin_memory=False) for rank in range(ranks)]
    for batch, *shares in zip(stream, *reads, strict=True):
        parts = [part for share in shares for part in share]
        assert len(parts) == ranks * accumulation
        pixels, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "labels"))
        assert torch.equal(pixels, data.pixel_batch(batch)) and torch.equal(labels, data.labels[batch])


def test_a_batch_that_cannot_be_split_is_refused():
    complaint(ValueError, lambda: split_batch(9, 0, 2, 1), "batch_size 9", "ranks (2)", "multiple of 2")
    complaint(ValueError, lambda: split_batch(2, 0, 2, 2), "multiple of 4")


def test_randomness_of_an_image_depends_on_its_place_alone():
    images, labels = stripes().batch(range(16))
    seeds = image_seeds(seed=0, step=3, batch_size=16)

    def randomize(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = image_numbers(seeds[part], (1, 4, 4), "cpu")
        return add_randomness(images[part], labels[part], numbers, std=0.1, levels=5, flip=True, label_dropout=0.2, null_class=2)

    whole = randomize(slice(0, 16))
    for ranks, accumulation in ((1, 4), (2, 1), (4, 2)):
        parts = [part for rank in range(ranks) for part in split_batch(16, rank, ranks, accumulation)]
        assert all(torch.equal(torch.cat(pieces), together) for pieces, together in zip(zip(*map(randomize, parts)), whole))
    assert len(set(seeds)) == 16 and not set(seeds) & set(image_seeds(0, 4, 16))
    assert not torch.equal(whole[1], labels) and set(whole[1].tolist()) <= {0, 1, 2}  # some labels are dropped
    flipped = [(noised - image.flip(2)).abs().mean() < (noised - image).abs().mean() for noised, image in zip(whole[0], images)]
    assert 0 < sum(flipped) < 16
    generator = torch.Generator()
    for place, seed in enumerate(seeds):  # what the functions of lessons 01 and 05 make of the same generator
        generator.manual_seed(seed)
        label = drop_labels(labels[place : place + 1], 0.2, 2, generator)
        image = images[place : place + 1].flip(3) if torch.rand(1, generator=generator) < 0.5 else images[place : place + 1]
        image = add_gaussian_noise(dequantize(image, 5, generator), 0.1, generator)
        assert_close(whole[0][place : place + 1], image, rtol=0, atol=1e-6)
        assert torch.equal(whole[1][place : place + 1], label)


def test_each_kind_of_randomness_can_be_left_out():
    images, labels = stripes().batch(range(16))
    numbers = image_numbers(image_seeds(0, 0, 16), (1, 4, 4), "cpu")
    same, kept = add_randomness(images, labels, numbers, std=0.0, levels=None, flip=False, label_dropout=0.0, null_class=2)
    assert torch.equal(same, images) and torch.equal(kept, labels)
    _, dropped = add_randomness(images, labels, numbers, std=0.0, levels=None, flip=False, label_dropout=1.0, null_class=2)
    assert dropped.tolist() == [2] * 16


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_image_stands_in_for_one_that_cannot_be_read(tmp_path, workers):
    data = photos(tmp_path / "photos")
    (data / "red" / "01.png").write_bytes(b"not an image")  # number 12
    dataset = FolderDataset(data, "train", 4)
    pixels, labels, complaints = ReadableImages(dataset).__getitems__([0, 12, 13])
    assert torch.equal(pixels[1], pixels[2]) and labels.tolist() == [0, 1, 1]
    assert len(complaints) == 1 and str(data / "red" / "01.png") in complaints[0]
    stream = BatchStream(len(dataset), 8, 0, 0, 3)  # one epoch
    read = [part for parts in read_batches(dataset, stream, split_batch(8, 0, 1, 1), workers, 1, pin_memory=False) for part in parts]
    assert [len(part.complaints) for part in read] == [int(12 in batch) for batch in stream]


class Failing(ArrayDataset):
    "Its processes fail, or are killed, as by a machine without memory."

    def pixel_batch(self, indices):
        if 13 in indices and self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the disk is gone")


def read_failing(killed: bool) -> None:
    whole = stripes(200)
    data = Failing(whole.values, whole.labels, 5, whole.class_names)
    data.killed = killed
    with explained_workers():
        list(read_batches(data, BatchStream(200, 100, 0, 0, 4), split_batch(100, 0, 1, 1), 1, 1, pin_memory=False))


def test_a_process_that_fails_says_so_in_one_line():
    error = complaint(ValueError, lambda: read_failing(False), "100 images in a row cannot be read, the last: the disk is gone")
    assert "Traceback" not in error


def test_a_process_that_is_killed_is_named():
    "In a process of its own: torch raises its own error when it hears of the death, at any moment, and perhaps again; the command explains that one."
    done = subprocess.run([sys.executable, "-c", "import test_batches; test_batches.read_failing(True)"], cwd=Path(__file__).parent, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    ours, torchs = "OSError: a process that reads images was lost", "RuntimeError: DataLoader worker"
    assert done.returncode == 1 and (said.startswith(ours) and "use fewer workers" in said or said.startswith(torchs))


def test_a_process_that_hangs_ends_the_run(monkeypatch):
    "Before it can hear a signal, as a lock may have been held when it was forked."
    monkeypatch.setattr("farmer.batches.start_worker", lambda number: time.sleep(1000))
    before, data = multiprocessing.active_children(), stripes(200)

    def read():
        with explained_workers():
            list(read_batches(data, BatchStream(200, 100, 0, 0, 4), split_batch(100, 0, 1, 1), 1, 0.01, pin_memory=False))

    complaint(OSError, read, "did not answer for 0.01 minutes")
    assert all(process in before for process in multiprocessing.active_children())


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="^of two\nlines$"), explained_workers():
        raise RuntimeError("of two\nlines")


def test_only_readable_images(capsys):
    class Partly(ArrayDataset):
        def pixel_batch(self, indices):
            if set(torch.as_tensor(indices).tolist()) & {1, 4}:
                raise OSError("gone")
            return super().pixel_batch(indices)

    data = stripes(10)
    partly, whole = OnlyReadable(Partly(data.values, data.labels, 5, data.class_names)), data.batch([0, 2, 3])
    for _ in range(2):
        images, labels = partly.batch(range(5))
        assert torch.equal(images, whole[0]) and torch.equal(labels, whole[1])
    assert partly.complaints == {1: "gone", 4: "gone"} and capsys.readouterr().out == "gone (1 of 10 so far; left out)\ngone (2 of 10 so far; left out)\n"
    assert torch.equal(partly.batch(torch.tensor([5, 6]))[0], data.batch([5, 6])[0])
    complaint(ValueError, lambda: partly.batch([4, 1]), "none of 2 images can be read, the last: gone")


def test_too_many_unreadable_images_in_a_row():
    class Broken(ArrayDataset):
        def pixel_batch(self, indices):
            raise OSError("gone")

    data = stripes(200)
    broken = Broken(data.values, data.labels, 5, data.class_names)
    complaint(ValueError, lambda: ReadableImages(broken).__getitems__([3]), "100 images in a row", "gone")
