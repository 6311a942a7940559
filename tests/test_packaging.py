"What is published: names, versions, texts, types, what an import loads, and distributions from which the tests run."
import configparser
import functools
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import farmer

ROOT = Path(__file__).resolve().parent.parent
USER_SCRIPT = """
"A user's script: load, measure, draw, invert, save."
import torch
from torch import Tensor

import farmer.patches
from farmer import Farmer, FarmerConfig, Student, certify, load_dataset, to_pil, to_uint8
from farmer.guidance import PosteriorGuidance
from farmer.inversion import Jacobi


def show(values: Tensor) -> str:
    return f"{values.mean():.2f}"


model: Farmer = Farmer.from_pretrained("digits")
config: FarmerConfig = model.config
data = load_dataset("digits", split="test")
images, labels = data.batch(range(16))
log_prob: Tensor = model.log_prob(images, labels)
bits: Tensor = model.bits_per_dim(images, labels, generator=torch.Generator().manual_seed(0))
samples: Tensor = model.sample(torch.arange(10), guidance=2.0)
others: Tensor = model.sample([3, 1], guidance=PosteriorGuidance(1.0), seed=0)
to_pil(others)[0].save("three.png")
sides: tuple[int, ...] = to_uint8(others).shape
device: str = Farmer.from_pretrained("digits", device="cpu", revision=None, token=None).device.type
precise: bool = model.dtype.is_floating_point
latents = model.encode(images)
exact: Tensor = model.decode(latents)
student: Student = Student.from_pretrained("digits")
fast: Tensor = model.decode(latents, inverse=student)
fast = model.decode(latents, inverse=Jacobi())
summary: str = certify(model, fast, latents, labels).summary()
shape: tuple[int, int, int] = config.image_shape
names: list[str] = [str(name) for name in data.class_names]
tokens: Tensor = farmer.patches.patchify(images, 2)
model.save_pretrained("digits-copy")
print(show(log_prob), show(bits), summary, shape, names, exact.shape, samples.shape, others.shape, latents.informative.shape, farmer.__version__)
"""
TYPE_SETTINGS = """
[mypy]
strict = true
[mypy-farmer.*]
follow_imports = silent
[mypy-torch.*,torchvision.*,numpy.*,sympy.*]
follow_imports = skip
"""


def test_versions_agree():
    "The package, the newest entry of the changelog, the citation."
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)[1]
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)[1]
    assert newest == cited == farmer.__version__


def test_the_address_of_the_repository_stands_in_one_place():
    "In settings.ini; the links at the top of the notebooks are made from it."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", "utf-8")
    place = parser["DEFAULT"]["repository"].removeprefix("https://github.com/")
    folders = (".", ".github/workflows", "benchmarks", "docs", "experiments", "farmer", "launch", "tests", "tools", "web/src")
    sources = [path for folder in folders for path in (ROOT / folder).glob("*.*") if path.suffix in (".cff", ".ini", ".md", ".py", ".sh", ".toml", ".ts", ".yml")]
    assert [path.name for path in sources if place in path.read_text("utf-8")] == ["settings.ini"]
    assert {path.read_text("utf-8").count(place) for path in (ROOT / "nbs").glob("[0-9]*.ipynb")} == {2}  # Colab and Binder


def test_the_index_shows_links_and_pictures_by_full_addresses():
    "The page of the package index is the README, where a relative link would lead nowhere. If this fails, install again."
    metadata = importlib.metadata.metadata("farmer-pixels")
    words = metadata.get_payload() or metadata["Description"]
    readme = (ROOT / "README.md").read_text("utf-8")
    prose = re.sub(r"```.*?```", "", words, flags=re.S)
    targets = re.findall(r"\]\(([^()\s]+)", prose) + re.findall(r"""\b(?:src|href)=["']([^"']+)""", prose)
    assert len(targets) >= len(re.findall(r"\]\(", readme)) // 2 > 0
    assert [target for target in targets if not re.match(r"https://|#", target)] == []
    pictures = re.findall(r"!\[[^\]]*\]\((\S+?)\)", prose)
    assert pictures and all("/raw/" in picture for picture in pictures)


def test_every_public_name_has_a_type():
    "A type checker reads the stub, since names are loaded when first used."
    stub = (ROOT / "farmer" / "__init__.pyi").read_text("utf-8")
    named = set(re.findall(r"\bas (\w+)", stub))
    modules = {path.stem for path in (ROOT / "farmer").glob("[!_]*.py")}
    assert named == {*farmer.__all__, *modules}
    assert (ROOT / "farmer" / "py.typed").exists()


def check_types(folder: Path, script: str, settings: str) -> str:
    "What mypy says to a script for which farmer is an installed package."
    pytest.importorskip("mypy")
    (folder / "packages").mkdir()
    (folder / "packages" / "farmer").symlink_to(ROOT / "farmer")
    (folder / "user.py").write_text(script)
    (folder / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    return subprocess.run(command, cwd=folder, env={"MYPYPATH": "packages", "PATH": ""}, capture_output=True, text=True).stdout


def test_mypy_accepts_a_users_script_and_sees_a_mistake(tmp_path):
    "Strict; torch's own types are left out, which would take minutes."
    said = check_types(tmp_path, USER_SCRIPT + "\nwrong: int = model.config.basis\n", TYPE_SETTINGS)
    wrong = USER_SCRIPT.count("\n") + 2
    assert re.findall(r"^user\.py:(\d+): error", said, re.M) == [str(wrong)], said


@pytest.mark.slow
def test_mypy_accepts_a_users_script_with_the_types_of_torch(tmp_path):
    said = check_types(tmp_path, USER_SCRIPT, TYPE_SETTINGS.partition("[mypy-torch")[0])
    assert "Success" in said, said


def test_help_describes_parameters():
    "What the source says beside a parameter; `sample` points to the methods whose arguments it has."
    words = inspect.getdoc(farmer.Farmer.sample)
    for name in ("labels", "guidance", "inverse", "generator", "seed"):
        assert re.search(rf"^ *{name}: \S.{{9}}", words, re.M), words
    assert "split: " in farmer.load_dataset.__doc__
    assert farmer.Farmer.sample.__doc__ == farmer.Farmer.sample.__doc__ and words.count("Parameters:") == 1


def test_comments_beside_parameters_are_read():
    source = '''
def lent(
    x: int,  # of the first
    *,
    y: int = 2,  # of the second
): ...

class A:
    def scale(self, x: float, y: float = 1.0) -> float:  # the product
        "Arguments are those of `other`."

    def other(self, y: float):  # not a result, so of y
        "Nothing."
'''
    assert farmer._parameters(source) == {
        "lent": {"x": "of the first", "y": "of the second"},
        "A.scale": {"y": "not a result, so of y", "returns": "the product"},
        "A.other": {"y": "not a result, so of y"},
    }


@functools.cache
def loaded_by(code: str) -> set[str]:
    "Top-level packages that a fresh interpreter has loaded after running the code."
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.check_output([sys.executable, "-c", f"{code}; {listing}"], cwd=ROOT, text=True).split())


def test_the_command_starts_without_torchvision():
    "It would take as long again as torch; pictures and published data sets load it."
    assert loaded_by("import farmer.cli") & {"torchvision", "matplotlib", "sklearn", "skimage"} == set()


def test_the_checker_of_the_site_finds_what_is_wrong(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.html").write_text('<h1 id="top">Other</h1><a href="../index.html">back</a><a href="..">back</a>')
    good = '<a href="a/other.html#top">there</a><a href="https://example.org">elsewhere</a><img src="p%20q.png" alt="a picture"><script src="s.js"></script>'
    for name in ("p q.png", "s.js"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "index.html").write_text(good)

    def said() -> tuple[int, list[str]]:
        done = subprocess.run([sys.executable, ROOT / "tools" / "check_site.py", tmp_path], capture_output=True, text=True)
        return done.returncode, done.stderr.splitlines()

    assert said() == (0, [])
    bad = '<a href="gone.html">1</a><a href="a/other.html#gone">2</a><img src="p%20q.png"><script src="https://example.org/s.js"></script><a href="../../x">3</a>'
    (tmp_path / "index.html").write_text(good + bad)
    status, lines = said()
    assert status == 1 and len(lines) == 5
    for words in ("gone.html leads nowhere", "a/other.html#gone: no such place", "without alt text", "s.js from the network", "../../x leads nowhere"):
        assert sum(words in line for line in lines) == 1, lines


@pytest.mark.slow
def test_distributions_hold_what_they_should(tmp_path):
    "The source distribution has what the tests read, the wheel what runs; neither has what was trained or built here."
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (source,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    assert source.name == f"farmer_pixels-{farmer.__version__}.tar.gz"
    with tarfile.open(source) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        parts = set(archive.namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    left_out = (".ci/", ".gitignore", ".devcontainer/", ".binder/")
    assert not [name for name in tracked if (ROOT / name).exists() and name not in sources and not name.startswith(left_out)]
    assert not [name for name in sources if re.search(r"(^|/)(runs|_site|node_modules|web/dist|web/public|__pycache__|\.venv)/", name)]
    assert {"farmer/py.typed", "farmer/__init__.pyi", "farmer/page/explore.ipynb", "farmer/pretrained/digits/model.safetensors"} <= parts
    assert not [name for name in parts if name.startswith(("tests/", "nbs/", "docs/"))]
