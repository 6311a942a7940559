"""What the latents of colour glyphs know: `python experiments/colour.py glyphs-field` or `glyphs-palette`.

Measures the three embedded models of the data, each with another channel basis, by three seeds of sampling. With `trained`
after the name it trains its own instead, the luma/chroma basis with three seeds, the two others and the prototype of this
project with one: about 8 minutes a run. `measuring.colour_figures` says what the figures are.
"""
import argparse

from conditions import conditions
from measuring import judge_of, measure, real_figures, record, run, show, speckle

from farmer.guidance import PosteriorGuidance, ResamplingGuidance
from farmer.model import Farmer

FIGURES = ("likelihood", "samples", "probes", "colour")
GUIDED = {"posterior, w=1": PosteriorGuidance(1.0), "resampling, w=1": ResamplingGuidance(1.0)}
SEEDS = (0, 1, 2)


def measure_embedded(data: str) -> dict[str, list[dict]]:
    rows = {}
    for basis in ("luma-chroma", "pca", "pixels"):
        model = Farmer.from_pretrained(data if basis == "luma-chroma" else f"{data}-{basis}")
        rows[basis] = [measure(model, data, seed, FIGURES, GUIDED) for seed in SEEDS]
        show(f"{data}, {basis}", rows[basis][0])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("glyphs-field", "glyphs-palette"))
    parser.add_argument("models", nargs="?", choices=("embedded", "trained"), default="embedded")
    arguments = parser.parse_args()
    data, held_out = arguments.data, judge_of(arguments.data).held_out
    if arguments.models == "embedded":
        rows = measure_embedded(data)
        what = f"the embedded models of {data}, one for each channel basis, measured by three seeds of sampling; nothing was trained"
    else:
        name = f"colour, {data}, "
        rows = {variant: [run(name + variant, seed, FIGURES, GUIDED) for seed in condition.seeds] for variant, condition in conditions(name).items()}
        what = f"models of {data} trained and measured, luma-chroma with all seeds, the others with the first"
    real = real_figures(data) | speckle(data, held_out.batch(range(len(held_out)))[0])
    record(f"colour_{data.removeprefix('glyphs-')}", {"data": data, "models": arguments.models, "real images": real, "variants": rows}, SEEDS, what)


if __name__ == "__main__":
    main()
