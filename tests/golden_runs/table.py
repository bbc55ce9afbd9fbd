"""Everything of equimid that the golden runs name: where a refactor renames it, it is changed here and nowhere else.

The cases' own names (the keys) stay, since the records go by them.
"""

from importlib import import_module
from typing import Any

# ---- functions: module and name -------------------------------------------------------------------------------------

CALLS = {
    "main": "equimid.cli:main",  # the command line: words from sys.argv
    "configured": "equimid.recipes:configured",  # (recipe, settings) to a configuration
    "flatten": "equimid.config:flatten",  # (configuration) to {dotted setting: plain value}
    "pretrain": "equimid.runs.pretrain:pretrain",  # (configuration, folder, finish=False)
    "recipe names": "equimid.recipes:names",  # () to all rows in all sizes
    "bases": "equimid.recipes:BASES",
    "add-ons": "equimid.recipes:ADDITIONS",
    "sizes": "equimid.recipes:SIZES",
}


def call(name: str) -> Any:
    """What CALLS names."""
    module, _, attribute = CALLS[name].partition(":")
    return getattr(import_module(module), attribute)


# ---- files that a run leaves ----------------------------------------------------------------------------------------

WEIGHTS = "checkpoints/step-*/model*.safetensors"  # several under FSDP, each with some rows
OPTIMIZER = "checkpoints/step-*/optimizer*.safetensors"
BACKBONE, BACKBONE_CONFIG = "backbone/model.safetensors", "backbone/config.json"
CHECKPOINT_KEY = "checkpoint"  # of BACKBONE_CONFIG: a hash of a file that holds the names of parameters too
SCALARS = "tensorboard/events.*"  # float32 without rounding; metrics.csv has eight digits
RECORDS = "records.jsonl"

# times, and what counts steps
UNCOMPARED_SCALARS = {"seconds", "images_per_second", "waiting", "step", "epoch"}
# details of records that are spelled as settings or paths
SPELLED = {"settings", "train"}
# evaluations that are called otherwise than when the records were made
RECORDED_AS: dict[str, str] = {}

# ---- runs: recipe and settings --------------------------------------------------------------------------------------

STEPS = 12
_RUN = [
    f"train.steps={STEPS}", "train.batch_size=16", "optim.warmup_epochs=1", "runtime.accelerator=cpu",
    "runtime.precision=fp32", "runtime.threads=1", "runtime.workers=0", "runtime.log_every=1",
    "runtime.keep_checkpoints=1",
]  # fmt: skip
ONE = [*_RUN, "runtime.devices=1"]
TWO = [*_RUN, "runtime.devices=2"]

# all on 97 image files, one of which cannot be read
TRAININGS: dict[str, tuple[str, list[str]]] = {
    # every base
    "mocov3": ("mocov3-tiny", []),
    "dino": ("dino-tiny", ["backbone.drop_path=0.1", "optim.clip=0.3", "views.local.count=4"]),
    "barlow, lars": ("barlow-published-tiny", []),
    "vicreg": ("vicreg-tiny", []),
    "byol": ("byol-tiny", []),
    # every add-on, most of them on another base
    "ser": ("ser-tiny", []),
    "dino + ser": ("dino+ser-tiny", []),
    "barlow + augself": ("barlow+augself-tiny", []),
    "simclr + equimod": ("simclr+equimod-tiny", []),
    "vicreg + essl": ("vicreg+essl-tiny", []),
    "simsiam + stl": ("simsiam+stl-tiny", []),
    "ser + augself + stl": ("ser-tiny", ["augself.weight=0.5", "augself.pool=cls", "augself.layer=4", "stl.weight=1"]),
    # views
    "ser, 3 views": ("ser-3view-tiny", []),
    "ser, 2 + 4 views": ("ser-multicrop-tiny", []),
    # layers
    "ser, layer 9": ("ser-layer9-cls9-tiny", []),
    "ser, two layers": ("ser-tiny", ["ser.layers=1,4", "ser.layer_weights=1,0.5"]),
    "augself, layer 3": ("mocov3+augself@3-tiny", []),
    # forms of SER
    "ser, any grid, all negatives": ("ser-tiny", ["ser.grids=0", "ser.negatives=all"]),
    "ser, as released": (
        "ser-tiny",
        ["ser.form=cross_view", "ser.complement=true", "ser.source=shared_crop", "ser.detached=true"],
    ),
    # the engine
    "ser, workers, two micro-batches": (
        "ser-tiny",
        ["runtime.workers=2", "train.accumulate=2", "optim.clip=1", "runtime.checkpoint_activations=true"],
    ),
    "ser, bf16": ("ser-tiny", ["runtime.precision=bf16"]),
}
PACKED = "mocov3, from shards"
PACKED_TRAINING = ("mocov3-tiny", ["data.shuffle=shards", "data.shards_at_once=2"])
# two processes on one machine, gloo
PROCESSES: dict[str, tuple[str, list[str]]] = {
    "ser, ddp": ("ser-tiny", []),
    "stl, ddp": ("stl-tiny", []),
    "ser, fsdp": ("ser-tiny", ["runtime.strategy=fsdp"]),
}
DATA = "data.source"

# ---- command lines --------------------------------------------------------------------------------------------------

# by the folder of images: some are made smaller; some fill several shards
PACK = {
    "files": ["pack", "files", "{out}", "--short-side", "40", "--workers", "1"],
    "large": ["pack", "large", "{out}", "--short-side", "0", "--shard-mib", "1", "--workers", "1"],
}

# the run whose network is measured; its routine measurements are a case of their own
MEASURED = [
    "pretrain", "labelled", "--recipe", "ser-tiny", "--out", "run", *ONE, "backbone.depth=3",
    "evaluation.linear_epochs=4", "evaluation.equivariance_images=6", "evaluation.knn_k=5",
    "evaluation.equivariance.angles=[]",
]  # fmt: skip
MEASURE = ["evaluate", "--data", "{data}", "--out", "{out}"]
_MEASURE = ["runtime.accelerator=cpu", "runtime.devices=1", "runtime.threads=1", "runtime.workers=0"]
_OF_THE_RUN = ["--model", "run", "--random", *_MEASURE]
_SHORT = ["evaluation.linear_epochs=12", "evaluation.linear_batch=16"]
_BOXES = [
    "evaluation.detection.steps=90", "evaluation.detection.batch_size=4", "evaluation.detection.image_size=32",
    "evaluation.detection.width=8", "evaluation.detection.proposals=20", "evaluation.detection.anchor=8",
    "evaluation.detection.rate=0.004",
]  # fmt: skip
# by name: images, and the words that are added to MEASURE
MEASUREMENTS: dict[str, tuple[str, list[str]]] = {
    "probes": (
        "labelled",
        [
            "knn", "linear", "logistic", "mlp", "fewshot", "attentive", *_OF_THE_RUN, *_SHORT, "evaluation.knn_k=5",
            "evaluation.mlp_epochs=3", "evaluation.mlp_width=64", "evaluation.attentive_epochs=2",
            "evaluation.fewshot_per_class=1,3", "evaluation.fewshot_draws=2",
        ],
    ),
    "linear on crops": (
        "labelled",
        [
            "linear", *_OF_THE_RUN, "evaluation.linear_crops=true", "evaluation.linear_epochs=2",
            "evaluation.linear_batch=16", "evaluation.linear_features=last4",
        ],
    ),
    "equivariance": (
        "labelled",
        [
            "equivariance", "correspondence", "pose-probe", "map-norms", *_OF_THE_RUN,
            "evaluation.equivariance_images=8", "evaluation.equivariance.angles=15",
            "evaluation.equivariance.correspondence_images=6", "evaluation.equivariance.probe_layers=2",
        ],
    ),
    "robustness": (
        "labelled",
        [
            "geometry", "corruptions", *_OF_THE_RUN, *_SHORT, "evaluation.robustness.severities=1,5",
            "evaluation.robustness.images=24", "evaluation.robustness.angles=0,15,90",
        ],
    ),
    "imagenet-c": ("imagenet-c", ["imagenet-c", "--train", "labelled/train", *_OF_THE_RUN, *_SHORT]),
    "imagenet-p": ("imagenet-p", ["imagenet-p", "--train", "labelled/train", *_OF_THE_RUN, *_SHORT]),
    "variants": (
        "labelled/test",
        [
            "imagenet-v2", "imagenet-r", "imagenet-sketch", "imagenet-a", "--train", "labelled/train", *_OF_THE_RUN,
            *_SHORT,
        ],
    ),
    "detection, voc": ("voc", ["detection", *_OF_THE_RUN, *_BOXES]),
    "detection, coco": ("coco", ["detection", *_OF_THE_RUN, *_BOXES]),
    "segmentation": (
        "segmentation",
        ["segmentation", *_OF_THE_RUN, "evaluation.segmentation.epochs=2", "evaluation.segmentation.pixels=64"],
    ),
    "pictures": ("labelled", ["feature-maps", "attention", "neighbours", "explorer", *_OF_THE_RUN]),
    "a network of timm's": (
        "labelled",
        [
            "knn", "equivariance", "--model", "timm:test_vit", "--weights", "random", *_MEASURE,
            "evaluation.knn_k=5", "evaluation.equivariance_images=4", "evaluation.equivariance.angles=[]",
        ],
    ),
}  # fmt: skip
ROUTINE = "routine"
