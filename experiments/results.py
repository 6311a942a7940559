"""What a small FARMER reaches, beside TarFlow: `python experiments/results.py digits` or `glyphs`; minutes a run, three seeds each.

On held-out images bits/dim, given the label and without it; figures of unguided samples; what probes read from z^I and z^R.
"""
import argparse

from conditions import conditions
from measuring import real_figures, record, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "glyphs"))
    data = parser.parse_args().data
    variants = conditions(f"results, {data}, ")
    rows = {
        name: [run(f"results, {data}, {name}", seed, ("likelihood", "samples", "probes")) for seed in condition.seeds]
        for name, condition in variants.items()
    }  # fmt: skip
    what = f"{' and '.join(variants)} trained on {data} as their preset says and measured"
    record(f"results_{data}", {"data": data, **real_figures(data), "variants": rows}, variants["FARMER"].seeds, what)


if __name__ == "__main__":
    main()
