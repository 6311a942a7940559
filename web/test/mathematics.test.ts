// The mathematics of the page, against numbers of the library and against what must hold.
import { describe, expect, test } from "vitest";
import { packed, seen, SIDE, stroke, unpacked } from "../src/drawing";
import { type Candidate, choiceProbabilities, effectiveSize, guided, logWeights, updatedLogPosterior, type Way } from "../src/guidance";
import { logSumExp, Mixture } from "../src/mixture";
import { Random } from "../src/random";
import { format, parse } from "../src/state";
import { mapColour } from "../src/view";
import cases from "./guidance.json";

const mixtureOf = ({ logits, mean, logScale }: (typeof cases)[0]["conditional"]) =>
  new Mixture(Float32Array.from(logits), Float32Array.from(mean), Float32Array.from(logScale));

function close(found: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-4): void {
  expect(found.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) expect(Math.abs(found[i] - expected[i])).toBeLessThanOrEqual(tolerance * Math.max(1, Math.abs(expected[i])));
}

describe.each(cases)("recorded from farmer.guidance, w = $scale", (recorded) => {
  const [conditional, unconditional] = [mixtureOf(recorded.conditional), mixtureOf(recorded.unconditional)];
  test.each(["posterior", "resampling"] as Way[])("%s", (way) => {
    const { values, logConditional, logUnconditional, logWeights: weights, probabilities, effective, chosen, logPosterior } = recorded.ways[way];
    const candidates: Candidate[] = values.map((value, i) => ({ value: Float32Array.from(value), withClass: i < values.length / 2 }));
    close(candidates.map(({ value }) => conditional.logProb(value)), logConditional);
    close(candidates.map(({ value }) => unconditional.logProb(value)), logUnconditional);
    const found = logWeights(way, conditional, unconditional, candidates, recorded.scale, recorded.posterior);
    close(found, weights, 1e-3);
    close(choiceProbabilities(found), probabilities, 1e-3);
    close([effectiveSize(choiceProbabilities(found))], [effective], 1e-3);
    close([updatedLogPosterior(Math.log(recorded.posterior), logConditional[chosen] - logUnconditional[chosen])], [logPosterior], 1e-3);
  });
});

describe("guidance", () => {
  const [conditional, unconditional] = [mixtureOf(cases[0].conditional), mixtureOf(cases[0].unconditional)];
  test("without a scale there is one candidate, from the mixture with the class", () => {
    const { candidates, probabilities, effective } = guided("posterior", conditional, unconditional, 0, -2.3, new Random(1));
    expect(candidates.map(({ withClass }) => withClass)).toEqual([true]);
    expect([...probabilities, effective]).toEqual([1, 1]);
  });
  test("the same seed chooses the same, another one another", () => {
    const draw = (seed: number) => guided("posterior", conditional, unconditional, 2, -2.3, new Random(seed, "token 3"));
    expect(draw(7)).toEqual(draw(7));
    expect(draw(7).candidates).not.toEqual(draw(8).candidates);
  });
  test("more guidance prefers what the class makes likelier", () => {
    const ratio = (scale: number) => {
      let sum = 0;
      for (let seed = 0; seed < 400; seed++) {
        const { candidates, chosen } = guided("resampling", conditional, unconditional, scale, -2.3, new Random(seed));
        sum += conditional.logProb(candidates[chosen].value) - unconditional.logProb(candidates[chosen].value);
      }
      return sum / 400;
    };
    expect(ratio(3)).toBeGreaterThan(ratio(0) + 0.3);
  });
  test("a class that is settled pulls no more", () => {
    const settled = cases[0].ways.posterior.values.map((value) => ({ value: Float32Array.from(value), withClass: true }));
    close(choiceProbabilities(logWeights("posterior", conditional, unconditional, settled, 4, 1)), settled.map(() => 1 / settled.length));
  });
  test("weights that are not finite are never chosen, and if none is finite, the first", () => {
    expect([...choiceProbabilities(Float64Array.of(NaN, 0, -Infinity))]).toEqual([0, 1, 0]);
    expect([...choiceProbabilities(Float64Array.of(NaN, Infinity, -Infinity))]).toEqual([1, 0, 0]);
  });
});

describe("mixtures", () => {
  const mixture = new Mixture(Float32Array.of(0, Math.log(3)), Float32Array.of(-2, 0, 2, 1), Float32Array.of(-1, 0, -0.5, 0.3));
  const draws = (variance: number, count = 20000) => {
    const random = new Random(3);
    return Array.from({ length: count }, () => mixture.sample(random, variance));
  };
  test("the density adds up to 1", () => {
    let sum = 0;
    for (let x = -8; x < 8; x += 0.1) for (let y = -8; y < 8; y += 0.1) sum += Math.exp(mixture.logProb([x, y])) * 0.01;
    expect(sum).toBeCloseTo(1, 2);
  });
  test("so does a marginal", () => {
    let sum = 0;
    for (let x = -8; x < 8; x += 0.01) sum += mixture.marginal(0, x) * 0.01;
    expect(sum).toBeCloseTo(1, 4);
  });
  test("samples have its mean and variance", () => {
    const first = draws(1).map(([x]) => x);
    const mean = first.reduce((a, b) => a + b) / first.length;
    expect(mean).toBeCloseTo(0.25 * -2 + 0.75 * 2, 1);
    const within = 0.25 * Math.exp(-2) + 0.75 * Math.exp(-1);
    expect(first.reduce((sum, x) => sum + (x - mean) ** 2, 0) / first.length).toBeCloseTo(within + 0.25 * 0.75 * 16, 0);
  });
  test("without variance the means come out, in the same order", () => {
    const [still, moving] = [draws(0, 50), draws(0.01, 50)];
    for (const [x, y] of still) expect([[-2, 0], [2, 1]]).toContainEqual([x, y]);
    still.forEach(([x], i) => expect(Math.abs(moving[i][0] - x)).toBeLessThan(0.5));
  });
  test("sums of exponentials do not overflow", () => {
    expect(logSumExp([1000, 1000])).toBeCloseTo(1000 + Math.LN2, 9);
    expect(logSumExp([-Infinity, -Infinity])).toBe(-Infinity);
  });
});

describe("chance", () => {
  test("is the same on every machine", () => {
    const random = new Random(5, "variance");
    expect([random.uniform(), random.uniform()]).toEqual([0.8209640402346849, 0.7066088397987187]);
  });
  test("is uniform and normal", () => {
    const random = new Random(0);
    const uniform = Array.from({ length: 50000 }, () => random.uniform());
    for (let bin = 0; bin < 10; bin++) expect(uniform.filter((value) => Math.floor(10 * value) === bin).length / 5000).toBeCloseTo(1, 0);
    const normal = Array.from({ length: 50000 }, () => random.normal());
    expect(normal.reduce((a, b) => a + b) / 50000).toBeCloseTo(0, 1);
    expect(normal.reduce((a, b) => a + b * b) / 50000).toBeCloseTo(1, 1);
  });
  test("differs by purpose and seed", () => {
    const first = (seed: number, purpose: string) => new Random(seed, purpose).uniform();
    expect(new Set([first(1, "a"), first(2, "a"), first(1, "b"), first(12, "a")]).size).toBe(4);
  });
  test("chooses by probabilities, and never what has none", () => {
    const random = new Random(9);
    const counts = [0, 0, 0];
    for (let i = 0; i < 9000; i++) counts[random.choose([0.25, 0, 0.75])]++;
    expect(counts[1]).toBe(0);
    expect(counts[0] / 9000).toBeCloseTo(0.25, 1);
  });
});

describe("the address", () => {
  test("carries what differs from the start, there and back", () => {
    expect(format(parse(""))).toBe("");
    const state = { ...parse(""), model: "digits", variance: 2.5, token: 3, way: "resampling" as Way };
    expect(parse(format(state))).toEqual(state);
  });
  test.each(["#image=abc", "#image=", "#nothing=1", "#variance=Infinity", "#model=<script>", "#%", "#image=1e999"])("leaves %s alone", (hash) => {
    expect(parse(hash)).toEqual(parse(""));
  });
});

describe("drawings", () => {
  test("pack and unpack", () => {
    const points = new Uint8Array(SIDE * SIDE);
    stroke(points, [4, 4], [20, 27]);
    expect(unpacked(packed(points))).toEqual(points);
    expect(packed(new Uint8Array(SIDE * SIDE))).toBe("");
    expect(unpacked("nonsense").some(Boolean)).toBe(false);
  });
  test("are seen as counts of 4 x 4 blocks, 17 levels", () => {
    const points = new Uint8Array(SIDE * SIDE);
    for (let i = 0; i < 4; i++) points.fill(1, i * SIDE + 4, i * SIDE + 8); // the second block, whole
    points[0] = 1;
    const image = seen(points);
    expect([image[0], image[1], image[2]]).toEqual([-1 + 1 / 8, 1, -1]);
  });
  test("stay within the field", () => {
    const points = new Uint8Array(SIDE * SIDE);
    stroke(points, [-5, -5], [40, 40]);
    expect(points.length).toBe(SIDE * SIDE);
    expect(points[0] + points[SIDE * SIDE - 1]).toBe(2);
  });
});

test("colours of a map go from dark to bright", () => {
  const light = [0, 0.25, 0.5, 0.75, 1].map((share) => mapColour(share).reduce((a, b) => a + b));
  expect([...light].sort((a, b) => a - b)).toEqual(light);
  expect(mapColour(NaN)).toEqual(mapColour(0));
});

