"""Dataset Quantization: bins, samples, dropped and completed patches, labels joined by index (oracles 12 to 15)."""

import json
import math
from dataclasses import replace

import pytest
import torch
from dd.experiments.masked_autoencoder import Training, fresh, normalised_images, save_autoencoder, spec_for
from dd.experiments.masked_autoencoder import train as train_autoencoder
from safetensors.torch import save_file

from dd.data import DataSettings, open_data
from dd.engine.method import prepare
from dd.engine.registry import get
from dd.errors import UsageError
from dd.networks import NetworkSpec, build_network
from dd.networks.masked import MaskedAutoencoder, MaskedSpec, read_completer
from dd.networks.saliency import grad_cam_pp
from dd.recipes import resolve
from dd.rng import generator
from dd.selection.bins import bins_of, sampled
from dd.selection.patches import kept_count, kept_patches, pasted, visible
from dd.selection.similarity import Cosine, Matrix
from dd.selection.submodular import graph_cut
from dd.sets import load, save
from dd.training.squeeze import SqueezeSettings

DQ, SQUEEZE = get("dq"), SqueezeSettings(epochs=4, batch=8, lr=0.05, augment=False)
CPU = torch.device("cpu")


def similarities(n, seed=0):
    h = torch.randn(n, 4, generator=generator(seed, "features"), dtype=torch.float64)
    h = h / h.norm(dim=1, keepdim=True)
    return 0.5 + 0.5 * (h @ h.T)


def by_graph_cut(s):
    return lambda pool, count: graph_cut(Matrix(s[pool][:, pool]), count)[0]


def cut_by_hand(s, pool, count):
    """Greedy graph cut on a pool, by its set function."""
    chosen = []
    for _ in range(count):
        free = [j for j in pool if j not in chosen]
        gain = {j: sum(float(s[i, j]) for i in pool) - 2 * sum(float(s[i, j]) for i in chosen) for j in free}
        best = max(gain.values())
        chosen.append(min(j for j in free if gain[j] > best - 1e-9))
    return chosen


# ---- bins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "count"), [(20, 4), (23, 10), (7, 10), (5, 1)])
def test_bins_are_a_partition_of_equal_parts(n, count):
    images = torch.randperm(100, generator=generator(0, "images"))[:n].sort().values
    s = similarities(100)
    found = bins_of(images, count, by_graph_cut(s))
    assert len(found) == count
    assert sorted(torch.cat(found).tolist()) == images.tolist()
    sizes = [len(one) for one in found]
    assert max(sizes) - min(sizes) <= 1


def test_bins_of_all_classes_together_are_balanced_within_an_image_of_each():
    s = similarities(50)
    classes = torch.arange(50).split([7, 20, 23])
    found = [bins_of(own, 4, by_graph_cut(s)) for own in classes]
    for own, bins in zip(classes, found, strict=True):
        assert all(abs(len(one) - len(own) / 4) < 1 for one in bins)
    together = [sum(map(len, parts)) for parts in zip(*found, strict=True)]
    assert sum(together) == 50
    assert max(together) - min(together) <= len(classes)


def test_every_bin_is_the_graph_cut_of_what_is_left_and_the_last_is_the_rest():
    s, left = similarities(17), list(range(17))
    found = bins_of(torch.arange(17), 5, by_graph_cut(s))
    for one in found[:-1]:
        wanted = cut_by_hand(s, left, len(one))
        assert one.tolist() == wanted
        left = [j for j in left if j not in wanted]
    assert found[-1].tolist() == left


def test_the_first_bin_is_the_plain_coreset(task):
    """Oracle 13: bin 1 is a graph cut of n / N images per class."""
    method = DQ(squeeze=SQUEEZE, bins=3)
    prepared = prepare(method, task)
    pool = method.pool(task, prepared, 1)
    features, errors = pool.features, pool.errors
    plain = graph_cut(Cosine(features, errors), len(features) // 3)[0]
    seen = []

    def spied(pool, size):
        seen.append(graph_cut(Cosine(features[pool], errors[pool]), size)[0])
        return seen[-1]

    assert bins_of(torch.arange(len(features)), 3, spied)[0].tolist() == plain.tolist()
    every = method.pick(pool, len(features), lambda: generator(0, "draws"))
    assert sorted(every.tolist()) == list(range(len(features)))  # a ratio of 1 returns everything
    assert set(every[: len(plain)].tolist()) == set(plain.tolist())


@pytest.mark.parametrize("count", [0, 1, 5, 20, 40])
def test_samples_take_the_same_share_of_every_bin(count):
    bins = list(torch.arange(40).split(10))
    found = sampled(bins, count, generator(0, "draws"))
    assert len(found) == len(set(found.tolist())) == count
    share = [int(((found >= b[0]) & (found <= b[-1])).sum()) for b in bins]
    if count % 4 == 0:
        assert share == [count // 4] * 4
    assert max(share) - min(share) <= 1
    assert count != 1 or share == [0, 1, 0, 0]
    assert (found.diff() // 10 >= 0).all() or count < 2 or torch.equal((found // 10).sort().values, found // 10)


def test_samples_are_uniform_in_a_bin():
    counts = torch.zeros(12)
    for seed in range(600):
        counts[sampled([torch.arange(8), torch.arange(8, 12)], 3, generator(seed, "draws"))] += 1
    assert (counts - 150).abs().max() < 5 * math.sqrt(600 * 0.25 * 0.75)  # 2 of 8 and 1 of 4


# ---- patches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "drop", "count"), [(14, 0.2, 156), (14, 0.0, 196), (10, 0.3, 70), (4, 0.9, 1)])
def test_the_most_important_patches_are_kept(grid, drop, count):
    importance = torch.rand(5, grid, grid, generator=generator(0, "maps"))
    kept = kept_patches(importance, grid, drop)
    assert kept.sum(1).tolist() == [count] * 5
    assert kept_count(grid, drop) == count
    flat = importance.flatten(1)
    for row, mask in zip(flat, kept, strict=True):
        assert drop == 0 or row[mask].min() >= row[~mask].max()


def test_ties_keep_the_first_patches_and_maps_are_resized_to_the_grid():
    assert kept_patches(torch.zeros(1, 4, 4), 4, 0.5)[0].tolist() == [True] * 8 + [False] * 8
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1.0
    assert kept_patches(left, 4, 0.5)[0].view(4, 4).tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize(("size", "grid"), [(28, 7), (32, 14), (9, 4), (5, 5)])
def test_every_pixel_belongs_to_the_patch_under_its_centre(size, grid):
    kept = torch.rand(3, grid**2, generator=generator(0, "kept")) < 0.5
    seen = visible(kept, size)
    assert seen.shape == (3, 1, size, size)
    for i in range(3):
        for y in range(size):
            for x in range(size):
                row, column = int((y + 0.5) * grid / size), int((x + 0.5) * grid / size)
                assert bool(seen[i, 0, y, x]) == bool(kept[i, row * grid + column])


def test_visible_pixels_are_pasted_bit_by_bit():
    rng = generator(0, "bytes")
    one, other = (torch.randint(0, 256, (4, 3, 32, 32), generator=rng, dtype=torch.uint8) for _ in range(2))
    kept = torch.rand(4, 196, generator=rng) < 0.8
    made, seen = pasted(one, other, kept), visible(kept, 32).expand(-1, 3, -1, -1)
    assert torch.equal(made[seen], one[seen])
    assert torch.equal(made[~seen], other[~seen])
    assert torch.equal(pasted(one, other, torch.ones(4, 196, dtype=torch.bool)), one)


# ---- where a network looks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["convnet", "resnet18"])
def test_grad_cam_pp_is_its_formula(arch):
    """Chattopadhay et al., equations 11 and 19, by loops, with the derivatives of exp(logit) taken by hand."""
    shape = {"norm": "batch"} if arch == "resnet18" else {"depth": 2}
    spec = NetworkSpec(arch=arch, width=3, **shape)
    network = build_network(spec, channels=2, size=16, classes=3, generator=generator(0, "weights")).double().eval()
    images = torch.randn(2, 2, 16, 16, generator=generator(0, "images"), dtype=torch.float64)
    found = grad_cam_pp(network, images)
    seen, hooks = [], []
    layer = network.features[-1]
    hooks.append(layer.register_forward_hook(lambda _m, _i, out: seen.append(out)))
    score = network(images.requires_grad_()).max(1).values
    (slopes,) = torch.autograd.grad(score.sum(), seen[0])
    hooks[0].remove()
    for i in range(2):
        total = torch.zeros(seen[0].shape[2:], dtype=torch.float64)
        for k in range(seen[0].shape[1]):
            a, g, weight = seen[0][i, k].detach(), slopes[i, k], 0.0
            for row in range(a.shape[0]):
                for column in range(a.shape[1]):
                    one = float(g[row, column])
                    bottom = 2 * one**2 + float(a.sum()) * one**3
                    weight += (one**2 / bottom if bottom else 0.0) * max(one, 0.0)
            total += weight * a
        assert torch.allclose(found[i], total.clamp_min(0), atol=1e-12)
    assert found.amax() > 0
    alone = torch.cat([grad_cam_pp(network, image[None]) for image in images.detach()])
    assert torch.allclose(found, alone, atol=1e-12)


def test_a_network_without_maps_cannot_say_where_it_looks():
    mlp = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3))
    with pytest.raises(UsageError, match="viewer=mlp has no maps of features"):
        grad_cam_pp(mlp, torch.zeros(1, 2, 2, 2), "viewer=mlp")


# ---- the masked autoencoder -----------------------------------------------------------------------------------------

SMALL = MaskedSpec(
    channels=1, patch=2, grid=4, width=8, depth=2, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=3
)


def an_autoencoder(spec=SMALL, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MaskedAutoencoder(spec)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def stored(network, path, **facts):
    facts = {"heads": network.spec.heads, "decoder_heads": network.spec.decoder_heads} | facts
    save_file(network.state_dict(), path, {key: json.dumps(value) for key, value in facts.items()})
    return path


class ByHand:
    """A masked autoencoder in float64, for one image (c, s, s), token by token."""

    def __init__(self, network):
        self.spec = network.spec
        self.w = {name: value.double() for name, value in network.state_dict().items()}

    def normed(self, x, name):
        x = x - x.mean()
        return x / (x.square().mean() + 1e-6).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, x, name):
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def attention(self, tokens, name, heads):
        qkv = [self.linear(self.normed(t, f"{name}.norm1"), f"{name}.attn.qkv").view(3, heads, -1) for t in tokens]
        out = []
        for own in qkv:
            parts = []
            for h in range(heads):
                logits = torch.stack([own[0, h] @ other[1, h] for other in qkv])
                share = (logits / own.shape[2] ** 0.5).softmax(0)
                parts.append(sum(a * other[2, h] for a, other in zip(share, qkv, strict=True)))
            out.append(self.linear(torch.cat(parts), f"{name}.attn.proj"))
        return out

    def blocks(self, tokens, prefix, depth, heads):
        for name in (f"{prefix}.{number}" for number in range(depth)):
            tokens = [t + a for t, a in zip(tokens, self.attention(tokens, name, heads), strict=True)]
            hidden = [self.linear(self.normed(t, f"{name}.norm2"), f"{name}.mlp.fc1") for t in tokens]
            hidden = [0.5 * x * (1 + torch.erf(x / math.sqrt(2))) for x in hidden]  # GELU
            tokens = [t + self.linear(x, f"{name}.mlp.fc2") for t, x in zip(tokens, hidden, strict=True)]
        return tokens

    def patch(self, images, p):
        row, column = p // self.spec.grid * self.spec.patch, p % self.spec.grid * self.spec.patch
        return images[:, row : row + self.spec.patch, column : column + self.spec.patch]

    def encoded(self, image, places):
        tokens = [self.w["cls_token"][0, 0] + self.w["pos_embed"][0, 0]]
        for p in places:
            seen = (self.w["patch_embed.proj.weight"] * self.patch(image, p)).sum((1, 2, 3))
            tokens.append(seen + self.w["patch_embed.proj.bias"] + self.w["pos_embed"][0, p + 1])
        return [
            self.linear(self.normed(t, "norm"), "decoder_embed")
            for t in self.blocks(tokens, "blocks", self.spec.depth, self.spec.heads)
        ]

    def __call__(self, image, kept):
        spec, places = self.spec, [p for p, one in enumerate(kept) if one]
        first, *others = self.encoded(image, places)
        whole = [first, *(self.w["mask_token"][0, 0] for _ in range(spec.grid**2))]
        for p, token in zip(places, others, strict=True):
            whole[p + 1] = token
        whole = [t + self.w["decoder_pos_embed"][0, p] for p, t in enumerate(whole)]
        whole = self.blocks(whole, "decoder_blocks", spec.decoder_depth, spec.decoder_heads)
        made = torch.zeros(spec.channels, spec.size, spec.size, dtype=torch.float64)
        for p, token in enumerate(whole[1:]):
            numbers = self.linear(self.normed(token, "decoder_norm"), "decoder_pred")
            self.patch(made, p)[:] = numbers.view(spec.patch, spec.patch, spec.channels).permute(2, 0, 1)
        return made


@pytest.mark.parametrize("channels", [1, 3])
def test_a_masked_autoencoder_is_its_definition(channels):
    network = an_autoencoder(replace(SMALL, channels=channels)).double()
    images = torch.rand(2, channels, 8, 8, generator=generator(0, "images"), dtype=torch.float64)
    kept = torch.zeros(2, 16, dtype=torch.bool)
    kept[0, [0, 3, 4, 9, 15]] = kept[1, [1, 2, 7, 8, 14]] = True
    with torch.no_grad():
        found = network(images, kept)
    for i in range(2):
        assert torch.allclose(found[i], ByHand(network)(images[i], kept[i].tolist()), atol=1e-10)


def test_dropped_pixels_are_not_looked_at_and_a_file_says_its_shape(tmp_path):
    network = an_autoencoder()
    completer = read_completer(stored(network, tmp_path / "mae.safetensors", mean=[0.4], std=[0.5]), CPU)
    assert completer.network.spec == SMALL
    assert completer.bytes == sum(4 * value.numel() for value in network.state_dict().values())
    images = torch.rand(3, 1, 8, 8, generator=generator(0, "images"))
    kept = kept_patches(torch.rand(3, 4, 4, generator=generator(0, "maps")), 4, 0.5)
    other = torch.where(visible(kept, 8), images, torch.rand(3, 1, 8, 8, generator=generator(1, "images")))
    assert torch.equal(completer(images, kept), completer(other, kept))
    with torch.no_grad():
        wanted = network((images - 0.4) / 0.5, kept) * 0.5 + 0.4
    assert torch.allclose(completer(images, kept), wanted.clamp(0, 1), atol=1e-6)


def test_files_that_are_no_autoencoder_are_refused(tmp_path):
    state = an_autoencoder().state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith("decoder")}, tmp_path / "half.safetensors")
    with pytest.raises(UsageError, match="not a masked autoencoder with its decoder: it holds no 'decoder_pos_embed'"):
        read_completer(tmp_path / "half.safetensors", CPU)
    save_file(state, tmp_path / "heads.safetensors", {"heads": "3", "decoder_heads": "3"})
    with pytest.raises(UsageError, match="heads=3 does not divide a width of 8"):
        read_completer(tmp_path / "heads.safetensors", CPU)


# ---- the method -----------------------------------------------------------------------------------------------------


@pytest.fixture
def task(make_task, blobs):
    return make_task(blobs(noise=1.5))  # 4 classes in turn, 2 images of each


def of_means(path, pixels):
    """An autoencoder made by hand, blind to the image: every patch is decoded as the mean of the images there."""
    channels, size = pixels.shape[1], pixels.shape[-1]
    grid = size // 2
    spec = MaskedSpec(channels, 2, grid, 4, 1, 1, grid**2 + 1, 1, 1, mlp_ratio=1.0)
    with torch.random.fork_rng(devices=[]):
        network = MaskedAutoencoder(spec)
    wanted = (pixels.float() / 255).mean(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()  # a block then returns its input
        network.decoder_pos_embed[0] = torch.eye(grid**2 + 1)
        network.decoder_norm.weight.fill_(1.0)
        d = grid**2 + 1
        low, high = -1 / math.sqrt(d - 1), math.sqrt(d - 1)  # the normed unit vector, of mean 1 / d
        patches = wanted.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 3, 4, 0).reshape(grid**2, -1)
        scale = high - low
        weight = (patches.T - patches.mean(0)[:, None]) / scale
        network.decoder_pred.weight[:, 1:] = weight
        network.decoder_pred.bias.copy_(patches.mean(0) - low * weight.sum(1))
    facts = {"mean": [0.0] * channels, "std": [1.0] * channels}
    return stored(network, path, **facts), wanted


def made(method, task):
    method = method.settle(task)
    prepared = prepare(method, task)
    return method.finish(method.start(task, prepared), task, prepared)


def test_without_an_autoencoder_it_is_a_set_of_indices(task):
    found = made(DQ(squeeze=SQUEEZE, bins=2), task)
    found.check()
    assert (found.image_kind, found.label_kind) == ("indices", "hard")
    assert torch.equal(task.data.train.labels[found.images], task.targets)
    assert set(found.bytes()) == {"images", "labels", "total"}


def test_with_an_autoencoder_patches_are_completed_and_bytes_are_counted(task, tmp_path):
    every = torch.arange(len(task.data.train))
    path, means = of_means(tmp_path / "mae.safetensors", task.data.train.raw(every))
    whole = made(DQ(squeeze=SQUEEZE, bins=2), task)
    method = DQ(squeeze=SQUEEZE, bins=2, autoencoder=str(path), drop=0.3)
    found = made(method, task)
    found.check()
    found.require_match(task.data)
    assert (found.image_kind, found.images.dtype) == ("pixels", torch.uint8)
    raw, grid = task.data.train.raw(whole.images), task.data.size // 2
    prepared = prepare(method, task)
    maps = grad_cam_pp(prepared.viewer, task.data.train.images(whole.images))
    seen = visible(kept_patches(maps, grid, 0.3), task.data.size).expand_as(raw)
    assert torch.equal(found.images[seen], raw[seen])
    completed = (means.clamp(0, 1) * 255).expand_as(raw)[~seen]
    assert (found.images[~seen].float() - completed).abs().max() <= 1
    assert torch.equal(found.labels, whole.labels)
    n, kept = len(raw), kept_count(grid, 0.3)
    sizes = found.bytes()
    assert sizes["patches"] == n * kept * 4 * task.data.channels
    assert sizes["mask"] == n * math.ceil(grid**2 / 8)
    assert sizes["decoder"] == sum(4 * v.numel() for v in prepared.completer.network.state_dict().values())
    assert sizes["as patches"] == sizes["patches"] + sizes["mask"] + sizes["decoder"] + sizes["labels"]
    assert sizes["total"] == found.images.numel() + sizes["labels"]
    save(found, tmp_path / "set.safetensors")
    assert load(tmp_path / "set.safetensors").bytes() == sizes


def test_a_trained_autoencoder_completes_better_than_the_mean_of_what_it_sees(make_task, tmp_path):
    """Trained for a second on real training images; before that, it completes worse than the mean."""
    data = open_data("fashion-mini", DataSettings(classes=("Coat", "Bag", "Trouser")), "cpu")
    images, mean, std = normalised_images(data)
    network = fresh(spec_for(data.channels, data.size, width=16, depth=1), generator(0, "autoencoder"))
    task = make_task(data, ipc=10, student=NetworkSpec(depth=1, width=4))
    errors = []
    for steps in (0, 120):
        if steps:
            train_autoencoder(network, images, Training(steps=steps, batch=32, lr=5e-3), generator(0, "batches"))
        path = tmp_path / f"after-{steps}.safetensors"
        save_autoencoder(network, mean, std, path)
        method = DQ(squeeze=replace(SQUEEZE, epochs=1, batch=128), bins=2, autoencoder=str(path), drop=0.3)
        method = method.settle(task)
        done = method.start(task, prepare(method, task))
        seen, original = visible(done.kept, data.size), data.train.raw(done.index).float()
        assert torch.equal(done.pixels[seen].float(), original[seen])
        errors.append(float((done.pixels - original)[~seen].square().mean()))
    of_seen = (original * seen).sum((1, 2, 3)) / seen.sum((1, 2, 3))
    by_mean = float((of_seen.view(-1, 1, 1, 1) - original)[~seen].square().mean())
    untrained, trained = errors
    assert trained < 0.75 * by_mean
    assert untrained > by_mean


def test_nothing_dropped_is_the_image_itself(task, tmp_path):
    path, _ = of_means(tmp_path / "mae.safetensors", task.data.train.raw(torch.arange(len(task.data.train))))
    found = made(DQ(squeeze=SQUEEZE, bins=2, autoencoder=str(path), drop=0.0), task)
    whole = made(DQ(squeeze=SQUEEZE, bins=2), task)
    assert torch.equal(found.images, task.data.train.raw(whole.images))


def test_the_file_counts_not_its_path(task, tmp_path):
    path, _ = of_means(tmp_path / "mae.safetensors", task.data.train.raw(torch.arange(8)))
    again = tmp_path / "copy.safetensors"
    again.write_bytes(path.read_bytes())
    one, other = (DQ(autoencoder=str(file)).digests(task.student) for file in (path, again))
    assert list(one) == ["autoencoder"]
    assert one == other
    with pytest.raises(UsageError, match=r"autoencoder=.*nowhere"):
        DQ(autoencoder=str(tmp_path / "nowhere.pt")).digests(task.student)


def test_images_and_labels_are_joined_by_index_whatever_the_order_of_the_files(make_task, blobs, tmp_path):
    """Oracle 15: reading the images in the order of a class folder pairs them with labels at chance."""
    data = blobs(noise=1.5, per_class=10)
    order = torch.randperm(len(data.train), generator=generator(0, "files"))
    train = replace(data.train, pixels=data.train.pixels[order], labels=data.train.labels[order])
    task = make_task(replace(data, train=train), ipc=5)
    path, _ = of_means(tmp_path / "mae.safetensors", train.pixels)
    whole = made(DQ(squeeze=SQUEEZE, bins=5), task)
    found = made(DQ(squeeze=SQUEEZE, bins=5, autoencoder=str(path), drop=0.5), task)
    assert torch.equal(found.labels, train.labels[whole.images])
    owner = [int((train.pixels == image).float().mean((1, 2, 3)).argmax()) for image in found.images]
    assert owner == whole.images.tolist()  # half of the pixels tell whose they are
    by_folder = train.labels.argsort(stable=True)  # sorted by class, then by file name
    misread = by_folder[whole.images]
    assert len(set(misread.tolist()) & set(whole.images.tolist())) < 0.8 * len(owner)
    assert misread.tolist() != owner
    shuffled = replace(data, fingerprint="shuffled")
    with pytest.raises(UsageError, match="fingerprint"):
        whole.require_match(shuffled)


def test_a_run_is_another_with_an_autoencoder_other_shares_or_another_file(tmp_path):
    small = resolve({"method": "dq", "device": "cpu"})
    path, other = stored(an_autoencoder(), tmp_path / "a.pt.safetensors"), tmp_path / "b.safetensors"
    stored(an_autoencoder(seed=1), other)
    asked = [{}, {"drop": 0.3}, {"autoencoder": str(path)}, {"autoencoder": str(path), "drop": 0.3}]
    asked += [{"autoencoder": str(other)}, {"autoencoder": str(path), "viewer": "convnet:width=8"}]
    hashes = [resolve({"method": "dq", "device": "cpu", **given}).hash for given in asked]
    assert hashes[0] == small.hash
    assert len(set(hashes)) == len(hashes)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    assert resolve({"method": "dq", "device": "cpu", "autoencoder": str(moved)}).hash == hashes[2]
