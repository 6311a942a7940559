"Record what farmer.guidance computes on random mixtures, for the tests of the page's TypeScript: python web/record_guidance.py"
import json
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import farmer.guidance
from farmer.guidance import Guided, PosteriorGuidance, ResamplingGuidance, resample
from farmer.mixture import GaussianMixture

FILE = Path(__file__).parent / "test" / "guidance.json"


def _mixture(generator: torch.Generator) -> GaussianMixture:  # K = 4 components in D = 3 dimensions, batch shape (1,)
    draw = lambda *shape: torch.randn(1, *shape, generator=generator)
    return GaussianMixture(draw(4), 1.5 * draw(4, 3), 0.5 * draw(4, 3) - 0.5)


def _plain(mixture: GaussianMixture) -> dict[str, list]:
    parts = {"logits": mixture.logits, "mean": mixture.component_mean, "logScale": mixture.component_log_scale}
    return {name: part.flatten().tolist() for name, part in parts.items()}


def record(seed: int, scale: float) -> dict:
    "One case: two mixtures, a posterior, the candidates of both ways of guiding, their weights, and what became of the posterior."
    generator = torch.Generator().manual_seed(seed)
    conditional, unconditional = _mixture(generator), _mixture(generator)
    posterior = torch.rand(1, generator=generator)
    case = {"scale": scale, "posterior": posterior.item(), "conditional": _plain(conditional), "unconditional": _plain(unconditional), "ways": {}}
    for way in (PosteriorGuidance(scale), ResamplingGuidance(scale)):
        seen: list[tuple[Tensor, Tensor]] = []

        def watch(candidates: Tensor, log_weight: Tensor, *rest):
            seen.append((candidates, log_weight.clone()))
            return resample(candidates, log_weight, *rest)

        policy = Guided(way, num_classes=10)
        policy.log_posterior = [posterior.log()]
        with mock.patch.object(farmer.guidance, "resample", watch):
            pairs = zip(*((each.logits, each.component_mean, each.component_log_scale) for each in (conditional, unconditional)))
            value = policy.draw(GaussianMixture(*map(torch.cat, pairs)), generator)
        candidates, log_weight = seen[0]
        case["ways"]["posterior" if isinstance(way, PosteriorGuidance) else "resampling"] = {
            "values": candidates[:, 0].tolist(), "logWeights": log_weight[:, 0].tolist(),
            "logConditional": conditional.log_prob(candidates)[:, 0].tolist(), "logUnconditional": unconditional.log_prob(candidates)[:, 0].tolist(),
            "probabilities": log_weight[:, 0].softmax(0).tolist(), "effective": policy.steps[0][0].item(),
            "chosen": int((candidates[:, 0] - value).abs().sum(1).argmin()), "logPosterior": policy.log_posterior[1].item(),
        }  # fmt: skip
    return case


def cases() -> list[dict]:
    return [record(seed, scale) for seed, scale in enumerate((0.5, 1.0, 2.0, 4.0))]


if __name__ == "__main__":
    FILE.write_text(json.dumps(cases(), indent=1) + "\n")
