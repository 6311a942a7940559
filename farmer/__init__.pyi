"What type checkers and editors know of the package: its names and modules are loaded when first used."
from . import (
    analysis as analysis,
    batches as batches,
    checkpoints as checkpoints,
    checks as checks,
    cli as cli,
    data as data,
    demo as demo,
    distributed as distributed,
    evaluation as evaluation,
    explorer as explorer,
    export as export,
    files as files,
    flow as flow,
    folders as folders,
    glyphs as glyphs,
    guidance as guidance,
    inversion as inversion,
    mixture as mixture,
    model as model,
    objectives as objectives,
    patches as patches,
    plots as plots,
    presets as presets,
    pretrained as pretrained,
    prior as prior,
    shards as shards,
    training as training,
    transformer as transformer,
)
from .data import load_dataset as load_dataset
from .inversion import Jacobi as Jacobi
from .inversion import Student as Student
from .inversion import certify as certify
from .model import Farmer as Farmer
from .model import FarmerConfig as FarmerConfig
from .plots import show_images as show_images
from .plots import to_pil as to_pil
from .plots import to_uint8 as to_uint8

__version__: str
