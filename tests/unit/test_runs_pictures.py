import numpy as np
import pytest
import torch
from PIL import Image

from dd.runs import RunFolder, Track
from dd.runs.pictures import contact_sheet, progress_plot, stretched


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def colours(path) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in colour) for colour in np.unique(pixels(path).reshape(-1, 3), axis=0)}


def test_stretching_is_the_slow_loop():
    images = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[0, 0, 0, 0] = 40.0
    values = images.flatten().tolist()
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    expected = []
    for image in images:
        clipped = [min(max(v, mean - 2.5 * std), mean + 2.5 * std) for v in image.flatten().tolist()]
        expected.append([(v - min(clipped)) / (max(clipped) - min(clipped)) for v in clipped])
    torch.testing.assert_close(stretched(images).flatten(1), torch.tensor(expected, dtype=torch.float64))
    assert stretched(torch.full((2, 1, 2, 2), 0.5)).tolist() == torch.zeros(2, 1, 2, 2).tolist()


def test_every_image_stands_under_its_class_beside_its_kind(tmp_path):
    # one plain colour per (kind, class): red grows with the class, blue tells the kinds apart
    classes = ["a", "b", "c"]
    labels = torch.tensor([2, 0, 1])
    images = torch.zeros(3, 3, 4, 4)
    images[:, 0] = (labels[:, None, None] + 1) / 4
    real = images.clone()
    real[:, 2] = 1.0
    contact_sheet(tmp_path / "a.png", [("synthetic", images, torch.eye(3)[labels]), ("real", real, labels)], classes)
    middle = pixels(tmp_path / "a.png")[-20]
    order = [tuple(colour) for colour in middle.tolist() if tuple(colour) != (255, 255, 255)]
    order = [colour for i, colour in enumerate(order) if i == 0 or order[i - 1] != colour]
    assert order == [(round(255 * (c + 1) / 4), 0, blue) for c in range(3) for blue in (0, 255)]


def test_at_most_ten_classes_of_ten_images_are_shown(tmp_path):
    labels = torch.arange(12).repeat_interleave(11)
    number = torch.arange(132) % 11
    images = torch.zeros(132, 3, 2, 2)
    images[:, 0] = (labels[:, None, None] * 20) / 255
    images[:, 1] = (number[:, None, None] * 20) / 255
    contact_sheet(tmp_path / "a.png", [("synthetic", images, labels)], [str(c) for c in range(12)])
    wanted = {(20 * c, 20 * i, 0) for c in range(10) for i in range(10)}
    too_many = {(20 * c, 20 * i, 0) for c in range(12) for i in range(11)} - wanted
    assert wanted <= colours(tmp_path / "a.png")
    assert not too_many & {c for c in colours(tmp_path / "a.png") if c[2] == 0 and c[0] != c[1]}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_channels_values_and_names_will_do(tmp_path, channels):
    images = torch.randn(4, channels, 3, 7) * 3
    names = ["$x_1$ \\frac", "漢字", "a\nb", "a very long name " * 20, "unused"]
    contact_sheet(tmp_path / "a.png", [("synthetic", images.requires_grad_(), torch.arange(4))], names)
    assert pixels(tmp_path / "a.png").shape[0] > 48


def test_the_log_is_drawn_whatever_it_holds(tmp_path):
    folder = RunFolder(tmp_path)
    progress_plot(tmp_path / "none.png", folder.log_csv)
    with Track(folder) as track:
        for it in range(20):
            track.log(it, loss=float("nan") if it == 3 else 1000.0 / (1 + it**3), skipped=it % 7 == 0)
    progress_plot(tmp_path / "loss.png", folder.log_csv)
    with Track(folder, resume_at=20) as track:
        track.log(20, lr=0.01, note="text")
        track.log(20, probe=0.5)
    progress_plot(tmp_path / "all.png", folder.log_csv)
    heights = [pixels(tmp_path / f"{name}.png").shape[0] for name in ("none", "loss", "all")]
    assert heights[0] == heights[1] < heights[2]
    red = [colour for colour in colours(tmp_path / "all.png") if colour[0] > 200 and max(colour[1:]) < 60]
    assert red, "skipped iterations are marked"
