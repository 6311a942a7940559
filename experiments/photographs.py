"""What a small FARMER makes of photographs: `python experiments/photographs.py results` or `bases`; a quarter of an hour a run.

    results     the preset of `photos` and TarFlow with as many weights, three seeds each; figures of samples with and without guidance
    bases       does the likelihood alone find the split? channel bases, depths of the flow and numbers of informative channels

`measuring.photograph_figures` says what the figures are.
"""
import argparse

from conditions import conditions
from measuring import real_figures, record, run

from farmer.guidance import ResamplingGuidance

FIGURES = ("likelihood", "samples", "probes", "photographs")
GUIDED = {"resampling, w=1": ResamplingGuidance(1.0)}
DATA = "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("results", "bases"))
    what = parser.parse_args().what
    variants, rows = conditions(f"{what}, {DATA}, "), {}
    for name, condition in variants.items():
        partitioned = condition.model.get("prior") != "standard-normal"
        figures, guided = (FIGURES, GUIDED) if partitioned else (("likelihood", "samples"), {})
        rows[name] = [run(f"{what}, {DATA}, {name}", seed, figures, guided) for seed in condition.seeds]
    summary = f"{', '.join(variants)} trained on {DATA} and measured on its held-out crops and on 2,000 samples"
    record(f"{DATA}_{what}", {"data": DATA, **real_figures(DATA), "variants": rows}, range(3), summary)


if __name__ == "__main__":
    main()
