// A model that `farmer export` wrote, run by onnxruntime in WebAssembly.
// Letters: B images, C H W channels, height and width, N tokens of d = dI + dR channels, n blocks of the flow, K components.
import * as ort from "onnxruntime-web/wasm";
import { Mixture, softmax } from "./mixture";
import { Random } from "./random";

/** A fault that a reader can do something about; its message is shown on the page. */
export class Sentence extends Error {}

export type Progress = (file: string, loaded: number, total: number) => void;

interface Facts {
  name: string;
  config: {
    image_shape: [number, number, number]; num_classes: number; patch_size: number; levels: number;
    informative_channels: number | null; components: number; redundant_components: number; condition_repeats: number; prior_layers: number; prior_width: number; head_width: number;
  };
  class_names: string[];
  reverse_prior: boolean;
  reverse_blocks: boolean[];
  files: Record<string, number>; // sizes in bytes
  images: string;
  labels: number[];
  basis: string;
  deviations: number[][];
}

export interface Latents {
  count: number; // B
  informative: Float32Array; // (B, N, dI)
  redundant: Float32Array; // (B, N, dR)
}

export interface Encoded extends Latents {
  logdet: Float32Array; // (B,) nats
  states: Float32Array; // (B, n + 1, N, d): tokens before, between and behind the blocks
  logScales: Float32Array; // (B, n, N, d)
}

export interface Mixtures {
  own: Mixture[]; // (B N,)
  shared: Mixture[]; // (B,); empty where the redundant channels have none
}

/** Bits of one image, (N,) each; their sum is its cost. */
export interface Bits {
  informative: Float64Array;
  redundant: Float64Array;
  volumeInformative: Float64Array;
  volumeRedundant: Float64Array;
  total: Float64Array;
  perDimension: number;
}

const bytesOf = (text: string): Uint8Array => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** A module that only an engine with WebAssembly SIMD accepts. */
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

async function fetchBytes(address: string, progress?: Progress, size = 0): Promise<Uint8Array<ArrayBuffer>> {
  const file = address.split("/").slice(-2).join("/");
  let response: Response;
  try {
    response = await fetch(address);
  } catch {
    throw new Sentence(`The file ${file} could not be fetched: check the connection, then reload the page.`);
  }
  if (!response.ok || !response.body) throw new Sentence(`The file ${file} is missing on the server: build the page again with “make web”, or choose another model.`);
  const parts: Uint8Array[] = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    progress?.(file, loaded, Math.max(size, loaded));
  }
  if (size && loaded !== size) throw new Sentence(`The file ${file} has ${loaded} bytes and not ${size}: reload the page, or build it again with “make web”.`);
  const whole = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

let runtime: Promise<void> | null = null;

/** Fetch and unpack onnxruntime, once. */
export function startRuntime(progress?: Progress): Promise<void> {
  runtime ??= (async () => {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD) || typeof DecompressionStream === "undefined") {
      throw new Sentence("This browser has no WebAssembly SIMD, which the model needs: use Chrome or Edge 91, Firefox 113, Safari 16.4, or newer ones. All texts can be read without it.");
    }
    const packed = await fetchBytes("ort.wasm.gz", progress);
    const isPacked = packed[0] === 0x1f && packed[1] === 0x8b; // some servers unpack it themselves
    const plain = isPacked ? new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))) : new Response(packed);
    ort.env.wasm.wasmBinary = await plain.arrayBuffer();
    ort.env.wasm.numThreads = 1; // threads need headers that simple servers do not send
    ort.env.logLevel = "error";
  })();
  runtime.catch(() => (runtime = null)); // so that another attempt can be made
  return runtime;
}

export class Model {
  readonly shape: [number, number, number];
  readonly patch: number;
  readonly tokens: number; // N
  readonly channels: number; // d
  readonly informative: number; // dI
  readonly redundant: number; // dR
  readonly columns: number; // tokens side by side
  readonly blocks: number; // n
  readonly size: number; // C H W
  readonly images: Float32Array[]; // held out, (C, H, W) in [-1, 1]
  readonly basis: Float32Array; // (d, d)
  private sessions = new Map<string, Promise<ort.InferenceSession>>();
  private weights = new Map<string, Promise<Uint8Array<ArrayBuffer>>>();
  private queue: Promise<unknown> = Promise.resolve();

  private constructor(readonly facts: Facts, private address: string, private progress?: Progress) {
    const { image_shape, patch_size, informative_channels, levels } = facts.config;
    const [channels, height, width] = image_shape;
    this.shape = image_shape;
    this.patch = patch_size;
    this.columns = width / patch_size;
    this.tokens = (height / patch_size) * this.columns;
    this.channels = channels * patch_size ** 2;
    this.informative = informative_channels ?? this.channels;
    this.redundant = this.channels - this.informative;
    this.blocks = facts.reverse_blocks.length;
    this.size = channels * height * width;
    const pixels = Float32Array.from(bytesOf(facts.images), (level) => (2 * level) / (levels - 1) - 1);
    this.images = facts.labels.map((_, i) => pixels.subarray(i * this.size, (i + 1) * this.size));
    this.basis = new Float32Array(bytesOf(facts.basis).buffer);
  }

  /** Read what a folder of `farmer export` says about its model. Weights come when they are first needed. */
  static async open(name: string, progress?: Progress): Promise<Model> {
    const content = new TextDecoder().decode(await fetchBytes(`models/${name}/model.json`));
    try {
      const facts = JSON.parse(content);
      if (facts.farmer_export !== 1) throw new Error("another format");
      return new Model(facts, `models/${name}`, progress);
    } catch {
      throw new Sentence(`models/${name}/model.json is not what “farmer export” writes: build the page again with “make web”.`);
    }
  }

  has(graph: string): boolean {
    return `${graph}.onnx` in this.facts.files;
  }

  className(label: number): string {
    return label === this.facts.config.num_classes ? "none" : (this.facts.class_names[label] ?? String(label));
  }

  /** Load a graph and the weights that it shares with others, once. */
  session(graph: string): Promise<ort.InferenceSession> {
    let session = this.sessions.get(graph);
    if (!session) {
      session = this.load(graph);
      session.catch(() => this.sessions.delete(graph));
      this.sessions.set(graph, session);
    }
    return session;
  }

  private async load(graph: string): Promise<ort.InferenceSession> {
    const file = graph.startsWith("prior") ? "prior.bin" : graph === "student" ? "student.bin" : "flow.bin";
    let weights = this.weights.get(file);
    if (!weights) {
      weights = fetchBytes(`${this.address}/${file}`, this.progress, this.facts.files[file]);
      weights.catch(() => this.weights.delete(file));
      this.weights.set(file, weights);
    }
    const [content, data] = await Promise.all([fetchBytes(`${this.address}/${graph}.onnx`, undefined, this.facts.files[`${graph}.onnx`]), weights, startRuntime(this.progress)]);
    return ort.InferenceSession.create(content, { executionProviders: ["wasm"], graphOptimizationLevel: "basic", externalData: [{ path: file, data }] });
  }

  /** Run a graph. One run at a time: there is one thread. */
  async run(graph: string, feeds: Record<string, ort.Tensor>): Promise<Record<string, Float32Array>> {
    const session = await this.session(graph);
    const result = this.queue.then(() => session.run(feeds));
    this.queue = result.catch(() => undefined);
    const found: Record<string, Float32Array> = {};
    for (const [name, tensor] of Object.entries(await result)) found[name] = tensor.data as Float32Array;
    return found;
  }

  async encode(images: Float32Array, count = 1): Promise<Encoded> {
    const found = await this.run("encode", { images: new ort.Tensor("float32", images, [count, ...this.shape]) });
    return { count, informative: found.informative, redundant: found.redundant, logdet: found.logdet, states: found.states, logScales: found.log_scales };
  }

  /** Latents to images (B, C, H, W): by the exact inverse, or in one pass of the student where there is one. */
  async decode(latents: Latents, exact = false): Promise<Float32Array> {
    const graph = exact || !this.has("student") ? "inverse" : "student";
    const feeds = {
      informative: new ort.Tensor("float32", latents.informative, [latents.count, this.tokens, this.informative]),
      redundant: new ort.Tensor("float32", latents.redundant, [latents.count, this.tokens, this.redundant]),
    };
    return (await this.run(graph, feeds)).images;
  }

  labelTensor(labels: number[]): ort.Tensor {
    return new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [labels.length]);
  }

  mixturesIn(found: Record<string, Float32Array>, count: number, prefix = ""): Mixture[] {
    const part = (name: string, index: number) => {
      const values = found[prefix + name];
      return values.subarray((index * values.length) / count, ((index + 1) * values.length) / count);
    };
    return Array.from({ length: count }, (_, i) => new Mixture(part("logits", i), part("mean", i), part("log_scale", i)));
  }

  /** What the prior expects of every token, given those before it, and of all redundant channels. */
  async mixtures(informative: Float32Array, labels: number[]): Promise<Mixtures> {
    const feeds = { informative: new ort.Tensor("float32", informative, [labels.length, this.tokens, this.informative]), labels: this.labelTensor(labels) };
    const found = await this.run("prior", feeds);
    return { own: this.mixturesIn(found, labels.length * this.tokens), shared: "redundant_logits" in found ? this.mixturesIn(found, labels.length, "redundant_") : [] };
  }

  /** Log-density of each token, in nats: of z^I given those before, and of z^R given all z^I. */
  tokenLogProb(latents: Latents, mixtures: Mixtures, image: number): { informative: Float64Array; redundant: Float64Array } {
    const standard = (value: Float32Array) => value.reduce((sum, x) => sum - 0.5 * (x * x + Math.log(2 * Math.PI)), 0);
    const informative = new Float64Array(this.tokens);
    const redundant = new Float64Array(this.tokens);
    for (let i = 0; i < this.tokens; i++) {
      const token = image * this.tokens + i;
      informative[i] = mixtures.own[token].logProb(latents.informative.subarray(token * this.informative, (token + 1) * this.informative));
      const value = latents.redundant.subarray(token * this.redundant, (token + 1) * this.redundant);
      redundant[i] = mixtures.shared.length ? mixtures.shared[image].logProb(value) : standard(value);
    }
    return { informative, redundant };
  }

  /** Noise that spreads each value over its own bin: without it a density of whole levels means nothing. */
  dequantized(image: Float32Array, seed = 0): Float32Array {
    const random = new Random(seed, "dequantize");
    return image.map((value) => value + ((random.uniform() - 0.5) * 2) / (this.facts.config.levels - 1));
  }

  /** Where the bits of an image are paid, for each of some labels. */
  async bits(image: Float32Array, labels: number[]): Promise<Bits[]> {
    const encoded = await this.encode(this.dequantized(image));
    const several = { count: labels.length, informative: repeat(encoded.informative, labels.length), redundant: repeat(encoded.redundant, labels.length) };
    const mixtures = await this.mixtures(several.informative, labels);
    const bin = Math.log(2 / (this.facts.config.levels - 1));
    const volumes = [new Float64Array(this.tokens), new Float64Array(this.tokens)];
    encoded.logScales.forEach((value, at) => {
      const channel = at % this.channels;
      const token = Math.floor(at / this.channels) % this.tokens;
      volumes[channel < this.informative ? 0 : 1][token] -= value / Math.LN2;
    });
    for (let i = 0; i < this.tokens; i++) {
      volumes[0][i] -= (this.informative * bin) / Math.LN2;
      volumes[1][i] -= (this.redundant * bin) / Math.LN2;
    }
    return labels.map((_, index) => {
      const nats = this.tokenLogProb(several, mixtures, index);
      const [informative, redundant] = [nats.informative, nats.redundant].map((part) => part.map((value) => -value / Math.LN2));
      const total = informative.map((value, i) => value + redundant[i] + volumes[0][i] + volumes[1][i]);
      return { informative, redundant, volumeInformative: volumes[0], volumeRedundant: volumes[1], total, perDimension: total.reduce((a, b) => a + b) / this.size };
    });
  }

  /** Probabilities of all classes for an image, by Bayes' rule, and its bits given each. */
  async classes(image: Float32Array): Promise<{ probabilities: Float64Array; bits: Bits[] }> {
    const bits = await this.bits(image, Array.from({ length: this.facts.config.num_classes }, (_, label) => label));
    return { probabilities: softmax(bits.map((each) => -each.perDimension * this.size * Math.LN2)), bits };
  }

  /** Tokens (N, d) as an image (C, H, W): out of the basis, and patches side by side. */
  imageOf(tokens: Float32Array): Float32Array {
    const [, height, width] = this.shape;
    const { channels: d, patch, columns } = this;
    const image = new Float32Array(this.size);
    for (let token = 0; token < this.tokens; token++) {
      for (let i = 0; i < d; i++) {
        let sum = 0;
        for (let k = 0; k < d; k++) sum += tokens[token * d + k] * this.basis[k * d + i];
        const [plane, row, column] = [Math.floor(i / patch ** 2), Math.floor((i % patch ** 2) / patch), i % patch];
        const [down, across] = [Math.floor(token / columns) * patch + row, (token % columns) * patch + column];
        image[(plane * height + down) * width + across] = sum;
      }
    }
    return image;
  }

  /** The token that the prior reads as number i. */
  place(i: number): number {
    return this.facts.reverse_prior ? this.tokens - 1 - i : i;
  }
}

/** The prior's sampling loop, one token at a time, for several labels that read the same tokens. */
export class Sequence {
  private cache!: Float32Array;
  private hidden!: Float32Array;
  private length: number; // tokens in the cache

  private constructor(private model: Model, private labels: number[]) {
    this.length = model.facts.config.condition_repeats;
  }

  static async start(model: Model, labels: number[]): Promise<{ sequence: Sequence; next: Mixture[] }> {
    const sequence = new Sequence(model, labels);
    return { sequence, next: sequence.keep(await model.run("prior-start", { labels: model.labelTensor(labels) })) };
  }

  private keep(found: Record<string, Float32Array>): Mixture[] {
    this.cache = found.next_cache;
    this.hidden = found.hidden;
    return this.model.mixturesIn(found, this.labels.length);
  }

  /** Read a token (dI,) and say what is expected of the next one. */
  async read(token: Float32Array): Promise<Mixture[]> {
    const { prior_layers: layers, prior_width, head_width: width } = this.model.facts.config;
    const feeds = {
      token: new ort.Tensor("float32", repeat(token, this.labels.length), [this.labels.length, token.length]),
      cache: new ort.Tensor("float32", this.cache, [layers, 2, this.labels.length, prior_width / width, this.length, width]),
    };
    const found = await this.model.run("prior-step", feeds);
    this.length++;
    return this.keep(found);
  }

  /** What is expected of the redundant channels, once all tokens are read. */
  async redundant(): Promise<Mixture[]> {
    const hidden = new ort.Tensor("float32", this.hidden, [this.labels.length, this.hidden.length / this.labels.length]);
    return this.model.mixturesIn(await this.model.run("prior-redundant", { hidden }), this.labels.length);
  }
}

export function repeat(values: Float32Array, times: number): Float32Array {
  const several = new Float32Array(values.length * times);
  for (let i = 0; i < times; i++) several.set(values, i * values.length);
  return several;
}

export function concatenate(parts: Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
