"The table of all models that the experiments train: name -> data, what changes in the preset's model and training, seeds."
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Condition:
    "One model to train, as it differs from a preset."

    data: str
    "name of the preset, whose data they are; `interleaved glyphs` are glyphs with their rows and columns interleaved"
    model: dict = field(default_factory=dict)
    "changes of the preset's model"
    training: dict = field(default_factory=dict)
    "changes of the preset's training"
    seeds: tuple[int, ...] = (0, 1, 2)
    "one run for each"
    learned_rotation: bool = False
    "train the rotation of the channels with the rest, from the identity, in place of a fixed basis"
    order: Literal["pixel by pixel", "checkerboard"] | None = None
    "of a token's channels, in place of a basis: its pixels one by one, each with its red, green and blue, or every second pixel first"
    largest_log_scale: float | None = None
    "limit of the flow's log-scales, which approach it smoothly; None: without limit"


# The paper's small twins: equal steps on equal data. Models that are compared have equal numbers of weights within 2% (with
# patches of 8: 4%), balanced by the number of mixture components, or by the width for TarFlow.
TWINS = {"steps": 1200, "evaluate_every": 1200, "save_every": 300}
NO_PARTITION = {"informative_channels": None, "components": 35}
PLAIN = {"condition_repeats": 1, "final_order_flip": False}
PAPER = {
    "glyphs, FARMER": {},
    "glyphs, no partition": NO_PARTITION,
    "glyphs, JetFormer's reduction": {"redundant": "standard-normal", "components": 56},
    "glyphs, TarFlow": {"prior": "standard-normal", "flow_blocks": 5, "flow_width": 78, "prior_width": 78, "head_width": 26},
    "glyphs, coupling flow": {"flow": "coupling"},
    "glyphs, none": NO_PARTITION | PLAIN,
    "glyphs, partition": PLAIN,
    "glyphs, partition, condition": {"final_order_flip": False},
    "glyphs, partition, order flip": {"condition_repeats": 1},
    "digits, FARMER": {},
    "digits, no partition": {"informative_channels": None, "components": 34},
    "digits, JetFormer's reduction": {"redundant": "standard-normal", "components": 44},
    "digits, TarFlow": {"prior": "standard-normal", "flow_blocks": 5, "flow_width": 72, "prior_width": 72, "head_width": 24},
    "digits, coupling flow": {"flow": "coupling"},
}
# The preset of `glyphs` turns the channels of a token onto principal components, which the paper does not. Without that:
RAW = {f"glyphs on raw channels, {name}": PAPER[f"glyphs, {name}"] | {"basis": "pixels"} for name in ("FARMER", "coupling flow", "TarFlow", "no partition")}
FIGURE_6 = {f"{name} {value}": {name: value} for name, values in {"components": (1, 64), "informative_channels": (2, 13)}.items() for value in values}
# The paper's comparison of flows asked again under other conditions, each with an autoregressive and a coupling flow.
FLOWS = {
    "digits, patch 4": ({"patch_size": 4, "informative_channels": 10}, (0, 1, 2)),
    "glyphs, patch 8": ({"patch_size": 8, "informative_channels": 40}, (0, 1, 2)),
    "glyphs, patch 2": ({"patch_size": 2, "informative_channels": 3}, (0,)),
    "glyphs, 8 blocks": ({"flow_blocks": 8}, (0,)),
    "glyphs, 64 components": ({"components": 64}, (0, 1, 2)),
    "interleaved glyphs, patch 4": ({}, (0, 1, 2)),
}

WHOLE = {"digits": {"evaluate_every": 2000, "save_every": 2000}}  # the presets' steps
WHOLE["glyphs"] = {"evaluate_every": 3000, "save_every": 3000}
# `photos` with three seeds, beside TarFlow: a third of the preset's steps, and no dropout.
NO_DROPOUT = {"dropout": 0.0}
THIRD = {"steps": 3000}
MUON = {"optimizer": "muon", "learning_rate": 6e-3}  # twice the preset's rate
PHOTOS_TARFLOW = {"prior": "standard-normal", "flow_blocks": 10, "flow_width": 108, "prior_width": 108, "head_width": 36}
# Does the likelihood alone find the split? Depth of the flow and share of the informative channels for the two extremes.
BASIS_KINDS = ("luma-chroma", "pca", "pixels")
SHORT = {"steps": 1200, "evaluate_every": 1200, "save_every": 300}
BASES = {
    **{basis: {"basis": basis} for basis in BASIS_KINDS},
    **{f"{basis}, {blocks} blocks": {"basis": basis, "flow_blocks": blocks} for basis in ("luma-chroma", "pixels") for blocks in (2, 12)},
    **{f"{basis}, half informative": {"basis": basis, "informative_channels": 24} for basis in ("luma-chroma", "pixels")},
}
# What keeps samples from running away?
BLOW_UP = {
    "plain": {},
    "dropout": {"model": {"dropout": 0.1}},
    "noise floor": {"training": {"noise_end": 0.01}},
    "bounded scales": {"largest_log_scale": 3.0},
    "more noise at the start": {"training": {"noise_start": 0.3}},
}
PROTOTYPE = {"scale_first_token": False}
CORNERS = {"steps": 1500, "evaluate_every": 1500, "save_every": 1500}

CONDITIONS = {
    **{f"paper, {name}": Condition(name.split(",")[0], changes, TWINS) for name, changes in PAPER.items()},
    **{f"paper, {name}": Condition("glyphs", changes, TWINS) for name, changes in RAW.items()},
    **{
        f"paper, glyphs on raw channels, {name}, checkerboard": Condition("glyphs", RAW[f"glyphs on raw channels, {name}"], TWINS, order="checkerboard")
        for name in ("FARMER", "coupling flow")
    },
    **{f"figure 6, {name}": Condition("glyphs", changes, TWINS, (0, 1, 2) if "informative_channels" in changes else (0,)) for name, changes in FIGURE_6.items()},
    **{
        f"flows, {name}, {flow}": Condition(name.split(",")[0], changes | {"flow": flow}, TWINS, seeds)
        for name, (changes, seeds) in FLOWS.items()
        for flow in ("autoregressive", "coupling")
    },
    "results, digits, FARMER": Condition("digits", {}, WHOLE["digits"]),
    "results, digits, TarFlow": Condition("digits", PAPER["digits, TarFlow"], WHOLE["digits"]),
    "results, glyphs, FARMER": Condition("glyphs", {}, WHOLE["glyphs"]),
    "results, photos, FARMER": Condition("photos", NO_DROPOUT, THIRD),
    "results, photos, TarFlow": Condition("photos", PHOTOS_TARFLOW | NO_DROPOUT, THIRD),
    "attempts, photos, dropout": Condition("photos", {}, THIRD, (0,)),
    "attempts, photos, more noise at the start": Condition("photos", NO_DROPOUT, THIRD | {"noise_start": 0.3}, (0,)),
    "attempts, photos, Muon": Condition("photos", NO_DROPOUT, THIRD | MUON, (0,)),
    **{
        f"attempts, photos, {optimizer}dropout, three times the steps{on}": Condition("photos", {"basis": basis}, training, (0,))
        for basis, on in (("luma-chroma", ""), ("pca", ", principal components"), ("pixels", ", raw channels"))
        for optimizer, training in (("", {}), ("Muon, ", MUON))
    },  # without Muon, the presets of the embedded models
    **{f"bases, photos, {name}": Condition("photos", changes | NO_DROPOUT, SHORT, (0, 1, 2) if name in BASIS_KINDS else (0,)) for name, changes in BASES.items()},
    **{f"bases, cifar10-small, {basis}": Condition("cifar10-small", BASES[basis], SHORT, (0,)) for basis in BASIS_KINDS},
    "results, cifar10-small, FARMER": Condition("cifar10-small", seeds=(0,)),
    "results, cifar10-small, FARMER, more noise at the start": Condition("cifar10-small", training={"noise_start": 0.3}, seeds=(0,)),
    "results, cifar10-small, TarFlow": Condition("cifar10-small", PHOTOS_TARFLOW, seeds=(0,)),
    **{
        f"blow-up, cifar10-small, {name}": Condition("cifar10-small", **changes | {"training": SHORT | changes.get("training", {})}, seeds=(0,))
        for name, changes in BLOW_UP.items()
    },
    "bases, photos, learned rotation": Condition("photos", {"basis": "pixels"} | NO_DROPOUT, SHORT, learned_rotation=True),
    "bases, photos, pixel by pixel": Condition("photos", {"basis": "pixels"} | NO_DROPOUT, SHORT, order="pixel by pixel"),
    **{
        f"colour, {data}, {name}": Condition(data, changes, training, seeds)
        for data in ("glyphs-field", "glyphs-palette")
        for name, changes, training, seeds in (
            ("luma-chroma", {}, {}, (0, 1, 2)),
            ("pca", {"basis": "pca"}, {}, (0,)),
            ("pixels", {"basis": "pixels"}, {}, (0,)),
            ("prototype", PROTOTYPE, {"steps": 1500}, (0,)),  # a quarter of the steps, and the paper's unscaled first token
        )
    },
    "guidance, 128 channels": Condition("glyphs-field", {"patch_size": 8, "informative_channels": 128}, CORNERS, (0,)),
    "corners, passed unchanged": Condition("glyphs-palette", PROTOTYPE, CORNERS, (0, 1)),
    "corners, learned constants": Condition("glyphs-palette", {}, CORNERS, (0, 1)),
}


def conditions(prefix: str) -> dict[str, Condition]:
    "Those whose name begins with `prefix`, by the rest of their names."
    return {name.removeprefix(prefix): condition for name, condition in CONDITIONS.items() if name.startswith(prefix)}
