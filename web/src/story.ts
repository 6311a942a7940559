// The story: one picture goes through the model, and every stage shows what it has become.
import { type App, element } from "./app";
import { type Model, repeat } from "./model";
import { bars, curves, frame, keep, markToken, paint, paintTokens } from "./view";

/** Make a picture answer to a click by marking the token there. */
export function pickable(app: App, canvas: HTMLCanvasElement, model: Model): void {
  canvas.onclick = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const across = Math.floor(((event.clientX - left) / width) * model.columns);
    const down = Math.floor(((event.clientY - top) / height) * (model.tokens / model.columns));
    app.set({ token: Math.min(model.tokens - 1, down * model.columns + across) });
  };
}

/** Values of latents have no natural range: twice their root mean square becomes white or black. */
function shrunk(image: Float32Array): Float32Array {
  const rms = Math.sqrt(image.reduce((sum, value) => sum + value * value, 0) / image.length);
  return image.map((value) => value / Math.max(1, 2 * rms));
}

const reads = (reverse: boolean) => (reverse ? "from last to first" : "from first to last");

/** All pictures, to choose one by a touch; the slider does the same for those who use a keyboard. */
function thumbnails(app: App, model: Model): void {
  const place = element("thumbs");
  const last = Math.max(model.images.length - 1, app.state.image);
  while (place.children.length > last + 1) place.lastElementChild!.remove();
  for (let index = 0; index <= last; index++) {
    const canvas = (place.children[index] as HTMLCanvasElement | undefined) ?? place.appendChild(document.createElement("canvas"));
    if (canvas.dataset.model !== model.facts.name || index >= model.images.length) paint(canvas, app.picture(model, index).image, model.shape);
    canvas.dataset.model = model.facts.name;
    canvas.title = app.picture(model, index).name;
    canvas.onclick = () => app.set({ image: index });
    canvas.classList.toggle("chosen", index === app.state.image);
  }
}

export function story(app: App): void {
  app.section("story", ["image", "token", "channel", "block", "exact", "offset"], async () => {
    const model = await app.model();
    const { image: index, token, channel, block, offset, exact: exactly } = app.state; // which may change while this draws
    const { image, name, label } = app.picture(model, index);
    const { tokens, channels: d, columns, blocks } = model;

    thumbnails(app, model);
    const first = frame(element("stage-image"), 0, name);
    paint(first.canvas, image, model.shape);
    markToken(first.mark, token, columns, tokens);
    pickable(app, first.canvas, model);
    element("note-image").textContent = label === null ? "It stays in your browser." : "The model has never seen this one. Touch it to mark a token.";
    const cut = frame(element("stage-tokens"), 0, `token ${token} is marked`);
    paintTokens(cut.canvas, image, model.shape, model.patch, (each) => each === token);
    pickable(app, cut.canvas, model);
    element("note-tokens").textContent = `${tokens} patches of ${model.patch} × ${model.patch} pixels: ${tokens} tokens of ${d} channels, read one after the other.`;

    const encoded = await app.encoded(model, index);
    const state = (k: number) => encoded.states.subarray(k * tokens * d, (k + 1) * tokens * d);
    for (let k = 0; k <= blocks; k++) {
      const words = k === 0 ? "before" : `after ${k}${k === blocks ? ": latents" : ""} ${model.facts.reverse_blocks[k - 1] ? "←" : "→"}`;
      const { canvas, figure } = frame(element("stage-blocks"), k, words);
      paint(canvas, shrunk(model.imageOf(state(k))), model.shape);
      canvas.onclick = () => app.set({ block: k });
      figure.toggleAttribute("aria-current", k === block);
    }
    keep(element("stage-blocks"), blocks + 1);
    const reverse = block > 0 && model.facts.reverse_blocks[block - 1];
    const lit = (each: number) => block === 0 || (reverse ? each >= token : each <= token);
    const large = frame(element("stage-block"), 0, block ? `after block ${block}, which reads ${reads(reverse)}` : "before the first block");
    paintTokens(large.canvas, shrunk(model.imageOf(state(block))), model.shape, model.patch, lit);
    pickable(app, large.canvas, model);
    const scales = block ? encoded.logScales.subarray(((block - 1) * tokens + token) * d, ((block - 1) * tokens + token + 1) * d) : null;
    element("note-block").textContent = scales
      ? `Each block moves and stretches every token, by amounts that the tokens before it decide: here the lit ones decide about token ${token}. Its ${d} numbers are stretched by ${Math.exp(scales.reduce((a, b) => a + b) / d).toFixed(2)} on average. So the block can be undone, token by token.`
      : "Each block moves and stretches every token, by amounts that the tokens before it decide. So it can be undone, token by token.";
    if (!performance.getEntriesByName("first-picture").length) performance.mark("first-picture");

    const z = state(blocks).subarray(token * d, (token + 1) * d);
    const kind = channel < model.informative ? "informative" : "redundant";
    bars(element("stage-latents"), z, model.informative, channel, (picked) => app.set({ channel: picked }));
    element("note-latents").textContent = `Token ${token} behind the last block: ${model.informative} informative numbers and ${model.redundant} redundant ones. Channel ${channel} is ${kind}, its value ${z[channel].toFixed(2)}.`;

    const nobody = model.facts.config.num_classes;
    const known = app.labelOf(model, index);
    const { own, shared } = await app.ofLatents(model, index, "mixtures", (latents) => model.mixtures(repeat(latents.informative, 2), [known, nobody]));
    const pair = kind === "informative" ? [own[token], own[tokens + token]] : shared;
    const dimension = kind === "informative" ? channel : channel - model.informative;
    const [withClass, without] = pair.length ? pair.map((mixture) => (x: number) => mixture.marginal(dimension, x)) : [normal, normal];
    const words = `Density of channel ${channel}: ${withClass(z[channel]).toFixed(2)} at its value ${z[channel].toFixed(2)} knowing the class, ${without(z[channel]).toFixed(2)} without`;
    const deviation = model.facts.deviations[token][channel];
    curves(element("stage-mixture"), withClass, without, z[channel], z[channel] + offset * deviation, words, (x) => app.set({ offset: Math.round((4 * (x - z[channel])) / deviation) / 4 }));
    element("note-mixture").textContent = kind === "informative"
      ? `What the prior expects of channel ${channel}, having read the ${model.facts.reverse_prior ? tokens - 1 - token : token} tokens before this one${label === null ? "" : `, if it is told “${model.className(label)}” (solid) or not (dashed)`}.`
      : "What the prior expects of this channel in every token: redundant ones share one mixture.";
    element("note-mixture").append(" Touch the curve to pull the value to another place (dotted): “Traverse” below shows what becomes of the picture.");

    const exact = exactly === 1 || !model.has("student");
    const back = await app.ofLatents(model, index, exact ? "exactly back" : "back", (latents) => model.decode(latents, exact));
    const shown = frame(element("stage-back"), 0, exact ? "undone exactly" : "by the student, in one pass");
    paint(shown.canvas, back, model.shape);
    markToken(shown.mark, token, columns, tokens);
    pickable(app, shown.canvas, model);
    const worst = back.reduce((most, value, i) => Math.max(most, Math.abs(value - image[i])), 0);
    element("note-back").textContent = `Largest difference from the picture: ${worst < 0.01 ? worst.toExponential(1) : worst.toFixed(2)}, where black to white is 2.${model.has("student") ? "" : " This model has no one-pass way."}`;
  });
}

const normal = (x: number) => Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI);
