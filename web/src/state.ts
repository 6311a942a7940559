// What the reader has set. The address carries it, so that a link leads to this moment.
import type { Way } from "./guidance";

const STARTS = {
  model: "photos",
  image: 8, // of the held-out ones; the one behind the last is the reader's own
  token: 27,
  channel: 0,
  block: 1, // 0: before the first
  exact: 0, // 1: back by the exact inverse, 0: by the student
  variance: 1,
  seed: 0,
  donor: 5,
  swapped: 64, // tokens, from the first on
  offset: 3, // deviations
  label: "own", // for the bits: own, none, or a class
  drawn: "", // 32 x 32 bits, as hexadecimal digits
  wanted: 8, // class to sample
  scale: 2, // of guidance
  way: "posterior" as Way,
  step: 0, // tokens drawn so far
};
export type State = typeof STARTS;
export type Key = keyof State;

/** The state that an address describes; values that mean nothing are left at their start. */
export function parse(hash: string): State {
  const state: Record<string, string | number> = { ...STARTS };
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (!(key in STARTS)) continue;
    const start = STARTS[key as Key];
    const value = typeof start === "number" ? Number(text) : text;
    if (typeof value === "string" ? /^[\w-]{0,300}$/.test(value) : text !== "" && Number.isFinite(value) && value >= -1e6 && value <= 1e6) state[key] = value;
  }
  return state as State;
}

/** The address of a state: what differs from the start. */
export function format(state: State): string {
  const parts = Object.entries(state).filter(([key, value]) => value !== STARTS[key as Key]);
  return parts.length ? `#${new URLSearchParams(parts.map(([key, value]) => [key, String(value)]))}` : "";
}
