// Variance, swap, traverse and bits: change the latents of a picture, or ask what they cost.
import { type App, element } from "./app";
import { concatenate, type Mixtures, type Model, repeat, Sentence } from "./model";
import { Random } from "./random";
import { pickable } from "./story";
import { frame, keep, markToken, paint, paintMap } from "./view";

/** Pictures with their captions, side by side. */
function show(place: HTMLElement, model: Model, pictures: [string, ArrayLike<number>][]): void {
  pictures.forEach(([caption, image], i) => paint(frame(place, i, caption).canvas, image, model.shape));
  keep(place, pictures.length);
}

/** z^R of all tokens drawn from the shared mixture, its variance times a factor; the same seed gives the same components and noise. */
function redrawn(model: Model, mixtures: Mixtures, variance: number, seed: number): Float32Array {
  const { shared } = mixtures;
  if (!shared.length) throw new Sentence("This model’s redundant channels have no mixture of their own: nothing here to scale.");
  const random = new Random(seed, "redundant");
  return concatenate(Array.from({ length: model.tokens }, () => shared[0].sample(random, variance)));
}

function variance(app: App): void {
  app.section("variance", ["image", "variance", "seed"], async () => {
    const model = await app.model();
    const { image: index, variance: scale, seed: first } = app.state; // which may change while this draws
    const { image, name } = app.picture(model, index);
    const latents = await app.encoded(model, index);
    const label = app.labelOf(model, index);
    const seeds = [0, 1, 2].map((more) => first + more);
    const mixtures = await app.ofLatents(model, index, "own mixtures", ({ informative }) => model.mixtures(informative, [label]));
    const parts = seeds.map((seed) => redrawn(model, mixtures, scale, seed));
    const images = await model.decode({ count: seeds.length, informative: repeat(latents.informative, seeds.length), redundant: concatenate(parts) });
    show(element("variance-pictures"), model, [
      [name, image],
      ...seeds.map((seed, i): [string, Float32Array] => [`variance ${scale}, seed ${seed}`, images.subarray(i * model.size, (i + 1) * model.size)]),
    ]);
  });
}

function swap(app: App): void {
  app.section("swap", ["image", "donor", "swapped"], async () => {
    const model = await app.model();
    const { image, donor, swapped } = app.state;
    const [first, second] = [app.picture(model, image), app.picture(model, donor)];
    const [a, b] = [await app.encoded(model, image), await app.encoded(model, donor)];
    const border = swapped * model.redundant;
    const mixed = [b, a].map((giver, i) => concatenate([giver.redundant.subarray(0, border), [a, b][i].redundant.subarray(border)]));
    const images = await model.decode({ count: 2, informative: concatenate([a.informative, b.informative]), redundant: concatenate(mixed) });
    show(element("swap-pictures"), model, [
      [`A, ${first.name}`, first.image], [`B, ${second.name}`, second.image],
      ["zᴵ of A, zᴿ of B", images.subarray(0, model.size)], ["zᴵ of B, zᴿ of A", images.subarray(model.size)],
    ]);
  });
}

function traverse(app: App): void {
  app.section("traverse", ["image", "token", "channel", "offset"], async () => {
    const model = await app.model();
    const { token, channel, offset } = app.state;
    const latents = await app.encoded(model, app.state.image);
    const [informative, redundant] = [repeat(latents.informative, 2), repeat(latents.redundant, 2)];
    const step = offset * model.facts.deviations[token][channel];
    if (channel < model.informative) informative[(model.tokens + token) * model.informative + channel] += step;
    else redundant[(model.tokens + token) * model.redundant + channel - model.informative] += step;
    const images = await model.decode({ count: 2, informative, redundant });
    const [before, after] = [images.subarray(0, model.size), images.subarray(model.size)];
    const place = element("traverse-pictures");
    show(place, model, [["before", before], ["after", after]]);
    const [planes, height, width] = model.shape;
    const change = Float32Array.from({ length: height * width }, (_, i) => {
      let most = 0;
      for (let c = 0; c < planes; c++) most = Math.max(most, Math.abs(after[c * height * width + i] - before[c * height * width + i]));
      return most;
    });
    const level = 2 / (model.facts.config.levels - 1);
    paintMap(frame(place, 2, "how far pixels moved").canvas, change, width, 0, Math.max(0.05, ...change));
    for (let i = 0; i < 3; i++) {
      const { mark, canvas } = frame(place, i);
      markToken(mark, token, model.columns, model.tokens);
      pickable(app, canvas, model);
    }
    const moved = change.filter((value) => value > level).length;
    const kind = channel < model.informative ? "informative" : "redundant";
    element("traverse-note").textContent = `Channel ${channel} (${kind}) of token ${token}, moved by ${offset} deviations: ${moved} of ${height * width} pixels change by more than a level.`;
  });
}

function bits(app: App): void {
  app.section("bits", ["image", "label", "token"], async () => {
    const model = await app.model();
    const { image, name } = app.picture(model, app.state.image);
    const own = app.labelOf(model, app.state.image);
    const nobody = model.facts.config.num_classes;
    const said = app.state.label === "own" ? own : app.state.label === "none" ? nobody : Number(app.state.label);
    const [now, right] = await model.bits(image, [said, own]);
    const place = element("bits-pictures");
    const parts: [string, Float64Array][] = [
      ["all bits", now.total],
      ["structure, zᴵ", now.informative.map((value, i) => value + now.volumeInformative[i])],
      ["colour and tone, zᴿ", now.redundant.map((value, i) => value + now.volumeRedundant[i])],
    ];
    paint(frame(place, 0, name).canvas, image, model.shape);
    parts.forEach(([caption, values], i) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const { canvas } = frame(place, i + 1, `${caption}: ${low.toFixed(0)} (dark) to ${high.toFixed(0)} (bright) a token`);
      paintMap(canvas, values, model.columns, low, high);
    });
    for (let i = 0; i < 4; i++) {
      const { mark, canvas } = frame(place, i);
      markToken(mark, app.state.token, model.columns, model.tokens);
      pickable(app, canvas, model);
    }
    const sum = (values: Float64Array) => values.reduce((a, b) => a + b);
    const difference = said === own ? "" : ` Told “${model.className(said)}”, zᴵ costs ${(sum(now.informative) - sum(right.informative)).toFixed(0)} bits more than told the truth, and zᴿ ${(sum(now.redundant) - sum(right.redundant)).toFixed(0)}.`;
    element("bits-note").textContent = `${sum(now.total).toFixed(0)} bits in all, ${now.perDimension.toFixed(2)} for each of ${model.size} numbers; token ${app.state.token} costs ${now.total[app.state.token].toFixed(0)}.${difference}`;
  });
}

export function experiments(app: App): void {
  for (const each of [variance, swap, traverse, bits]) each(app);
}
