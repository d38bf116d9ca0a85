"""Pictures from files: every form that is documented, and what is said of bad ones."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bio_diffusion.files import InputError
from bio_diffusion.image.dataset import open_pictures

RANDOM = np.random.default_rng(0)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_mnist_ships_with_its_splits():
    sizes = {split: open_pictures("mnist.npz", split) for split in ("val", "test")}
    assert len(sizes["val"]) == 5000 and len(sizes["test"]) == 9000
    assert sizes["test"].shape == (1, 28, 28)
    assert torch.equal(sizes["val"].y.unique(), torch.arange(10))


def test_one_array_is_split_in_the_same_way_every_time(tmp_path):
    array = pixels(40, 6, 6)
    np.savez(tmp_path / "a.npz", images=array, labels=np.arange(40))
    train, val = (open_pictures(str(tmp_path / "a.npz"), s) for s in ("train", "val"))
    assert len(train) == 38 and val.y.tolist() == [19, 39]
    assert np.array_equal(val.x[0, 0].numpy(), array[19])


@pytest.mark.parametrize("shape", [(4, 6, 6, 3), (4, 3, 6, 6)])
def test_colour_in_either_order(tmp_path, shape):
    array = pixels(*shape)
    np.savez(tmp_path / "a.npz", x_train=array)
    found = open_pictures(str(tmp_path / "a.npz"), "train").x.numpy()
    first = array if shape[1] == 3 else array.transpose(0, 3, 1, 2)
    assert np.array_equal(found, first)


def test_jpeg_files_end_to_end(tmp_path):
    files = []
    for grey in (30, 200):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    np.savez(
        tmp_path / "c.npz",
        jpeg_test=np.frombuffer(b"".join(files), np.uint8),
        offset_test=np.cumsum([0, *map(len, files)]),
        y_test=np.array([3, 4], np.uint8),
    )
    found = open_pictures(str(tmp_path / "c.npz"), "test")
    assert found.shape == (3, 8, 8) and found.y.tolist() == [3, 4]
    assert (found.x[0].float().mean() - 30).abs() < 3
    assert found.x.is_contiguous()  # a norm takes ten times as long where channels come last


def test_downsampled_imagenet_as_published(tmp_path):
    rows = pixels(40, 3 * 8 * 8)
    np.savez(tmp_path / "train_data_batch_1.npz", data=rows, labels=np.arange(1, 41))
    np.savez(tmp_path / "val_data.npz", data=rows[:5], labels=np.arange(1, 6))
    assert len(open_pictures(str(tmp_path), "train")) == 38
    test = open_pictures(str(tmp_path), "test")
    assert test.shape == (3, 8, 8) and test.y.tolist() == [0, 1, 2, 3, 4]
    np.savez(tmp_path / "train_data_batch_1.npz", data=rows)
    assert open_pictures(str(tmp_path), "train").y is None
    assert np.array_equal(test.x.numpy().reshape(5, -1), rows[:5])


def test_folders_with_and_without_parts(tmp_path):
    for i in range(20):
        write(tmp_path / "flat" / f"{i:02}.png", pixels(6, 7))
    train, val = (open_pictures(str(tmp_path / "flat"), s) for s in ("train", "val"))
    assert len(train) == 19 and len(val) == 1 and train.shape == (1, 6, 7)
    write(tmp_path / "parts" / "train" / "cat" / "a.png", pixels(6, 7))
    write(tmp_path / "parts" / "test" / "b.png", pixels(6, 7, 3))
    assert open_pictures(str(tmp_path / "parts"), "train").shape == (1, 6, 7)
    assert open_pictures(str(tmp_path / "parts"), "val").shape == (3, 6, 7)  # test serves


def test_grey_and_colour_become_colour(tmp_path):
    grey = pixels(6, 6)
    write(tmp_path / "train" / "a.png", grey)
    write(tmp_path / "train" / "b.png", pixels(6, 6, 3))
    found = open_pictures(str(tmp_path), "train")
    assert found.shape == (3, 6, 6) and np.array_equal(found.x[0, 2].numpy(), grey)


def test_mixed_sizes_name_two_files(tmp_path):
    write(tmp_path / "a.png", pixels(6, 6))
    write(tmp_path / "b.png", pixels(6, 9))
    with pytest.raises(InputError) as error:
        open_pictures(str(tmp_path), "train")
    line = str(error.value)
    assert "a.png has 6 x 6" in line and "b.png 9 x 6" in line and "\n" not in line
    for i in range(20):
        write(tmp_path / f"c{i}.png", pixels(6, 6))
    with pytest.raises(InputError, match="b.png 9 x 6"):
        open_pictures(str(tmp_path), "test")  # though of a split that is not asked for


def test_unusable_sets_are_refused_in_one_line(tmp_path):
    def refused(name, said, split="train"):
        with pytest.raises(InputError, match=said) as error:
            open_pictures(str(tmp_path / name), split)
        assert "\n" not in str(error.value)

    (tmp_path / "text.npz").write_text("no archive")
    refused("text.npz", "no readable .npz")
    np.savez(tmp_path / "float.npz", x_train=np.zeros((2, 4, 4)))
    refused("float.npz", "uint8")
    np.savez(tmp_path / "other.npz", things=pixels(2, 4, 4))
    refused("other.npz", "holds things")
    np.savez(tmp_path / "shape.npz", x_train=pixels(2, 4, 4, 5))
    refused("shape.npz", "no set of pictures")
    np.savez(tmp_path / "object.npz", x_train=np.array([None], object))
    refused("object.npz", "no readable .npz")
    (tmp_path / "empty").mkdir()
    refused("empty", "no picture")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"\x89PNG and then nothing")
    refused("bad", "a.png: is no readable picture")
    np.save(tmp_path / "one.npy", pixels(4, 4, 4))
    refused("one.npy", "np.savez")
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "train_data_batch_1.npz").write_bytes(b"PK and no more")
    refused("batches", "train_data_batch_1.npz: is no readable .npz")
    np.savez(tmp_path / "fewer.npz", x_train=pixels(2, 4, 4), y_train=np.arange(1))
    refused("fewer.npz", "beside 2 pictures")
    np.savez(tmp_path / "ends.npz", jpeg_train=pixels(9))
    refused("ends.npz", "offset_train")
    np.savez(tmp_path / "few.npz", x=pixels(3, 4, 4))
    refused("few.npz", "holds 3 pictures", "val")
    with pytest.raises(FileNotFoundError, match="BIO_DIFFUSION_DATA"):
        open_pictures("nowhere.npz", "train")


@pytest.mark.parametrize("labels", [np.array(["cat", "dog"]), np.eye(2), np.array([-1, 0])])
def test_labels_that_are_no_classes_are_left_out(tmp_path, labels):
    np.savez(tmp_path / "odd.npz", x_train=pixels(2, 4, 4), y_train=labels)
    assert open_pictures(str(tmp_path / "odd.npz"), "train").y is None


def test_the_data_folder_is_looked_in(tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", x_train=pixels(2, 4, 4))
    monkeypatch.setenv("BIO_DIFFUSION_DATA", str(tmp_path))
    assert len(open_pictures("mine.npz", "train")) == 2
