"""A known example costs no forward pass, and what the cache knew never shows in the features."""

import hashlib
import io
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from regraft.backbones import features
from regraft.backbones.extractor import build_extractor
from regraft.backbones.features import FeatureCache, describe, embed_splits
from regraft.backbones.fetch import fetch
from tests.backbones.tiny import WORDS, make_image_preset, make_text_preset

BATCH = 8


class Examples:
    """Rows in memory with content-addressed ids, as a split has them."""

    def __init__(self, contents: list) -> None:
        self.contents = contents
        self.ids = [hashlib.sha256(c if isinstance(c, bytes) else c.encode()).hexdigest() for c in contents]

    def inputs(self, indices: Sequence[int]) -> list:
        return [self.contents[index] for index in indices]


@pytest.fixture(scope="module", params=["image", "text", "pair"])
def extractor(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    (make_image_preset if request.param == "image" else make_text_preset)(root / "tiny")
    fetch("preset:tiny", root / "backbones", root=root)
    pair = ("question", "answer") if request.param == "pair" else None
    return build_extractor(root / "backbones", image_size_px=32, max_tokens=40, pair=pair)


@pytest.fixture
def contents(extractor):
    random = np.random.default_rng(0)
    if extractor.pair:
        return [f"{i} {' '.join(WORDS[: i % 7])} ||| {' '.join(random.choice(WORDS, 1 + i % 50))}" for i in range(45)]
    if extractor.kind == "text":
        return [f"{i} " + " ".join(random.choice(WORDS, 1 + i % 50)) for i in range(45)]
    pictures = []
    for _ in range(45):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


def run(extractor, root, **splits):
    cache = FeatureCache(root, describe(extractor, BATCH))
    seen: list[int] = []
    embedded = embed_splits(splits, extractor, cache, batch_size=BATCH, advance=lambda done, total: seen.append(done))
    assert sum(seen) == embedded.forward_passes
    return embedded


def test_features_are_those_of_the_model_row_by_row(extractor, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROWS_PER_SHARD", 16)
    embedded = run(extractor, tmp_path, train=Examples(contents))
    assert embedded.features["train"].dtype == np.float32
    for content, row in zip(contents, embedded.features["train"], strict=True):
        prepared = extractor.prepare(content) if extractor.kind == "image" else extractor.prepare([content])
        batch = prepared[None] if extractor.kind == "image" else prepared
        assert np.abs(extractor.model(batch, training=False).numpy()[0] - row).max() < 1e-5


def test_unchanged_examples_cost_no_forward_pass_and_new_ones_one_each(extractor, contents, tmp_path):
    first = run(extractor, tmp_path, train=Examples(contents[:30]), test=Examples(contents[30:40]))
    assert (first.forward_passes, first.from_cache) == (40, 0)
    again = run(extractor, tmp_path, train=Examples(contents[:30]), test=Examples(contents[30:40]))
    assert (again.forward_passes, again.from_cache) == (0, 40)
    assert all((again.features[name] == first.features[name]).all() for name in ("train", "test"))
    # Five more examples, and one that moved to the other split.
    grown = run(extractor, tmp_path, train=Examples(contents[:31]), test=Examples(contents[31:]))
    assert (grown.forward_passes, grown.from_cache) == (5, 40)


def test_what_the_cache_knew_does_not_show_in_the_features(extractor, contents, tmp_path):
    run(extractor, tmp_path / "grown", train=Examples(contents[5:9]))
    run(extractor, tmp_path / "grown", train=Examples(contents[20:33]))
    grown = run(extractor, tmp_path / "grown", train=Examples(contents))
    fresh = run(extractor, tmp_path / "fresh", train=Examples(contents[::-1]))
    assert grown.forward_passes == 45 - 17
    assert grown.features["train"].tobytes() == fresh.features["train"][::-1].tobytes()


def test_copies_are_computed_once(extractor, contents, tmp_path):
    embedded = run(
        extractor, tmp_path, train=Examples([contents[0], contents[1], contents[0]]), test=Examples(contents[:1])
    )
    assert embedded.forward_passes == 2
    assert (embedded.features["train"][0] == embedded.features["train"][2]).all()
    assert (embedded.features["train"][0] == embedded.features["test"][0]).all()


def test_an_empty_split_has_no_features(extractor, contents, tmp_path):
    embedded = run(extractor, tmp_path, train=Examples(contents[:2]), test=Examples([]))
    assert embedded.features["test"].shape == (0, extractor.feature_size)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_shard_is_dropped_and_computed_again(extractor, contents, tmp_path, caplog, damage):
    for part in (contents[:15], contents[15:]):
        run(extractor, tmp_path, train=Examples(part))
    before = run(extractor, tmp_path, train=Examples(contents))
    shards = sorted(tmp_path.rglob("*.npz"))
    assert len(shards) == 2
    data = shards[0].read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
    shards[0].write_bytes({"cut": data[:middle], "flip": flipped, "empty": b"", "other": b"no archive"}[damage])
    after = run(extractor, tmp_path, train=Examples(contents))
    assert after.forward_passes in (15, 30)
    assert after.features["train"].tobytes() == before.features["train"].tobytes()
    assert "damaged" in caplog.text
    assert run(extractor, tmp_path, train=Examples(contents)).forward_passes == 0


def test_a_crash_loses_at_most_one_shard(extractor, contents, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ROWS_PER_SHARD", 16)
    cache = FeatureCache(tmp_path, describe(extractor, BATCH))
    done = 0

    def crash(count: int, total: int) -> None:
        nonlocal done
        done += count
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_splits({"train": Examples(contents)}, extractor, cache, batch_size=BATCH, advance=crash)
    (cache.folder / "half.part").write_bytes(b"what a killed process leaves")
    assert run(extractor, tmp_path, train=Examples(contents)).from_cache >= done - 16


def test_another_size_or_batch_or_backbone_shares_nothing(extractor, contents, tmp_path):
    run(extractor, tmp_path, train=Examples(contents[:3]))
    description = describe(extractor, BATCH)
    for key, other in (("batch_size", 4), ("image_size_px", 64), ("max_tokens", 9), ("weights_sha256", "0" * 64)):
        assert FeatureCache(tmp_path, {**description, key: other}).read(set(Examples(contents).ids)) == {}
    assert len(FeatureCache(tmp_path, description).read(set(Examples(contents).ids))) == 3
    shutil.rmtree(tmp_path)
