// Mixtures of Gaussians as the prior predicts them. Letters: K components, D dimensions of a value.
import type { Random } from "./random";

const LOG_2_PI = Math.log(2 * Math.PI);

export function logSumExp(values: ArrayLike<number>): number {
  let most = -Infinity;
  for (let i = 0; i < values.length; i++) most = Math.max(most, values[i]);
  if (!Number.isFinite(most)) return most;
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += Math.exp(values[i] - most);
  return most + Math.log(sum);
}

/** log(exp a + exp b) */
export const logAddExp = (a: number, b: number): number => logSumExp([a, b]);

export function softmax(logits: ArrayLike<number>): Float64Array {
  const total = logSumExp(logits);
  return Float64Array.from(logits, (value) => Math.exp(value - total));
}

/** `p(x) = sum_k pi_k prod_D N(x; mean_k, exp(log_scale_k))`, as farmer.mixture.GaussianMixture with an empty batch shape. */
export class Mixture {
  readonly components: number; // K
  readonly dimensions: number; // D

  constructor(
    readonly logits: Float32Array, // (K,) weights before the softmax
    readonly mean: Float32Array, // (K, D)
    readonly logScale: Float32Array, // (K, D) log of the standard deviations
  ) {
    this.components = logits.length;
    this.dimensions = mean.length / logits.length;
    if (logScale.length !== mean.length || !Number.isInteger(this.dimensions)) throw new Error("the parts of a mixture do not fit together");
  }

  weights(): Float64Array {
    return softmax(this.logits);
  }

  /** Log-density of a value (D,), in nats. */
  logProb(value: ArrayLike<number>): number {
    const total = logSumExp(this.logits);
    const terms = new Float64Array(this.components);
    for (let k = 0; k < this.components; k++) {
      let sum = -0.5 * this.dimensions * LOG_2_PI;
      for (let i = 0, at = k * this.dimensions; i < this.dimensions; i++, at++) {
        const distance = (value[i] - this.mean[at]) * Math.exp(-this.logScale[at]);
        sum -= 0.5 * distance * distance + this.logScale[at];
      }
      terms[k] = sum + this.logits[k] - total;
    }
    return logSumExp(terms);
  }

  /** A value (D,): first a component, then numbers from it, its variance times a factor. The same chance draws the same component and noise. */
  sample(random: Random, varianceTimes = 1): Float32Array {
    const k = random.choose(this.weights());
    const value = new Float32Array(this.dimensions);
    for (let i = 0, at = k * this.dimensions; i < this.dimensions; i++, at++) {
      value[i] = this.mean[at] + Math.sqrt(varianceTimes) * Math.exp(this.logScale[at]) * random.normal();
    }
    return value;
  }

  /** Density of one dimension, whatever the others are. */
  marginal(dimension: number, x: number): number {
    let density = 0;
    this.weights().forEach((weight, k) => {
      const at = k * this.dimensions + dimension;
      const distance = (x - this.mean[at]) * Math.exp(-this.logScale[at]);
      density += weight * Math.exp(-0.5 * distance * distance - this.logScale[at] - 0.5 * LOG_2_PI);
    });
    return density;
  }
}
