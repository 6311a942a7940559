"Exported graphs, run by onnxruntime, against the model that they were made of."
import json
import os

import pytest
import torch
from torch import Tensor

from farmer import Farmer, FarmerConfig, Student
from farmer.analysis import Subject
from farmer.export import export_model, export_pretrained, live_server
from farmer.pretrained import embedded_models

try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None

TOLERANCE = 1e-3  # of the root mean square of what is expected
needs_onnx = pytest.mark.skipif(onnxruntime is None and not os.environ.get("CI"), reason="onnx or onnxruntime is missing: pip install onnx onnxruntime")


class Runner:
    "An exported folder, and how far its numbers were off."

    def __init__(self, folder):
        self.folder, self.errors, self.sessions = folder, {}, {}
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = 1

    def __call__(self, graph: str, **inputs: Tensor) -> dict[str, Tensor]:
        if graph not in self.sessions:
            self.sessions[graph] = onnxruntime.InferenceSession(self.folder / f"{graph}.onnx", self.options)
        session = self.sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, session.run(names, {name: value.detach().numpy() for name, value in inputs.items()}))))

    def compare(self, name: str, value: Tensor, expected: Tensor) -> None:
        expected = expected.detach()
        assert value.shape == expected.shape, name
        if expected.numel():
            self.errors[name] = ((value - expected).abs().max() / expected.square().mean().sqrt().clamp(min=1e-12)).item()

    def mixture(self, name: str, found: dict[str, Tensor], expected, prefix: str = "") -> None:
        for ours, theirs in (("logits", "logits"), ("mean", "component_mean"), ("log_scale", "component_log_scale")):
            self.compare(f"{name} {ours}", found[prefix + ours], getattr(expected, theirs))


def compare_all(folder, model: Farmer, images: Tensor, labels: Tensor, student: Student | None = None) -> dict[str, float]:
    "Every graph of a folder against the model. Relative errors by name."
    run = Runner(folder)
    with torch.no_grad():
        latents, x, found = model.encode(images), model.tokens_of(images), run("encode", images=images)
        for name in ("informative", "redundant", "logdet"):
            run.compare(name, found[name], getattr(latents, name))
        run.compare("tokens", found["states"][:, 0], x)
        for index, block in enumerate(model.flow.blocks):
            x, log_scale = block(x)
            run.compare(f"block {index}", found["states"][:, index + 1], x)
            run.compare(f"log-scales {index}", found["log_scales"][:, index], log_scale)
        pair = {"informative": latents.informative, "redundant": latents.redundant}
        run.compare("exact inverse", run("inverse", **pair)["images"], model.decode(latents))
        if student is not None:
            run.compare("student", run("student", **pair)["images"], model.decode(latents, inverse=student))
        if model.config.prior == "autoregressive":
            compare_prior(run, model, latents, labels)
    return run.errors


def compare_prior(run: Runner, model: Farmer, latents, labels: Tensor) -> None:
    "The prior at once, its first step, the others one by one, and the redundant channels."
    own, shared = model.prior.mixtures(latents.informative, labels)
    found = run("prior", informative=latents.informative, labels=labels)
    run.mixture("mixture", found, own)
    learned = model.prior.redundant_head is not None
    if learned:
        run.mixture("redundant", found, shared[:, 0], "redundant_")
        z = model.partition.join(latents.informative, latents.redundant)
        mixtures = [type(own)(*(found[f"{prefix}{name}"] for name in ("logits", "mean", "log_scale"))) for prefix in ("", "redundant_")]
        ours = mixtures[0].log_prob(latents.informative).sum(1) + mixtures[1][:, None].log_prob(latents.redundant).sum(1)
        run.compare("log p", ours + latents.logdet, sum(part.sum(1) for part in model.prior(z, labels)) + latents.logdet)
    turned = model.prior.turn(latents.informative)
    step = run("prior-start", labels=labels)
    for i in range(model.config.tokens):
        run.mixture(f"step {i}", step, own[:, model.config.tokens - 1 - i if model.prior.reverse else i])
        step = run("prior-step", token=turned[:, i], cache=step["next_cache"])
    assert ("prior-redundant.onnx" in os.listdir(run.folder)) == learned
    if learned:
        run.mixture("redundant after steps", run("prior-redundant", hidden=step["hidden"]), shared[:, 0])


@needs_onnx
@pytest.mark.parametrize("name", embedded_models())
def test_embedded_models(name, tmp_path, capsys):
    files = export_pretrained(name, tmp_path, count=4)
    assert sorted(files) == sorted(os.listdir(tmp_path))
    facts = json.loads((tmp_path / "model.json").read_text())
    subject = Subject.load(name, count=4)
    assert facts["files"] == {file: (tmp_path / file).stat().st_size for file in files if file != "model.json"}
    assert facts["labels"] == subject.labels.tolist() and facts["class_names"] == list(subject.model.class_names)
    student = Student.from_pretrained(name) if "student.onnx" in files else None
    errors = compare_all(tmp_path, subject.model, subject.images, subject.labels, student)
    worst = max(errors, key=errors.get)
    with capsys.disabled():
        print(f"\n{name}: {len(errors)} comparisons, worst {worst} {errors[worst]:.1e} relative", end=" ")
    assert errors[worst] <= TOLERANCE


def shaken(config: FarmerConfig) -> Farmer:
    "An untrained model whose every weight matters."
    torch.manual_seed(0)
    model = Farmer(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


SMALL = {"image_shape": (1, 4, 6), "num_classes": 3, "flow_width": 32, "prior_width": 32, "head_width": 16, "components": 3, "redundant_components": 5}


@needs_onnx
@pytest.mark.parametrize(
    "settings",
    [
        {"flow_blocks": 3, "flow_layers": 2, "scale_first_token": False},
        {"prior": "standard-normal"},
        {"informative_channels": None},
        {"redundant": "standard-normal", "condition_repeats": 1, "final_order_flip": False},
        {"num_classes": 0, "label_dropout": 0.0, "flow_blocks": 1},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_other_architectures(settings, tmp_path):
    "And batches of any size: one image is exported, three are compared."
    model = shaken(FarmerConfig(**{**SMALL, **settings}))
    images = torch.rand(3, *model.config.image_shape) * 2 - 1
    labels = torch.tensor([0, model.null_class, min(1, model.null_class)])
    student = Student(model.flow).eval()
    export_model(model, tmp_path, student=student, images=images[:1], labels=labels[:1], half=False)
    for graph in tmp_path.glob("*.onnx"):
        onnx.checker.check_model(graph, full_check=True)
    errors = compare_all(tmp_path, model, images, labels, student)
    assert max(errors.values()) < 1e-4, errors


@needs_onnx
def test_half_precision_is_used_where_it_is_enough(tmp_path):
    "Asked for, it halves the files; else the numbers decide. What was stored in half precision loses nothing."
    model = shaken(FarmerConfig(**SMALL))
    sizes = {}
    for half in (False, True):
        export_model(model, tmp_path / str(half), half=half)
        sizes[half] = (tmp_path / str(half) / "flow.bin").stat().st_size
    assert sizes[True] < 0.55 * sizes[False]
    model.flow.blocks[0].output.bias.data += 5  # log-scales of 5: rounding is felt
    export_model(model, tmp_path / "felt")
    assert (tmp_path / "felt" / "flow.bin").stat().st_size == sizes[False]
    rounded = shaken(FarmerConfig(**SMALL))
    basis = rounded.basis.matrix.clone()
    rounded.half().float().basis.matrix.copy_(basis)
    export_model(rounded, tmp_path / "rounded")
    assert (tmp_path / "rounded" / "flow.bin").stat().st_size == sizes[True]


@needs_onnx
def test_a_model_stays_as_it_is(tmp_path):
    model = shaken(FarmerConfig(**SMALL)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, tmp_path)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@needs_onnx
def test_refusals(tmp_path):
    model, other = shaken(FarmerConfig(**SMALL)), shaken(FarmerConfig(**{**SMALL, "flow_blocks": 2}))
    with pytest.raises(ValueError, match="belongs to a flow of another architecture"):
        export_model(model, tmp_path / "none", student=Student(other.flow))
    with pytest.raises(ValueError, match="only models with an autoregressive flow"):
        export_model(Farmer(FarmerConfig(**SMALL, flow="coupling")), tmp_path / "none")
    with pytest.raises(ValueError, match="looks both ways"):
        export_model(model, tmp_path / "none", student=Student(model.flow, both_ways=True))
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="no model"):
        export_pretrained("nobody", tmp_path)


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        export_pretrained("digits", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_live_server(tmp_path):
    with pytest.raises(ValueError, match="make web"):
        live_server(0, tmp_path)
    (tmp_path / "index.html").write_text("page")
    with live_server(0, tmp_path) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ValueError, match="choose another with --port"):
            live_server(server.server_address[1], tmp_path)
