"""Training two towers: it learns from every layout, repeats, resumes exactly, refuses clearly."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pairkit import CAPTIONS, ITEMS, LAYOUTS, pair_config, settings, write_caches, write_data
from safetensors.torch import load_file
from torch.nn import functional as F

from cache import Cache, TapSpec
from pipeline.config import ConfigError
from pipeline.inputs import view_key
from pipeline.retrieval.build import build_towers, make_pair_loader, prepare_retrieval
from pipeline.retrieval.config import RetrievalTrainConfig
from pipeline.retrieval.features import pooled_features
from pipeline.retrieval.metrics import chance
from pipeline.retrieval.samples import find_views
from pipeline.retrieval.taps import TowerTaps
from pipeline.retrieval.train import _hinge, train_retrieval
from pipeline.run import Run, RunError
from pipeline.train import TrainProgress
from pipeline.training.checkpoint import Progress, read_checkpoint
from pipeline.training.samples import MissingInputs
from unipt import TwoTowers, hinge_loss
from unipt.bases import AnchorBase, MemoryBase

ROOT = Path(__file__).parents[2]


def test_the_bases_are_fitted_on_the_training_split(tmp_path: Path) -> None:
    bases = {"text_base": "anchor", "text_side_weight": 0.25, "media_base": "memory"}
    values = settings(tmp_path, epochs=1, **bases)
    config = RetrievalTrainConfig.build(values | {"embed_width": None})
    model = Run.open(train_retrieval(config).path).towers()
    setup = prepare_retrieval(config)
    text, train = setup.taps["text"], setup.splits["train"]
    samples = np.unique(train.text[:, 0]).astype(np.int64)
    pooled = pooled_features(setup.caches["text"], text, samples, [text.anchor.name])
    assert model.text.side_weight == 0.25
    assert isinstance(model.text.base, AnchorBase)
    assert torch.allclose(model.text.base.center, pooled.mean(0), atol=1e-5)
    assert model.text.out_width == model.media.out_width == text.anchor.shape[0]
    assert isinstance(model.media.base, MemoryBase)
    assert len(model.media.base.keys) == len(np.unique(train.media[:, 0]))
    assert model.media.base.values.abs().sum() > 0


def test_a_memory_has_keys_at_most(tmp_path: Path) -> None:
    values = settings(
        tmp_path, epochs=1, text_base="anchor", media_base="memory", memory_keys=3
    ) | {"embed_width": None}
    model = Run.open(train_retrieval(RetrievalTrainConfig.build(values)).path).towers()
    assert isinstance(model.media.base, MemoryBase)
    assert model.media.base.keys.shape[0] == 3


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def by_chance(config: RetrievalTrainConfig, split: str = "test") -> dict[str, float]:
    """Expected metrics of a random order of this split's candidates."""
    return chance(prepare_retrieval(config).splits[split].split.item_of)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_learns_what_unseen_items_show(tmp_path: Path, layout: str) -> None:
    text = "clip" if layout == "clip" else "tokens"
    extras = {"epochs": 20} if layout in ("clip", "vector") else {}
    config = pair_config(tmp_path, layout, text=text, **extras)
    result = train_retrieval(config)
    random = by_chance(config)
    assert result.metrics["test"]["rsum"] > 1.5 * random["rsum"]
    assert result.metrics["test"]["t2m_mean_rank"] < 0.75 * random["t2m_mean_rank"]
    run = Run.open(result.path)
    assert run.kind == "retrieval"
    assert run.tower_taps("media") == tuple(LAYOUTS[layout][1])
    model = run.model()
    assert isinstance(model, TwoTowers) and not model.training
    assert sum(p.numel() for p in model.parameters()) == result.parameters
    expected = {"clip": ("none", "first"), "map": ("mean", "first")}.get(layout, ("mean", "first"))
    assert (model.media.config["pooling"], model.media.config["position"]) == expected
    assert model.media.frames == ("mean" if LAYOUTS[layout][0] == "frames" else "none")


def test_a_run_tells_ranks_and_confidences(tmp_path: Path) -> None:
    result = train_retrieval(pair_config(tmp_path, epochs=2))
    run = Run.open(result.path)
    captions = read_lines(result.path / "predictions_test.jsonl")
    items = read_lines(result.path / "items_test.jsonl")
    counts = run.info["examples"]["test"]
    assert (len(captions), len(items)) == (counts["captions"], counts["items"])
    assert len(captions) == CAPTIONS * len(items)
    ranks = np.array([record["rank"] for record in captions])
    assert 100 * np.mean(ranks <= 5) == pytest.approx(result.metrics["test"]["t2m_r5"])
    assert np.median(ranks) == result.metrics["test"]["t2m_median_rank"]
    ranks = np.array([record["rank"] for record in items])
    assert 100 * np.mean(ranks <= 5) == pytest.approx(result.metrics["test"]["m2t_r5"])
    assert {record["item"] for record in captions} == {record["id"] for record in items}
    for records, layers in ((captions, 2), (items, 1)):
        assert all(len(record["confidence"]) == layers for record in records)
        assert all(abs(sum(record["confidence"]) - 1) < 1e-5 for record in records)
    towers = run.info["towers"]
    for name in ("text", "media"):
        cache = Cache.open(towers[name]["cache"]["path"])
        assert towers[name]["cache"]["digest"] == cache.fingerprint.digest
    with pytest.raises(RunError, match="kind retrieval, which has no classifier"):
        run.classifier()


EXTRAS: dict[str, Any] = {
    "text_noise": 0.1,
    "media_noise": 0.1,
    "text_drop": 0.2,
    "media_drop": 0.2,
    "dropout": 0.3,
    "ema": 0.9,
    "learn_scale": True,
    "epochs": 3,
}


def test_the_same_seed_repeats_bit_for_bit(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_retrieval(pair_config(tmp_path, out=out, seed=seed, **EXTRAS))
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("loss", ["infonce", "hinge"])
def test_an_interruption_changes_nothing(tmp_path: Path, loss: str) -> None:
    write_data(tmp_path)
    write_caches(tmp_path, views=2)
    extras = EXTRAS | {"loss": loss, "learn_scale": loss == "infonce", "checkpoint_steps": 3}
    train_retrieval(pair_config(tmp_path, out="whole", **extras))

    def stop(now: TrainProgress) -> None:
        if (now.epoch, now.batch) == (2, 3):
            raise KeyboardInterrupt

    config = pair_config(tmp_path, out="cut", **extras)
    with pytest.raises(KeyboardInterrupt):
        train_retrieval(config, stop)
    now = read_checkpoint(tmp_path / "cut" / "checkpoint.pt")["progress"]
    assert (now["epoch"], now["batch"], now["step"]) == (1, 2, 6)
    resumed: list[TrainProgress] = []
    train_retrieval(config, resumed.append)
    assert (resumed[0].epoch, resumed[0].batch) == (2, 3)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    curves = [read_lines(tmp_path / out / "metrics.jsonl") for out in ("whole", "cut")]
    assert [r["loss"] for r in curves[0]] == [r["loss"] for r in curves[1]]
    assert train_retrieval(config).reused
    with pytest.raises(RunError, match="finished run of another configuration"):
        train_retrieval(pair_config(tmp_path, out="cut", **extras | {"lr": 1e-4}))


def test_the_tier_changes_nothing(tmp_path: Path) -> None:
    for tier in ("host", "disk"):
        result = train_retrieval(pair_config(tmp_path, "map", out=tier, tier=tier, epochs=2))
        assert result.tier.startswith(tier)
    assert same_weights(tmp_path / "host", tmp_path / "disk")


def test_one_tap_is_anchor_and_target_both(tmp_path: Path) -> None:
    single = {"text_taps": ["layer.2"], "media_taps": ["block.1"]}
    config = pair_config(tmp_path, out="last", **single)
    model = build_towers(config, prepare_retrieval(config))
    assert model.text.side.widths == (8,)
    assert model.media.config["side"]["anchor_width"] == 8
    last = train_retrieval(config).metrics["test"]["rsum"]
    everything = train_retrieval(pair_config(tmp_path, out="all")).metrics["test"]["rsum"]
    assert everything > 1.3 * last  # neither of these taps shows anything
    seen = {"text_taps": ["layer.1"], "media_taps": ["block.0"]}
    shown = train_retrieval(pair_config(tmp_path, out="shown", **seen)).metrics["test"]["rsum"]
    assert shown > 1.3 * last
    records = read_lines(tmp_path / "last" / "predictions_test.jsonl")
    assert all(record["confidence"] == [1.0] for record in records)


@pytest.mark.parametrize("layout", ["map", "clip", "frames_vector"])
def test_one_tap_of_any_kind_trains(tmp_path: Path, layout: str) -> None:
    last = list(LAYOUTS[layout][1])[-1]
    text = "clip" if layout == "clip" else "tokens"
    taps = {"media_taps": [last], "text_taps": ["projected" if text == "clip" else "layer.1"]}
    result = train_retrieval(
        pair_config(tmp_path, layout, text=text, epochs=1, embed_width=6, **taps)
    )
    assert Run.open(result.path).tower_taps("media") == (last,)


def test_a_memory_of_one_tap_trains(tmp_path: Path) -> None:
    bases = {"text_base": "anchor", "media_base": "memory", "memory_keys": 4}
    taps = {"media_taps": ["block.1"], "text_taps": ["layer.1"]}
    values = settings(tmp_path, epochs=1, **bases, **taps) | {"embed_width": None}
    model = Run.open(train_retrieval(RetrievalTrainConfig.build(values)).path).towers()
    assert isinstance(model.media.base, MemoryBase)
    first, second = model.media.base.keys.chunk(2, 1)  # the tap as target, and as anchor
    assert torch.equal(first, second)


def test_views_are_drawn_in_training_and_never_in_evaluation(tmp_path: Path) -> None:
    write_data(tmp_path)
    write_caches(tmp_path, views=3)
    setup = prepare_retrieval(pair_config(tmp_path))
    located = setup.splits["train"]
    assert (located.text.shape[1], located.media.shape[1]) == (3, 3)
    assert setup.splits["dev"].media.shape[1] == 1
    samples = np.unique(np.concatenate([located.media, located.text[: len(located.media)]]))
    assert len(samples) > 3 * len(located.media) / 2
    clean = prepare_retrieval(pair_config(tmp_path, views=1)).splits["train"]
    assert np.array_equal(clean.media[:, 0], located.media[:, 0])
    for out, views in (("clean", 1), ("several", None)):
        train_retrieval(pair_config(tmp_path, out=out, views=views, epochs=2))
    assert not same_weights(tmp_path / "clean", tmp_path / "several")


def test_an_input_without_cached_views_stands_for_its_own_views() -> None:
    known = {view_key(b"a" * 16, 0): 3, view_key(b"a" * 16, 1): 5, view_key(b"b" * 16, 0): 7}

    class Views:
        path = Path("some.zarr")
        row_to_sample = np.zeros((2, 2), np.int64)

        def find(self, keys: Any) -> Any:
            return np.array([known.get(key.tobytes(), -1) for key in keys])

    found = find_views(Views(), [b"a" * 16, b"b" * 16, b"c" * 16])  # type: ignore[arg-type]
    assert found.tolist() == [[3, 5], [7, 7], [-1, -1]]


def test_an_example_is_a_caption_with_its_own_item(tmp_path: Path) -> None:
    config = pair_config(tmp_path)
    setup = prepare_retrieval(config)
    located = setup.splits["train"]
    loader = make_pair_loader(config, setup)
    batch = next(loader.epoch(0))
    owner = located.media[located.split.item_of[batch.index.numpy()], 0]
    read = setup.caches["media"].read(owner, ("block.0",))["block.0"]
    assert torch.equal(batch.parts["media"].states["block.0"], read)
    texts = located.text[batch.index.numpy(), 0]
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
    result = train_retrieval(config)
    assert result.metrics["test"]["rsum"] > 1.3 * by_chance(config)["rsum"]


def test_gradients_flow_into_every_trained_number(tmp_path: Path) -> None:
    for layout, text in (("map", "tokens"), ("clip", "clip")):
        config = pair_config(tmp_path, layout, text=text, epochs=1, text_pooling="gpo")
        setup = prepare_retrieval(config)
        torch.manual_seed(config.seed)
        before = build_towers(config, setup).state_dict()
        train_retrieval(pair_config(tmp_path, layout, text=text, epochs=1, text_pooling="gpo"))
        after = load_file(tmp_path / "run" / "model.safetensors")
        still = {name for name in after if torch.equal(after[name], before[name])}
        free = {"log_scale"} | {name for name in after if "bias" in name and "gate" in name}
        assert still <= free  # a gate's bias cannot change a softmax
        (tmp_path / "run" / "run.json").unlink()
        (tmp_path / "run" / "checkpoint.pt").unlink()


def test_statistics_are_those_of_the_training_states(tmp_path: Path) -> None:
    train_retrieval(pair_config(tmp_path, "map", epochs=1))
    config = pair_config(tmp_path, "map")
    setup = prepare_retrieval(config)
    model = Run.open(tmp_path / "run").towers()
    text, media = setup.splits["train"].text[:, 0], setup.splits["train"].media[:, 0]
    states = setup.caches["text"].read(np.unique(text), ("layer.0",))["layer.0"].double()
    mean = model.text.side.target_down.linear.get_buffer("mean_8")[0]
    torch.testing.assert_close(mean.double(), states.mean(0), atol=1e-5, rtol=1e-5)
    maps = setup.caches["media"].read(np.unique(media), ("stage.2",))["stage.2"].double()
    scale = model.media.side.standard[-1].scale
    wanted = maps.movedim(1, -1).flatten(0, 2).std(0, correction=0)
    torch.testing.assert_close(scale.double(), wanted, atol=1e-5, rtol=1e-5)


def test_recipes_are_the_published_settings_and_options_win(tmp_path: Path) -> None:
    def values(recipe: str, **changes: Any) -> RetrievalTrainConfig:
        given = settings(tmp_path)
        kept = {k: given[k] for k in ("data", "text_cache", "media_cache", "out")}
        return RetrievalTrainConfig.build(kept | {"recipe": recipe} | changes)

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
    assert RetrievalTrainConfig.build(own.model_dump(mode="json")) == own
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
        config = RetrievalTrainConfig.build(
            {"recipe": recipe, "data": {"train": tmp_path / "captions.csv"}} | places
        )
        return round(sum(p.numel() for p in build_towers(config, setup).parameters()) / 1e6, 1)

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
    config = pair_config(tmp_path, loss="hinge")
    media, text = (F.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    every, hardest = (hinge_loss(media, text, negatives=kind) for kind in ("all", "hardest"))

    def at(epoch: int, batch: int) -> float:
        now = Progress(epoch=epoch, batch=batch)
        return _hinge(config, media, text, ignore=None, now=now, batches=8).item()

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
            train_retrieval(pair_config(tmp_path, **changes))
    given = settings(tmp_path)
    swapped = {"text_cache": given["media_cache"], "media_cache": given["text_cache"]}
    with pytest.raises(ConfigError, match="grid taps, which are no text's; did text_cache and"):
        train_retrieval(pair_config(tmp_path, **swapped))
    with pytest.raises(ConfigError, match="maps have none"):
        train_retrieval(pair_config(tmp_path, "map", media_drop=0.1))
    assert not (tmp_path / "run").exists()


def test_missing_items_are_counted_or_left_out_if_asked(tmp_path: Path) -> None:
    config = pair_config(tmp_path, epochs=1)
    file = tmp_path / "captions.csv"
    for number in range(ITEMS, ITEMS + 6):
        (tmp_path / f"{number:03}.png").write_bytes(b"new %d" % number)
        with file.open("a") as lines:
            lines.write(f"{number:03}.png,thing 0 number 0\n")
    with pytest.raises(MissingInputs, match=r"items of the split .* are not in the cache") as error:
        train_retrieval(config)
    assert "bad_media: skip" in str(error.value)
    assert not (tmp_path / "run").exists()
    data = settings(tmp_path)["data"] | {"bad_media": "skip"}
    result = train_retrieval(pair_config(tmp_path, epochs=1, data=data))
    examples = Run.open(result.path).info["examples"]
    assert sum(split["items"] for split in examples.values()) == ITEMS
    with file.open("a") as lines:
        lines.write("000.png,a caption nobody cached\n")
    with pytest.raises(MissingInputs, match=r"1 of .* captions .*'a caption nobody cached'"):
        train_retrieval(pair_config(tmp_path, out="other", epochs=1, data=data))


def test_equal_items_and_captions_are_no_negatives(tmp_path: Path) -> None:
    """Where every item has the same caption, masking leaves no negative and so no loss."""
    write_data(tmp_path, items=12, captions=1)
    rows = [f"{item:03}.png,thing 0 number 0" for item in range(12)]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    write_caches(tmp_path, items=12, captions=1)
    train_retrieval(pair_config(tmp_path, epochs=1))
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == 0.0
    train_retrieval(pair_config(tmp_path, out="plain", epochs=1, mask_positives=False))
    assert read_lines(tmp_path / "plain" / "metrics.jsonl")[0]["loss"] > 0.1


def test_training_never_imports_transformers(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "sys.modules['transformers'] = None\n"
        "from pipeline.retrieval.train import RetrievalTrainConfig, train_retrieval\n"
        "from pipeline.evaluate import EvaluateConfig, evaluate\n"
        "from pipeline.retrieval.ridge import ridge\n"
        "config = RetrievalTrainConfig.build(json.loads(sys.argv[1]))\n"
        "train_retrieval(config); evaluate(EvaluateConfig(run=config.out, resamples=2))\n"
        "ridge(config, 'last', resamples=2)\n"
        "assert sys.modules['transformers'] is None\n"
        "assert not {'PIL', 'av', 'torchvision', 'timm'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", code, json.dumps(settings(tmp_path, epochs=1))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
