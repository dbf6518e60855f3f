"""Training two towers: every layout, the bases, views, recipes, losses, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pairkit import CAPTIONS, ITEMS, LAYOUTS, pair_config, settings, write_caches, write_data
from stagekit import read_lines
from systemkit import same_weights, weights
from torch.nn import functional as F

from cache import Cache, TapSpec
from pipeline.config import ConfigError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.inputs import view_key
from pipeline.run import Run
from pipeline.systems.locate import MissingInputs, find_views
from pipeline.systems.taps import TowerTaps
from pipeline.systems.two_towers import TwoTowersSystem, TwoTowersTrainConfig
from pipeline.tasks.base import Moment
from pipeline.tasks.ranking import Matching, Ranking
from pipeline.tasks.ranks import chance
from pipeline.train import train
from pipeline.training.job import make_model
from pipeline.training.setup import make_loader, prepare
from unipt import Outputs, TwoTowers, hinge_loss
from unipt.bases import AnchorBase, MemoryBase


def towers(path: Path) -> TwoTowers:
    """Return the trained towers of a run."""
    model = Run.open(path).model()
    assert isinstance(model, TwoTowers) and not model.training
    return model


def test_the_bases_are_fitted_on_the_training_split(tmp_path: Path) -> None:
    bases = {"text_base": "anchor", "text_side_weight": 0.25, "media_base": "memory"}
    values = settings(tmp_path, epochs=1, **bases)
    config = TwoTowersTrainConfig.build(values | {"embed_width": None})
    model = towers(train(config).path)
    setup = prepare(config)
    text, located = setup.taps["text"], setup.splits["train"]
    samples = np.unique(located.clean["text"]).astype(np.int64)
    read = setup.caches["text"].read(samples, (text.anchor.name,))[text.anchor.name]
    lengths = setup.caches["text"].lengths["tokens"][samples].tolist()
    pooled = torch.stack([rows.float().mean(0) for rows in torch.split(read, lengths)])
    assert model.text.side_weight == 0.25
    assert isinstance(model.text.base, AnchorBase)
    assert torch.allclose(model.text.base.center, pooled.mean(0), atol=1e-5)
    assert model.text.out_width == model.media.out_width == text.anchor.shape[0]
    assert isinstance(model.media.base, MemoryBase)
    assert len(model.media.base.keys) == len(np.unique(located.clean["media"]))
    assert model.media.base.values.abs().sum() > 0


def test_a_memory_has_keys_at_most(tmp_path: Path) -> None:
    values = settings(
        tmp_path, epochs=1, text_base="anchor", media_base="memory", memory_keys=3
    ) | {"embed_width": None}
    model = towers(train(TwoTowersTrainConfig.build(values)).path)
    assert isinstance(model.media.base, MemoryBase)
    assert model.media.base.keys.shape[0] == 3


def by_chance(config: TwoTowersTrainConfig, split: str = "test") -> dict[str, float]:
    """Expected metrics of a random order of this split's candidates."""
    return chance(prepare(config).splits[split].examples.item_of)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_learns_what_unseen_items_show(tmp_path: Path, layout: str) -> None:
    text = "clip" if layout == "clip" else "tokens"
    extras = {"epochs": 20} if layout in ("clip", "vector") else {}
    config = pair_config(tmp_path, layout, text=text, **extras)
    result = train(config)
    random = by_chance(config)
    assert result.metrics["test"]["rsum"] > 1.5 * random["rsum"]
    ranks = evaluate(EvaluateConfig(run=result.path, resamples=0, device="cpu")).extras
    assert ranks["t2m_mean_rank"] < 0.75 * random["t2m_mean_rank"]
    run = Run.open(result.path)
    assert run.task == "retrieval"
    assert run.towers["media"].taps == tuple(LAYOUTS[layout][1])
    model = towers(result.path)
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    expected = {"clip": ("none", "first"), "map": ("mean", "first")}.get(layout, ("mean", "first"))
    assert (model.media.config["pooling"], model.media.config["position"]) == expected
    assert model.media.frames == ("mean" if LAYOUTS[layout][0] == "frames" else "none")


def test_a_run_tells_ranks_and_confidences(tmp_path: Path) -> None:
    result = train(pair_config(tmp_path, epochs=2))
    run = Run.open(result.path)
    captions = read_lines(result.path / "predictions_test.jsonl")
    items = read_lines(result.path / "items_test.jsonl")
    counts = run.info["examples"]["test"]
    assert (len(captions), len(items)) == (counts["captions"], counts["items"])
    assert len(captions) == CAPTIONS * len(items)
    ranks = np.array([record["rank"] for record in captions])
    assert 100 * np.mean(ranks <= 5) == pytest.approx(result.metrics["test"]["t2m_r5"])
    extras = evaluate(EvaluateConfig(run=result.path, resamples=0, device="cpu")).extras
    assert np.median(ranks) == extras["t2m_median_rank"]
    ranks = np.array([record["rank"] for record in items])
    assert 100 * np.mean(ranks <= 5) == pytest.approx(result.metrics["test"]["m2t_r5"])
    assert {record["item"] for record in captions} == {record["id"] for record in items}
    for records, layers in ((captions, 2), (items, 1)):
        assert all(len(record["confidence"]) == layers for record in records)
        assert all(abs(sum(record["confidence"]) - 1) < 1e-5 for record in records)
    for tower in run.towers.values():
        cache = Cache.open(tower.cache["path"])
        assert tower.cache["digest"] == cache.fingerprint.digest


def test_one_tap_is_anchor_and_target_both(tmp_path: Path) -> None:
    single = {"text_taps": ["layer.2"], "media_taps": ["block.1"]}
    config = pair_config(tmp_path, out="last", **single)
    model = make_model(config, prepare(config))
    assert isinstance(model, TwoTowers)
    assert model.text.side.widths == (8,)
    assert model.media.config["side"]["anchor_width"] == 8
    last = train(config).metrics["test"]["rsum"]
    everything = train(pair_config(tmp_path, out="all")).metrics["test"]["rsum"]
    assert everything > 1.3 * last  # neither of these taps shows anything
    seen = {"text_taps": ["layer.1"], "media_taps": ["block.0"]}
    shown = train(pair_config(tmp_path, out="shown", **seen)).metrics["test"]["rsum"]
    assert shown > 1.3 * last
    records = read_lines(tmp_path / "last" / "predictions_test.jsonl")
    assert all(record["confidence"] == [1.0] for record in records)


@pytest.mark.parametrize("layout", ["map", "clip", "frames_vector"])
def test_one_tap_of_any_kind_trains(tmp_path: Path, layout: str) -> None:
    last = list(LAYOUTS[layout][1])[-1]
    text = "clip" if layout == "clip" else "tokens"
    taps = {"media_taps": [last], "text_taps": ["projected" if text == "clip" else "layer.1"]}
    result = train(pair_config(tmp_path, layout, text=text, epochs=1, embed_width=6, **taps))
    assert Run.open(result.path).towers["media"].taps == (last,)


def test_a_memory_of_one_tap_trains(tmp_path: Path) -> None:
    bases = {"text_base": "anchor", "media_base": "memory", "memory_keys": 4}
    taps = {"media_taps": ["block.1"], "text_taps": ["layer.1"]}
    values = settings(tmp_path, epochs=1, **bases, **taps) | {"embed_width": None}
    model = towers(train(TwoTowersTrainConfig.build(values)).path)
    assert isinstance(model.media.base, MemoryBase)
    first, second = model.media.base.keys.chunk(2, 1)  # the tap as target, and as anchor
    assert torch.equal(first, second)


def test_views_are_drawn_in_training_and_never_in_evaluation(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_caches(tmp_path, views=3)
    setup = prepare(pair_config(tmp_path))
    located = setup.splits["train"]
    assert [each.shape[1] for each in located.samples.values()] == [3, 3]
    assert [each.shape[1] for each in setup.splits["dev"].samples.values()] == [1, 1]
    for found in located.samples.values():
        assert len(np.unique(found)) == 3 * len(np.unique(found[:, 0]))
    clean = prepare(pair_config(tmp_path, views=1)).splits["train"]
    for tower, found in clean.samples.items():
        assert found.shape[1] == 1
        assert np.array_equal(found[:, 0], located.clean[tower])
    models = [
        make_model(c, prepare(c)) for c in (pair_config(tmp_path, views=v) for v in (1, None))
    ]
    for one, two in zip(*(dict(model.named_buffers()).values() for model in models), strict=True):
        assert torch.equal(one, two)  # input statistics are those of the inputs as they are
    for out, views in (("clean", 1), ("several", None)):
        train(pair_config(tmp_path, out=out, views=views, epochs=2))
    assert not same_weights(tmp_path / "clean", tmp_path / "several")


def test_an_input_without_cached_views_stands_for_its_own_views() -> None:
    known = {view_key(b"a" * 16, 0): 3, view_key(b"a" * 16, 1): 5, view_key(b"b" * 16, 0): 7}

    class Views:
        path = Path("some.zarr")
        row_to_sample = np.zeros((2, 2), np.int64)

        def find(self, keys: Any) -> Any:
            return np.array([known.get(key.tobytes(), -1) for key in keys])

    keys = np.frombuffer(b"a" * 16 + b"b" * 16 + b"c" * 16, np.uint8).reshape(3, 16)
    found = find_views(Views(), keys)  # type: ignore[arg-type]
    assert found.tolist() == [[3, 5], [7, 7], [-1, -1]]


def test_an_example_is_a_caption_with_its_own_item(tmp_path: Path) -> None:
    config = pair_config(tmp_path)
    setup = prepare(config)
    located = setup.splits["train"]
    loader = make_loader(config, setup)
    batch = next(loader.epoch(0))
    owner = located.clean["media"][batch.index.numpy()]
    first = located.examples.first_of[located.examples.item_of[batch.index.numpy()]]
    assert np.array_equal(owner, located.clean["media"][first])
    read = setup.caches["media"].read(owner, ("block.0",))["block.0"]
    assert torch.equal(batch.parts["media"].states["block.0"], read)
    texts = located.clean["text"][batch.index.numpy()]
    lengths = setup.caches["text"].lengths["tokens"][texts]
    assert torch.equal(
        batch.parts["text"].offsets["tokens"][1:], torch.from_numpy(lengths).cumsum(0)
    )


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("grid", {"precision": "bfloat16", "text_pooling": "gpo", "media_pooling": "gpo"}),
        ("grid", {"loss": "hinge", "text_pooling": "attention", "head": True}),
        ("map", {"media_side": "tokens", "media_pooling": "max", "mask_positives": False}),
        (
            "frames_grid",
            {"media_frames": "sequence", "text_pooling": "meanmax", "media_noise": 0.1},
        ),
        ("map", {"media_input_norm": "none", "media_noise": 0.1, "text_input_norm": "layer"}),
        ("grid", {"text_options": {"up": "linear", "projection": "none"}, "schedule": "step"}),
    ],
)
def test_options_learn(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    config = pair_config(tmp_path, layout, **changes)
    result = train(config)
    assert result.metrics["test"]["rsum"] > 1.3 * by_chance(config)["rsum"]


def test_gradients_flow_into_every_trained_number(tmp_path: Path) -> None:
    for layout, text in (("map", "tokens"), ("clip", "clip")):
        config = pair_config(tmp_path, layout, text=text, epochs=1, text_pooling="gpo")
        setup = prepare(config)
        torch.manual_seed(config.seed)
        before = setup.system.build(config, setup).state_dict()
        train(pair_config(tmp_path, layout, text=text, epochs=1, text_pooling="gpo"))
        after = weights(tmp_path / "run")
        still = {name for name in after if torch.equal(after[name], before[name])}
        free = {"log_scale"} | {name for name in after if "bias" in name and "gate" in name}
        assert still <= free  # a gate's bias cannot change a softmax
        (tmp_path / "run" / "run.json").unlink()
        (tmp_path / "run" / "checkpoint.pt").unlink()


def test_statistics_of_maps_are_those_of_the_training_states(tmp_path: Path) -> None:
    train(pair_config(tmp_path, "map", epochs=1))
    config = pair_config(tmp_path, "map")
    setup = prepare(config)
    model = towers(tmp_path / "run")
    text, media = (setup.splits["train"].clean[name] for name in ("text", "media"))
    states = setup.caches["text"].read(np.unique(text), ("layer.0",))["layer.0"].double()
    mean = model.text.side.target_down.linear.get_buffer("mean_8")[0]
    torch.testing.assert_close(mean.double(), states.mean(0), atol=1e-5, rtol=1e-5)
    maps = setup.caches["media"].read(np.unique(media), ("stage.2",))["stage.2"].double()
    scale = model.media.side.standard[-1].scale
    wanted = maps.movedim(1, -1).flatten(0, 2).std(0, correction=0)
    torch.testing.assert_close(scale.double(), wanted, atol=1e-5, rtol=1e-5)


def test_recipes_are_the_published_settings_and_options_win(tmp_path: Path) -> None:
    def values(recipe: str, **changes: Any) -> TwoTowersTrainConfig:
        given = settings(tmp_path)
        kept = {k: given[k] for k in ("data", "text_cache", "media_cache", "out")}
        return TwoTowersTrainConfig.build(kept | {"recipe": recipe} | changes)

    vse = values("vse_infinity")
    assert (vse.batch_size, vse.epochs, vse.lr, vse.clip) == (112, 25, 5e-4, 2.0)
    assert (vse.schedule, vse.step_at * vse.epochs, vse.weight_decay) == ("step", 15, 1e-4)
    assert (vse.loss, vse.margin, vse.all_negatives_epochs) == ("hinge", 0.2, 1)
    assert (vse.text_pooling, vse.media_pooling, vse.embed_width) == ("gpo", "gpo", 1024)
    clip = values("clip4clip")
    assert (clip.batch_size, clip.epochs, clip.lr, clip.clip) == (128, 5, 1e-4, 1.0)
    assert (clip.schedule, clip.warmup, clip.beta2, clip.weight_decay) == ("cosine", 0.1, 0.98, 0.2)
    assert (clip.loss, clip.logit_scale, clip.learn_scale) == ("infonce", 100.0, False)
    own = values("vse_infinity", epochs=3)
    assert (own.epochs, own.batch_size) == (3, 112)
    assert TwoTowersTrainConfig.build(own.model_dump(mode="json")) == own
    with pytest.raises(ConfigError, match="recipe: Input should be 'default', 'vse_infinity'"):
        values("vse")


def official(text: tuple[TapSpec, ...], media: tuple[TapSpec, ...]) -> Any:
    """A setup of these taps alone."""
    return SimpleNamespace(taps={"text": TowerTaps(text), "media": TowerTaps(media)})


def test_the_recipes_have_the_published_parameter_counts(tmp_path: Path) -> None:
    def tap(name: str, kind: str, *shape: int) -> TapSpec:
        axis = {"axis": "frames"} if kind == "frames" else {}
        return TapSpec(name=name, kind=kind, shape=shape, **axis)

    def count(recipe: str, setup: Any) -> float:
        places = {"text_cache": tmp_path, "media_cache": tmp_path, "out": tmp_path}
        config = TwoTowersTrainConfig.build(
            {"recipe": recipe, "data": {"train": tmp_path / "captions.csv"}} | places
        )
        return round(
            sum(p.numel() for p in TwoTowersSystem().build(config, setup).parameters()) / 1e6, 1
        )

    bert = tuple(tap(f"layer.{i}", "tokens", 768) for i in range(13))
    sizes = ((256, 128, 128), (512, 64, 64), (1024, 32, 32), (2048, 16, 16))
    resnext = tuple(tap(f"stage.{i}", "map", *size) for i, size in enumerate(sizes))
    assert count("vse_infinity", official(bert, resnext)) == 12.4
    text = tuple(tap(f"layer.{i}", "tokens", 512) for i in range(13))
    frames = tuple(tap(f"layer.{i}", "frames", 50, 768) for i in range(13))
    clip = official(
        (*text, tap("projected", "vector", 512)), (*frames, tap("projected", "frames", 512))
    )
    assert count("clip4clip", clip) == 9.6


def test_the_hinge_follows_the_published_schedule(tmp_path: Path) -> None:
    task = prepare(pair_config(tmp_path, loss="hinge")).task
    assert isinstance(task, Ranking)
    media, text = (F.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    every, hardest = (hinge_loss(media, text, negatives=kind) for kind in ("all", "hardest"))

    def at(epoch: int, batch: int) -> float:
        outputs = Outputs({"media": media, "text": text})
        return task.loss(outputs, Matching(None), Moment(epoch, batch, 8)).item()

    assert [at(0, 0), at(0, 7)] == [every.item()] * 2
    assert [at(1, 0), at(1, 2)] == pytest.approx([0.0, hardest.item() / 4])
    assert at(2, 0) == hardest.item()


def test_options_of_a_side_network_may_be_json_text(tmp_path: Path) -> None:
    config = pair_config(tmp_path, text_options='{"up": "linear"}')
    assert config.text_options == {"up": "linear"}
    with pytest.raises(ConfigError, match=r"text_options: .* a JSON mapping"):
        pair_config(tmp_path, text_options="up=linear")


def test_bad_options_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        pair_config(tmp_path, lr=-1, loss="triplet", text_width=3)
    assert "3 problem(s)" in str(error.value)
    with pytest.raises(ConfigError, match="learn_scale is an option of loss infonce"):
        pair_config(tmp_path, loss="hinge", learn_scale=True)
    for changes, message in (
        ({"text_taps": ["h.*"]}, r"'h\.\*' of text_taps matches none of layer\.0, layer\.1"),
        ({"media_options": {"depth": 3}}, "cannot be built: .*'depth'"),
        ({"embed_width": 15, "text_pooling": "meanmax"}, "have 14 features.*choose equal"),
        ({"text_options": {"out_width": 3}}, "have 3 features, the media tower's 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(pair_config(tmp_path, **changes))
    given = settings(tmp_path)
    swapped = {"text_cache": given["media_cache"], "media_cache": given["text_cache"]}
    with pytest.raises(
        ConfigError,
        match=r"holds grid taps, and this tower reads text .*did two caches change places",
    ):
        train(pair_config(tmp_path, **swapped))
    with pytest.raises(ConfigError, match="one map an input; leave the drop at 0"):
        train(pair_config(tmp_path, "map", media_drop=0.1))
    assert not (tmp_path / "run").exists()


def test_missing_items_are_counted_or_left_out_if_asked(tmp_path: Path) -> None:
    config = pair_config(tmp_path, epochs=1)
    file = tmp_path / "captions.csv"
    for number in range(ITEMS, ITEMS + 6):
        (tmp_path / f"{number:03}.png").write_bytes(b"new %d" % number)
        with file.open("a") as lines:
            lines.write(f"{number:03}.png,thing 0 number 0\n")
    with pytest.raises(
        MissingInputs, match=r"\d of \d+ inputs of the split .* are not in the cache"
    ) as error:
        train(config)
    assert "bad_media: skip" in str(error.value)
    assert not (tmp_path / "run").exists()
    data = settings(tmp_path)["data"] | {"bad_media": "skip"}
    result = train(pair_config(tmp_path, epochs=1, data=data))
    examples = Run.open(result.path).info["examples"]
    assert sum(split["items"] for split in examples.values()) == ITEMS
    known = file.read_text()
    file.write_text(known + "000.png,a caption nobody cached\n")
    with pytest.raises(MissingInputs, match=r"1 of .* inputs .*'a caption nobody cached'"):
        train(pair_config(tmp_path, out="other", epochs=1, data=data))
    file.write_text(known)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"changed " + path.read_bytes())
    with pytest.raises(MissingInputs, match=r"(\d+) of \1 inputs of the split 'train'"):
        train(pair_config(tmp_path, out="other", epochs=1, data=data))  # none would be left


def test_equal_items_and_captions_are_no_negatives(tmp_path: Path) -> None:
    """Where every item has the same caption, masking leaves no negative and so no loss."""
    write_data(tmp_path, items=12, captions=1)
    rows = [f"{item:03}.png,thing 0 number 0" for item in range(12)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    write_caches(tmp_path, items=12, captions=1)
    train(pair_config(tmp_path, epochs=1))
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == 0.0
    train(pair_config(tmp_path, out="plain", epochs=1, mask_positives=False))
    assert read_lines(tmp_path / "plain" / "metrics.jsonl")[0]["loss"] > 0.1
