"""Put the model of a run among those that come with the library: `python tools/embed.py RUN NAME [--half]`.

With --half its weights are rounded to float16, which halves the file. Its student, if it has one, and the note of which data
it was trained on come along. If its classes have no names, they get those of its data.
"""
import argparse
import shutil
from pathlib import Path

from farmer import Farmer, Student, load_dataset
from farmer.pretrained import EMBEDDED, read_source

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path)
parser.add_argument("name")
parser.add_argument("--half", action="store_true")
arguments = parser.parse_args()
source, target = arguments.run / "model", EMBEDDED / arguments.name
model = Farmer.from_pretrained(source)
model.class_names = model.class_names or tuple(load_dataset(read_source(source)).class_names)
model.save_pretrained(target, half=arguments.half)
if (source / "student.safetensors").is_file():
    Student.from_pretrained(source).save_pretrained(target, half=arguments.half)
shutil.copy(arguments.run / "run.json", target)
for path in sorted(target.iterdir()):
    print(f"{path.stat().st_size / 1e6:.2f} MB {path.name}")
