"""Put the model of a run among those that come with the library: `python tools/embed.py RUN NAME [--half]`.

With --half its weights are rounded to float16, which halves the file. The note of which data it was trained on comes along.
"""
import argparse
import shutil
from pathlib import Path

from farmer.model import EMBEDDED, Farmer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path)
parser.add_argument("name")
parser.add_argument("--half", action="store_true")
arguments = parser.parse_args()
Farmer.from_pretrained(arguments.run / "model").save_pretrained(EMBEDDED / arguments.name, half=arguments.half)
shutil.copy(arguments.run / "run.json", EMBEDDED / arguments.name)
for path in sorted((EMBEDDED / arguments.name).iterdir()):
    print(f"{path.stat().st_size / 1e6:.2f} MB {path.name}")
