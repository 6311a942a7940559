// How to draw from p'(z) ~ p_c(z)^(1+w) p_u(z)^(-w), a density that can be weighed but not sampled: as farmer.guidance does.
import { logAddExp, type Mixture, softmax } from "./mixture";
import type { Random } from "./random";

export interface Candidate {
  value: Float32Array; // (D,)
  withClass: boolean; // drawn from p_c, or from p_u
}

export interface Choice {
  candidates: Candidate[];
  probabilities: Float64Array; // of being chosen
  chosen: number;
  effective: number; // how many equally good candidates these were worth
  logPosterior: number; // log p(class | tokens so far), this one among them
}

export type Way = "posterior" | "resampling";

/** Log-weights of candidates. "resampling" is the paper's; "posterior" stops pulling once the class is settled, and is the library's default. */
export function logWeights(way: Way, conditional: Mixture, unconditional: Mixture, candidates: Candidate[], scale: number, posterior: number): Float64Array {
  return Float64Array.from(candidates, ({ value, withClass }) => {
    const own = conditional.logProb(value);
    const other = unconditional.logProb(value);
    if (way === "resampling") return (withClass ? scale : scale + 1) * (own - other);
    const mixed = logAddExp(other + Math.log1p(-posterior), own + Math.log(posterior));
    return (1 + scale) * own - scale * mixed - logAddExp(own, mixed);
  });
}

/** Probabilities proportional to weights; where none is finite, the first candidate. */
export function choiceProbabilities(weights: Float64Array): Float64Array {
  const finite = weights.map((weight) => (Number.isFinite(weight) ? weight : -Infinity));
  if (finite.every((weight) => weight === -Infinity)) finite[0] = 0;
  return softmax(finite);
}

/** How many equally good candidates probabilities are worth. */
export const effectiveSize = (probabilities: Float64Array): number => 1 / probabilities.reduce((sum, p) => sum + p * p, 0);

/** p(class | tokens so far), in nats, after one more token. */
export const updatedLogPosterior = (before: number, logRatio: number): number => Math.min(0, Math.max(-50, before + logRatio));

/** One value from a guided pair of mixtures. */
export function guided(way: Way, conditional: Mixture, unconditional: Mixture, scale: number, logPosterior: number, random: Random, each = 5): Choice {
  const posterior = Math.exp(logPosterior);
  const candidates: Candidate[] = [];
  for (let i = 0; i < (scale > 0 ? each : 1); i++) candidates.push({ value: conditional.sample(random), withClass: true });
  for (let i = 0; i < (scale > 0 ? each : 0); i++) {
    const withClass = way === "posterior" && random.uniform() < posterior; // from the mixture of both, as settled as the class is
    candidates.push({ value: (withClass ? conditional : unconditional).sample(random), withClass });
  }
  const probabilities = choiceProbabilities(
    scale > 0 ? logWeights(way, conditional, unconditional, candidates, scale, posterior) : new Float64Array(1),
  );
  const chosen = random.choose(probabilities);
  const { value } = candidates[chosen];
  return {
    candidates, probabilities, chosen, effective: effectiveSize(probabilities),
    logPosterior: updatedLogPosterior(logPosterior, conditional.logProb(value) - unconditional.logProb(value)),
  };
}
