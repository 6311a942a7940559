// State, controls and sections: a control sets a part of the state, and the sections that depend on it draw themselves anew.
import { type Encoded, Model, Sentence, startRuntime } from "./model";
import { format, type Key, parse, type State } from "./state";

export const element = <T extends HTMLElement = HTMLElement>(id: string): T => document.getElementById(id) as T;

/** Models that come with the page, and what people call them. */
export const MODELS: Record<string, string> = { photos: "photographs", digits: "handwritten digits", "glyphs-field": "coloured digits" };

/** A part of the page that draws itself when it is in sight and something that it depends on has changed. */
class Section {
  private dirty = true;
  private busy = false;
  visible = false;

  constructor(readonly place: HTMLElement, readonly keys: readonly Key[], private draw: () => Promise<void>) {}

  invalidate(): void {
    this.dirty = true;
    this.place.dataset.state = "waiting";
    void this.run();
  }

  private async run(): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    while (this.dirty && this.visible) {
      this.dirty = false;
      const message = this.place.querySelector<HTMLElement>(".message")!;
      try {
        await this.draw();
        message.hidden = true;
      } catch (error) {
        message.textContent = error instanceof Sentence ? error.message : `This part could not be made: ${(error as Error).message}. Reload the page, or choose another model.`;
        message.hidden = false;
      }
    }
    this.busy = false;
    if (!this.dirty) {
      this.place.dataset.state = "ready";
      this.place.dispatchEvent(new Event("drawn"));
    }
  }

  show(visible: boolean): void {
    this.visible = visible;
    if (visible && this.dirty) void this.run();
  }
}

export class App {
  state: State = parse(location.hash);
  private models = new Map<string, Promise<Model>>();
  private memory = new Map<string, Promise<unknown>>(); // of what is computed from a picture alone
  private own: ImageBitmap | null = null;
  private ownRead = new Map<string, Float32Array>(); // as each model sees it
  private sections: Section[] = [];
  private current: Model | null = null; // what the controls are fitted to
  private names: string[] = []; // of the classes of all pictures

  section(id: string, keys: readonly Key[], draw: () => Promise<void>): void {
    this.sections.push(new Section(element(id), ["model", ...keys], draw));
  }

  /** Begin: bind the controls, then let sections draw when they come into sight. */
  start(): void {
    for (const input of document.querySelectorAll<HTMLInputElement | HTMLSelectElement>("[data-key]")) {
      const key = input.dataset.key as Key;
      if (key === "model") input.innerHTML = Object.entries(MODELS).map(([name, words]) => `<option value="${name}">${words}</option>`).join("");
      input.addEventListener("input", () => input.value !== "" && this.set({ [key]: input.type === "range" || input.type === "number" ? Number(input.value) : key === "exact" || key === "wanted" ? Number(input.value) : input.value }));
    }
    for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
    window.addEventListener("hashchange", () => {
      const next = parse(location.hash);
      if (format(next) !== format(this.state)) this.set(next);
    });
    startRuntime().catch(() => undefined); // now, while the model is fetched; sections say what went wrong
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) this.sections.find(({ place }) => place === entry.target)!.show(entry.isIntersecting);
    }, { rootMargin: "150px" });
    for (const { place } of this.sections) watcher.observe(place);
    void this.refresh();
  }

  /** Change parts of the state; what depends on them follows. */
  set(change: Partial<State>): void {
    const before = this.state;
    this.state = { ...before, ...change };
    if (this.current && this.state.model === before.model) this.state = { ...this.state, ...this.possible(this.current) };
    history.replaceState(null, "", format(this.state) || location.pathname + location.search);
    if (this.state.model !== before.model) void this.refresh();
    else {
      this.sync();
      const changed = (Object.keys(before) as Key[]).filter((key) => before[key] !== this.state[key]);
      for (const section of this.sections) if (section.keys.some((key) => changed.includes(key))) section.invalidate();
    }
  }

  private tell(words: string): void {
    if (element("status").textContent !== words) element("status").textContent = words;
  }

  open(name: string): Promise<Model> {
    let model = this.models.get(name);
    if (!model) {
      model = Model.open(name, (file, loaded, total) => this.tell(loaded < total ? `Loading ${file} …` : ""));
      model.then((opened) => opened.session("encode")).catch(() => undefined); // needed first
      model.catch(() => this.models.delete(name));
      this.models.set(name, model);
    }
    return model;
  }

  /** The model that is chosen; when it is another one than before, the state and the controls are fitted to it. */
  async model(): Promise<Model> {
    if (!(this.state.model in MODELS)) this.state.model = "photos";
    const model = await this.open(this.state.model);
    if (model !== this.current && model.facts.name === this.state.model) {
      this.current = model;
      this.limit(model);
    }
    return model;
  }

  /** Another model: limits of the controls change, and everything is drawn anew. */
  private async refresh(): Promise<void> {
    try {
      await this.model();
      this.tell("");
    } catch (error) {
      this.tell((error as Error).message); // the sections say it, too
    }
    this.sync();
    for (const section of this.sections) section.invalidate();
  }

  /** The largest value of each number. */
  private limits(model: Model): Partial<Record<Key, number>> {
    const last = model.images.length - (this.own ? 0 : 1);
    return {
      image: last, donor: last, token: model.tokens - 1, channel: model.channels - 1, block: model.blocks, swapped: model.tokens, step: model.tokens,
      wanted: Math.max(0, model.facts.config.num_classes - 1), variance: 4, seed: 9999, scale: 6, offset: 4, exact: 1,
    };
  }

  /** Values of the state that this model can show, nearest to what was asked for. */
  private possible(model: Model): Partial<State> {
    const values: Record<string, unknown> = {};
    for (const [key, most] of Object.entries(this.limits(model)) as [Key, number][]) {
      const value = Math.min(most, Math.max(key === "offset" ? -most : 0, Number(this.state[key])));
      values[key] = ["variance", "scale", "offset"].includes(key) ? value : Math.round(value);
    }
    if (this.state.token >= model.tokens) values.token = Math.floor((model.tokens + model.columns) / 2); // near the centre
    const { label, way } = this.state;
    if (!["own", "none"].includes(label) && !(/^\d+$/.test(label) && Number(label) < model.facts.config.num_classes)) values.label = "own";
    if (!["posterior", "resampling"].includes(way)) values.way = "posterior";
    return values;
  }

  /** Fit the state and the controls to a model. */
  private limit(model: Model): void {
    this.names = [...model.facts.labels.map((label) => model.className(label)), "your own"];
    this.state = { ...this.state, ...this.possible(model) };
    for (const [key, most] of Object.entries(this.limits(model))) {
      for (const input of document.querySelectorAll<HTMLInputElement>(`input[data-key="${key}"]`)) input.max = String(most);
    }
    document.querySelector<HTMLSelectElement>('[data-key="exact"]')!.disabled = !model.has("student");
    const names = Array.from({ length: model.facts.config.num_classes }, (_, label) => model.className(label));
    const options = names.map((name, label) => `<option value="${label}">${name.replace(/[<&]/g, " ")}</option>`).join("");
    document.querySelector('[data-key="label"]')!.innerHTML = `<option value="own">what it is</option><option value="none">no class</option>${options}`;
    document.querySelector('[data-key="wanted"]')!.innerHTML = options;
    this.sync();
  }

  /** Controls show the state, pictures by number and class. */
  private sync(): void {
    const words = (key: Key) => (key === "image" || key === "donor" ? `${this.state[key]}: ${this.names[this.state[key]] ?? ""}` : String(this.state[key]));
    for (const input of document.querySelectorAll<HTMLInputElement | HTMLSelectElement>("[data-key]")) {
      const key = input.dataset.key as Key;
      if (input.value !== String(this.state[key])) input.value = String(this.state[key]);
      if (input.type === "range") input.setAttribute("aria-valuetext", words(key));
    }
    for (const output of document.querySelectorAll<HTMLOutputElement>("[data-of]")) output.value = words(output.dataset.of as Key);
  }

  /** An image of the model that is chosen, and its label: a held-out one, or the reader's own with no label. */
  picture(model: Model, index: number): { image: Float32Array; label: number | null; name: string } {
    if (index < model.images.length) {
      const label = model.facts.labels[index];
      return { image: model.images[index], label, name: `picture ${index}: ${model.className(label)}` };
    }
    let image = this.ownRead.get(model.facts.name);
    if (!image) this.ownRead.set(model.facts.name, (image = this.own ? read(this.own, model) : new Float32Array(model.size)));
    return { image, label: null, name: "your own picture" };
  }

  /** Something that is computed from an image of a model, computed once. The oldest of many are forgotten. */
  once<T>(model: Model, index: number, what: string, compute: () => Promise<T>): Promise<T> {
    const key = `${model.facts.name} ${index} ${what}`;
    let found = this.memory.get(key) as Promise<T> | undefined;
    if (!found) {
      found = compute();
      found.catch(() => this.memory.delete(key));
      this.memory.set(key, found);
      if (this.memory.size > 100) this.memory.delete(this.memory.keys().next().value!);
    }
    return found;
  }

  /** The latents of an image. */
  encoded(model: Model, index: number): Promise<Encoded> {
    return this.once(model, index, "latents", () => model.encode(this.picture(model, index).image));
  }

  /** Something that follows from the latents of an image, whatever is shown by the time that they are there. */
  ofLatents<T>(model: Model, index: number, what: string, compute: (latents: Encoded) => Promise<T>): Promise<T> {
    return this.once(model, index, what, async () => compute(await this.encoded(model, index)));
  }

  /** The label that stands for an image: its own, or none. */
  labelOf(model: Model, index: number): number {
    return model.facts.labels[index] ?? model.facts.config.num_classes;
  }

  /** Take a file of the reader's as another picture. Throws a Sentence for what is none. */
  async take(file: File): Promise<void> {
    let picture: ImageBitmap;
    try {
      picture = await createImageBitmap(file);
    } catch {
      throw new Sentence(`“${file.name}” is not a picture that this browser can read: choose a JPEG, PNG or WebP file.`);
    }
    const model = await this.model();
    this.own?.close();
    this.own = picture;
    this.ownRead.clear();
    this.memory.clear();
    this.limit(model);
    this.state.image = -1; // so that the same place counts as a change
    this.set({ image: model.images.length });
  }
}

/** The central square of a picture, as small as the model's images and on their levels. */
function read(picture: ImageBitmap, model: Model): Float32Array {
  const [channels, height, width] = model.shape;
  const side = Math.min(picture.width / width, picture.height / height);
  const [w, h] = [side * width, side * height];
  let source: CanvasImageSource = picture;
  let [left, upper, across, down] = [(picture.width - w) / 2, (picture.height - h) / 2, w, h];
  for (let factor = 2 ** Math.floor(Math.log2(Math.max(1, side))); factor >= 1; factor /= 2) { // by halves: one large step would skip pixels
    const smaller = new OffscreenCanvas(width * factor, height * factor);
    const pen = smaller.getContext("2d", { willReadFrequently: factor === 1 })!;
    pen.fillStyle = "white"; // under what is transparent
    pen.fillRect(0, 0, smaller.width, smaller.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(source, left, upper, across, down, 0, 0, smaller.width, smaller.height);
    [source, left, upper, across, down] = [smaller, 0, 0, smaller.width, smaller.height];
  }
  const data = (source as OffscreenCanvas).getContext("2d")!.getImageData(0, 0, width, height).data;
  const steps = model.facts.config.levels - 1;
  return Float32Array.from({ length: model.size }, (_, i) => {
    const [plane, at] = [Math.floor(i / (height * width)), 4 * (i % (height * width))];
    const value = channels === 3 ? data[at + plane] : 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2];
    return (2 * Math.round((value / 255) * steps)) / steps - 1;
  });
}
