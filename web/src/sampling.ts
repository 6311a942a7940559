// A new picture, token by token, with the candidates of guidance and their weights in sight.
import { type App, element } from "./app";
import { meters } from "./drawing";
import { type Choice, choiceProbabilities, effectiveSize, guided, logWeights } from "./guidance";
import type { Mixture } from "./mixture";
import { type Model, Sentence, Sequence } from "./model";
import { Random } from "./random";
import type { State } from "./state";
import { frame, markToken, paint } from "./view";

/** One run of the prior's loop, which goes on where it stopped and shows any of its earlier moments. */
class Run {
  readonly choices: Choice[] = [];
  private sequence!: Sequence;
  private next!: Mixture[]; // of the next token, with the class and without
  private redundant: Float32Array | null = null;

  private constructor(private model: Model, private state: State) {}

  static async start(model: Model, state: State): Promise<Run> {
    const run = new Run(model, state);
    ({ sequence: run.sequence, next: run.next } = await Sequence.start(model, [state.wanted, model.facts.config.num_classes]));
    return run;
  }

  /** Draw until so many tokens are there. Every token has chance of its own. */
  async until(count: number): Promise<void> {
    const { seed, scale, way } = this.state;
    while (this.choices.length < count) {
      const before = this.choices.at(-1)?.logPosterior ?? -Math.log(this.model.facts.config.num_classes);
      const choice = guided(way, this.next[0], this.next[1], scale, before, new Random(seed, `token ${this.choices.length}`));
      this.next = await this.sequence.read(choice.candidates[choice.chosen].value);
      this.choices.push(choice);
    }
  }

  /** z^R once all tokens are there: from the mixture that knows the class, or by the paper from one pool of weighed candidates. */
  private async finish(): Promise<Float32Array> {
    const { tokens, redundant: size } = this.model;
    const values = new Float32Array(tokens * size);
    const random = new Random(this.state.seed, "redundant");
    if (!this.model.has("prior-redundant")) return values.map(() => random.normal());
    const [conditional, unconditional] = await this.sequence.redundant();
    const isPooled = this.state.way === "resampling" && this.state.scale > 0;
    const pool = isPooled ? [conditional, unconditional].flatMap((mixture, i) => Array.from({ length: 64 }, () => ({ value: mixture.sample(random), withClass: i === 0 }))) : [];
    const probabilities = isPooled ? choiceProbabilities(logWeights("resampling", conditional, unconditional, pool, this.state.scale, 0)) : null;
    for (let token = 0; token < tokens; token++) {
      values.set(probabilities ? pool[random.choose(probabilities)].value : conditional.sample(random), this.model.place(token) * size);
    }
    return values;
  }

  /** The picture so far: tokens that are not drawn yet have latents of zero. */
  async picture(count: number): Promise<Float32Array> {
    const { tokens, informative: size } = this.model;
    const informative = new Float32Array(tokens * size);
    for (const [i, { candidates, chosen }] of this.choices.slice(0, count).entries()) informative.set(candidates[chosen].value, this.model.place(i) * size);
    if (count === tokens) this.redundant ??= await this.finish();
    const redundant = count === tokens ? this.redundant! : new Float32Array(tokens * this.model.redundant);
    return this.model.decode({ count: 1, informative, redundant });
  }
}

export function sampling(app: App): void {
  let run: { key: string; run: Run } | null = null;
  element("sample-next").onclick = async () => app.set({ step: Math.min((await app.model()).tokens, app.state.step + 1) });
  element("sample-all").onclick = async () => app.set({ step: (await app.model()).tokens });

  app.section("sample", ["wanted", "scale", "way", "seed", "step"], async () => {
    const model = await app.model();
    if (!model.has("prior-start") || model.facts.config.num_classes === 0) throw new Sentence("This model has no classes to guide between: choose another one.");
    const { wanted, scale, way, seed, step } = app.state;
    const key = [model.facts.name, wanted, scale, way, seed].join(" ");
    if (run?.key !== key) run = { key, run: await Run.start(model, { ...app.state }) };
    await run.run.until(step);
    const { canvas, mark } = frame(element("sample-pictures"), 0, step === model.tokens ? `a new ${model.className(wanted)}, seed ${seed}` : `${step} of ${model.tokens} tokens`);
    paint(canvas, await run.run.picture(step), model.shape);
    mark.hidden = true;
    const choice = run.run.choices[step - 1];
    if (!choice) {
      element("sample-candidates").replaceChildren();
      element("sample-note").textContent = "Nothing drawn yet: the picture of all zeros. Press “Next token”.";
      return;
    }
    markToken(mark, model.place(step - 1), model.columns, model.tokens);
    const rows = choice.candidates.map(({ withClass }, i) => ({
      name: withClass ? "with class" : "without", share: choice.probabilities[i], other: !withClass,
      words: `${(100 * choice.probabilities[i]).toFixed(0)} %${i === choice.chosen ? " ✓ chosen" : ""}`,
    }));
    meters(element("sample-candidates"), `Candidates for token ${model.place(step - 1)}`, rows);
    element("sample-note").textContent = `These ${rows.length} candidates are worth ${effectiveSize(choice.probabilities).toFixed(1)} equally good ones. The tokens so far say “${model.className(wanted)}” with ${(100 * Math.exp(choice.logPosterior)).toFixed(0)} %.${way === "posterior" && scale > 0 && choice.logPosterior > -0.1 ? " That is clear enough: guidance pulls hardly any more." : ""}`;
  });
}
