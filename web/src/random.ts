// Chance that a seed fixes: the same seed gives the same picture on every machine.

export class Random {
  private state: Uint32Array;
  private spare: number | null = null;

  /** Seeded by a number and by words that say what it is for, so that experiments do not share their chance. */
  constructor(seed: number, purpose = "") {
    let hash = 2166136261 ^ seed; // FNV-1a
    for (const letter of `${seed} ${purpose}`) hash = Math.imul(hash ^ letter.charCodeAt(0), 16777619);
    this.state = new Uint32Array([hash, hash ^ 0x9e3779b9, seed, 1]);
    for (let i = 0; i < 16; i++) this.uniform();
  }

  /** A number in [0, 1), of 32 bits (sfc32). */
  uniform(): number {
    const [a, b, c, counter] = this.state;
    const sum = (a + b + counter) >>> 0;
    this.state[3] = counter + 1;
    this.state[0] = b ^ (b >>> 9);
    this.state[1] = c + (c << 3);
    this.state[2] = ((c << 21) | (c >>> 11)) + sum;
    return sum / 2 ** 32;
  }

  /** A standard normal number (Box and Muller). */
  normal(): number {
    if (this.spare !== null) {
      const value = this.spare;
      this.spare = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** An index, drawn with probabilities that add up to 1. */
  choose(probabilities: ArrayLike<number>): number {
    let left = this.uniform();
    let last = 0;
    for (let i = 0; i < probabilities.length; i++) {
      if (probabilities[i] > 0) last = i;
      left -= probabilities[i];
      if (left < 0) return i;
    }
    return last;
  }
}
