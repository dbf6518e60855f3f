"""Extraction: inputs -> frozen backbone -> cache. The one stage that runs the backbone.

Cost: one forward pass over each unique input, and its states on disk (taps x width x 2 bytes a
token in float16; a ViT-B/32 frame 1 MB, ResNeXt stages at 512 px 15.7 MB). Memory is flat in the
number of inputs: token ids (5 bytes a token) or paths, a few batches of pixels, and at most two
shards of states. How shards are filled is in `pipeline.extraction`.
"""

from pipeline.extraction.config import ExtractConfig
from pipeline.extraction.fill import ExtractionInterrupted, extract_inputs
from pipeline.extraction.job import RESUME
from pipeline.extraction.report import ExtractReport, ProgressCallback
from pipeline.extraction.rows import Source

__all__ = ["ExtractConfig", "ExtractReport", "extract", "extract_inputs"]


def extract(config: ExtractConfig, *, progress: ProgressCallback | None = None) -> ExtractReport:
    """Extract every input that the backbone can read into the cache `config.out`, or go on.

    Args:
        config: data, backbone, taps, storage and folder.
        progress: called after every forward pass, or every shard of several workers.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        ConfigError: no tower of the task reads what the backbone does, or a pattern of
            `config.store_dtype_of` matches no tap.
        BadMedia: images or videos cannot be read, and none may be skipped.
        InputFailed: an image or video failed or changed during the run.
        NotEnoughDisk: the cache would not fit, and `config.force` is off.
        FingerprintMismatch: `config.out` holds another cache.
        ActivationOverflow: a state does not fit its storage type.
        WorkersFailed, OtherBackbone: workers cannot be reached, died, or compute something else.
        ExtractionInterrupted: Ctrl-C; finished shards are kept.
    """
    try:
        source = Source.of(config)
        backbone = source.loader()()
        rows = source.rows(backbone)
        return extract_inputs(
            backbone,
            rows.inputs,
            config.out,
            views=rows.views,
            augmented=rows.augmented,
            bad_media=rows.bad_media,
            store_dtype=config.storage(backbone),
            compress=config.compress,
            seed=config.seed,
            batch_bound=config.batch_bound(backbone),
            block_tokens=config.block_tokens,
            force=config.force,
            pool=config.worker_pool(source.usual, source.facts),
            threads=config.threads,
            progress=progress,
        )
    except ExtractionInterrupted:
        raise
    except KeyboardInterrupt as stop:
        raise ExtractionInterrupted(f"stopped; {RESUME}") from stop
