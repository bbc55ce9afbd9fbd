"""Everything that can be measured: one object for each measurement, in the order of the page and of the command line.

To add a measurement, write its function in a module of this room and add one entry here; the page then shows its
records as a table of scores. Functions are imported when they run, so that this file needs no torch.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from equimid.errors import UserError
from equimid.records import Record, Subject

if TYPE_CHECKING:
    from equimid.evaluation.study import Study

__all__ = ["MEASUREMENTS", "Headline", "Measurement", "find_measurement", "measurement_of"]

# titles of metrics that several measurements have
_METRICS = {"top1": "top-1", "mean_top1": "mean top-1", "picture": "picture"}


@dataclass(frozen=True)
class Headline:
    """What stands for a measurement where runs are compared over seeds: its records of one metric.

    Attributes:
        metric:  of the records.
        title:   on the page; "" = the titles of the measurement and of the metric.
        details: {detail: value} that the records must have.
        each:    a detail of which every value is a headline of its own; of "layer" those that SER acts on, and the
                 last.
        mean:    a detail that tells several records apart; the headline is their mean.
        text:    what it is, in a sentence on the page; "" where the title says it.
    """

    metric: str = "top1"
    title: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    each: str = ""
    mean: str = ""
    text: str = ""


@dataclass(frozen=True)
class Measurement:
    """All that is known of one measurement.

    Attributes:
        name:       on the command line.
        title:      on the page, within a sentence.
        text:       what it measures, one line.
        function:   "module:name" below equimid.evaluation, of (study, data, train) -> records.
        references: subjects that are measured beside the network by default.
        settings:   those of the group `evaluation` that it reads: how their keys begin, such as "knn_".
        section:    id of the page's section that shows its records; one that the page does not know shows a table of
                    scores, as "evaluation" does.
        headlines:  what stands for it where runs are compared over seeds; () = nothing.
        metrics:    {metric: its title}, where that is not the metric's name with spaces.
        evaluation: what its records call it; "" = the name with "_" for "-".
    """

    name: str
    title: str
    text: str
    function: str
    references: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    section: str = "evaluation"
    headlines: tuple[Headline, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    evaluation: str = ""

    def run(self, study: "Study", data: str, train: str | None) -> list[Record]:
        """The records of a network on these data; see `equimid.evaluation.study`."""
        module, name = self.function.split(":")
        function: Any = getattr(import_module(f"equimid.evaluation.{module}"), name)
        records: list[Record] = function(study, data, train)
        return records

    def metric_title(self, metric: str) -> str:
        """A metric's title on the page: "mAP", "mean top-1"."""
        return self.metrics.get(metric) or _METRICS.get(metric) or metric.replace("_", " ")


_TOP1: Mapping[str, Any] = {"headlines": (Headline(),)}
_RANDOM = (Subject.RANDOM,)
_PIXELS = (Subject.RANDOM, Subject.PIXELS)
_PROBE = ("held_out", "linear_features")
_LINEAR = ("held_out", "linear_")
_ROBUST: Mapping[str, Any] = {"section": "robustness", "settings": _LINEAR}
_OTHER_SET = {**_ROBUST, **_TOP1, "metrics": {"top1_all": "top-1 among all classes"}}
# quarter turns stand for equivariance: they are exact, without resampling
_TURNS = {"kind": "quarter turns"}
_PLACE = (
    "Place: the cosine, patch by patch, of the map of a turned image and the turned map of the image, after the mean "
    "token of each image is taken away; of quarter turns."
)
_RETRIEVAL = (
    "Retrieval: how often the partner of a patch is the nearest of all patches of the turned image; of quarter turns."
)
_CORRESPONDENCE = "Correspondence: retrieval on the images that correspondence is measured on; of quarter turns."

_ALL = (
    Measurement("knn", "kNN", "weighted nearest neighbours", "probes:measure_knn", _PIXELS, ("knn_",),
                **_TOP1),
    Measurement("linear", "linear", "linear probe, a grid of learning rates", "probes:measure_linear", _PIXELS,
                _LINEAR, **_TOP1),
    Measurement("logistic", "logistic", "logistic regression, a grid of penalties", "probes:measure_logistic", _RANDOM,
                _PROBE, **_TOP1),
    Measurement("mlp", "MLP", "two-layer probe", "probes:measure_mlp", _RANDOM, ("mlp_", *_PROBE),
                **_TOP1),
    Measurement("attentive", "attentive", "a learned query's attention over the tokens", "probes:measure_attentive",
                _RANDOM, ("attentive_", "held_out"), **_TOP1),
    Measurement("fewshot", "few-shot", "logistic regression on 1, 5 and 10 images a class", "probes:measure_fewshot",
                _RANDOM, ("fewshot_", "linear_features"), headlines=(Headline(each="per_class"),)),
    Measurement("corruptions", "generated corruptions", "accuracy under generated corruptions: 15 kinds, or 19",
                "robustness:measure_generated", section="robustness",
                settings=("robustness.kinds", "robustness.severities", "robustness.images", *_LINEAR),
                headlines=(Headline("mean_top1"),), evaluation="generated_corruptions"),
    Measurement("imagenet-c", "ImageNet-C", "ImageNet-C: top-1 and mCE; needs --train",
                "robustness:measure_imagenet_c", **_ROBUST, headlines=(Headline("mean_top1"), Headline("mce")),
                metrics={"ce": "CE", "mce": "mCE"}),
    Measurement("imagenet-p", "ImageNet-P", "ImageNet-P: flip rate, top-5 distance; needs --train",
                "robustness:measure_imagenet_p", settings=("robustness.alexnet_p", *_LINEAR), section="robustness",
                headlines=(Headline("mean_top1"), Headline("mfr")),
                metrics={"top5_distance": "top-5 distance", "mfr": "mFR", "mt5d": "mT5D"}),
    Measurement("imagenet-v2", "ImageNet-V2", "ImageNet-V2; needs --train", "robustness:measure_v2", **_OTHER_SET),
    Measurement("imagenet-r", "ImageNet-R", "ImageNet-R; needs --train", "robustness:measure_r", **_OTHER_SET),
    Measurement("imagenet-sketch", "ImageNet-Sketch", "ImageNet-Sketch; needs --train", "robustness:measure_sketch",
                **_OTHER_SET),
    Measurement("imagenet-a", "ImageNet-A", "ImageNet-A; needs --train", "robustness:measure_a", **_OTHER_SET),
    Measurement("geometry", "geometry", "accuracy under turns, flips, scales and any angle",
                "robustness:measure_geometry", _RANDOM,
                ("robustness.angles", "robustness.images", "equivariance.interpolation", *_LINEAR), "geometry",
                (Headline(title="geometry, mean top-1 over quarter turns", details=_TURNS, mean="pose"),
                 Headline(title="geometry, mean top-1 over angles", details={"kind": "angle"}, mean="pose"))),
    Measurement("detection", "detection", "Faster R-CNN over frozen tokens; VOC or COCO boxes",
                "detection:measure_detection", _RANDOM, ("detection.", "robustness.images"), "dense",
                (Headline("map"),),
                {"map": "mAP", "map_50": "mAP at IoU 0.50", "map_75": "mAP at IoU 0.75",
                 "mar_100": "mAR, 100 boxes", "map_posed": "mAP in other poses", "map_drop": "drop of mAP"}),
    Measurement("segmentation", "segmentation", "linear segmentation on tokens; images/ and masks/",
                "segmentation:measure_segmentation", _RANDOM,
                ("segmentation.", "robustness.images", "equivariance.interpolation", "held_out"), "dense",
                (Headline("miou"),),
                {"miou": "mean IoU", "iou": "IoU", "miou_posed": "mean IoU in other poses",
                 "miou_drop": "drop of mean IoU"}),
    Measurement("equivariance", "equivariance", "every layer under every pose", "equivariance:measure_equivariance",
                _RANDOM, ("equivariance_images", "equivariance.interpolation", "equivariance.angles"), "equivariance",
                (Headline("place", "place", _TURNS, each="layer", text=_PLACE),
                 Headline("retrieval", "retrieval", _TURNS, each="layer", text=_RETRIEVAL)),
                {"retrieval_near": "retrieval within one patch"}),
    Measurement("correspondence", "correspondence", "the same patch found again in a transformed image",
                "equivariance:measure_correspondence", (Subject.RANDOM, Subject.PATCH_COLOURS), ("equivariance.",),
                "correspondence",
                (Headline(title="correspondence, top-1 within the image", details=_TURNS | {"among": "image"},
                          each="layer", text=_CORRESPONDENCE),),
                {"near_top1": "top-1 within one patch"}),
    Measurement("pose-probe", "pose probe", "how well turn and flip can be read", "equivariance:measure_pose_probe",
                _RANDOM, ("equivariance_images", "equivariance.probe_layers"), "pose-probe",
                (Headline(title="turn read from the map", details={"target": "turn", "from": "map"}, each="layer"),)),
    Measurement("map-norms", "map norms", "mean length of the tokens of every layer's map",
                "map_norms:measure_map_norms", _RANDOM, ("equivariance_images",), "map-norms",
                (Headline("norm", "length of a token", each="layer"),), {"norm": "length of a token"}),
    Measurement("feature-maps", "feature maps", "pictures: token maps under a pose", "figures:draw_feature_maps",
                section="feature-maps", metrics={"picture": "token maps"}),
    Measurement("attention", "attention", "pictures: what CLS attends to in the last block", "figures:draw_attention",
                section="attention", metrics={"picture": "what the class token attends to"}),
    Measurement("neighbours", "nearest neighbours", "pictures: nearest neighbours", "figures:draw_neighbours",
                section="neighbours", metrics={"picture": "images and those nearest to them"}),
    Measurement("explorer", "explorer", "token maps under every pose of a small set, for the page to explore",
                "figures:record_explorer", section="explore"),
)  # fmt: skip
MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _ALL}


def find_measurement(name: str) -> Measurement:
    """
    Raises:
        UserError: there is none of that name.
    """
    if name not in MEASUREMENTS:
        near = difflib.get_close_matches(name.replace("_", "-"), MEASUREMENTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(MEASUREMENTS)}"
        raise UserError(f"there is no measurement {name!r}{hint}")
    return MEASUREMENTS[name]


def measurement_of(evaluation: str) -> Measurement:
    """The measurement whose records have this `evaluation`; for records of another program one without settings."""
    known = MEASUREMENTS.get(evaluation.replace("_", "-"))
    known = known or next((m for m in MEASUREMENTS.values() if m.evaluation == evaluation), None)
    title = evaluation.replace("_", " ")
    return known or Measurement(evaluation, title, title, "", evaluation=evaluation)
