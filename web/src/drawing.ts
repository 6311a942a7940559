// A digit of the reader's own: drawn on 32 x 32 points, of which the model sees how many are inked in each 4 x 4 block, as in its training data.
import { type App, element } from "./app";
import { frame, keep, paint, paintMap } from "./view";

export const SIDE = 32;

/** Points (0 or 1) as hexadecimal digits, four to a digit; nothing drawn: empty. */
export function packed(points: Uint8Array): string {
  if (!points.some(Boolean)) return "";
  let text = "";
  for (let i = 0; i < points.length; i += 4) text += (8 * points[i] + 4 * points[i + 1] + 2 * points[i + 2] + points[i + 3]).toString(16);
  return text;
}

export function unpacked(text: string): Uint8Array {
  const points = new Uint8Array(SIDE * SIDE);
  if (!/^[0-9a-f]{256}$/.test(text)) return points;
  [...text].forEach((letter, i) => {
    for (let k = 0; k < 4; k++) points[4 * i + k] = (parseInt(letter, 16) >> (3 - k)) & 1;
  });
  return points;
}

/** What the model of digits sees: 8 x 8 values in [-1, 1], on 17 levels. */
export function seen(points: Uint8Array): Float32Array {
  const image = new Float32Array(64);
  points.forEach((point, i) => (image[8 * Math.floor(i / SIDE / 4) + Math.floor((i % SIDE) / 4)] += point));
  return image.map((count) => count / 8 - 1);
}

/** Ink a line from one place to another, three points wide. */
export function stroke(points: Uint8Array, from: readonly [number, number], to: readonly [number, number]): void {
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let i = 0; i <= steps; i++) {
    const [x, y] = [0, 1].map((axis) => from[axis] + ((to[axis] - from[axis]) * i) / steps);
    for (let row = Math.max(0, Math.ceil(y - 1.6)); row <= Math.min(SIDE - 1, y + 1.6); row++) {
      for (let column = Math.max(0, Math.ceil(x - 1.6)); column <= Math.min(SIDE - 1, x + 1.6); column++) {
        if ((row - y) ** 2 + (column - x) ** 2 <= 2.6) points[row * SIDE + column] = 1;
      }
    }
  }
}

/** Meters with words on both sides. */
export function meters(place: HTMLElement, title: string, rows: { name: string; share: number; words: string; other?: boolean }[]): void {
  place.replaceChildren();
  place.insertAdjacentHTML("beforeend", "<b></b>");
  place.firstElementChild!.textContent = title;
  for (const { name, share, words, other } of rows) {
    place.insertAdjacentHTML("beforeend", `<span></span><span class="meter${other ? " other" : ""}"><i style="width:${(100 * share).toFixed(1)}%"></i></span><span></span>`);
    place.lastElementChild!.textContent = words;
    place.children[place.children.length - 3].textContent = name;
  }
}

export function drawing(app: App): void {
  const pad = element<HTMLCanvasElement>("pad");
  const pen = pad.getContext("2d")!;
  let cursor: [number, number] = [16, 8];
  let last: [number, number] | null = null;

  function refresh(): void {
    const points = unpacked(app.state.drawn);
    const data = new ImageData(SIDE, SIDE);
    points.forEach((point, i) => data.data.set(point ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * i));
    pen.putImageData(data, 0, 0);
    if (document.activeElement === pad && !last) {
      pen.fillStyle = "#f5a742";
      pen.fillRect(cursor[0], cursor[1], 1, 1);
    }
  }
  function ink(from: [number, number], to: [number, number]): void {
    const points = unpacked(app.state.drawn);
    stroke(points, from, to);
    app.set({ drawn: packed(points) });
    refresh();
  }
  const place = (event: PointerEvent): [number, number] => {
    const { left, top, width, height } = pad.getBoundingClientRect();
    return [((event.clientX - left) / width) * SIDE - 0.5, ((event.clientY - top) / height) * SIDE - 0.5];
  };
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    ink((last = place(event)), last);
  };
  pad.onpointermove = (event) => {
    if (!last) return;
    const next = place(event);
    ink(last, next);
    last = next;
  };
  pad.onpointerup = pad.onpointercancel = () => (last = null);
  pad.onfocus = pad.onblur = refresh;
  pad.onkeydown = (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) cursor = [0, 1].map((axis) => Math.min(SIDE - 1, Math.max(0, cursor[axis] + move[axis]))) as [number, number];
    else if (event.key === " ") ink(cursor, cursor);
    else if (event.key === "Backspace") app.set({ drawn: "" });
    else return;
    event.preventDefault();
    refresh();
  };
  element("pad-clear").onclick = () => app.set({ drawn: "" });

  app.section("draw", ["drawn"], async () => {
    refresh();
    const [pictures, classes] = [element("draw-pictures"), element("draw-classes")];
    if (!app.state.drawn) {
      keep(pictures, 0);
      classes.replaceChildren();
      element("draw-note").textContent = "Nothing drawn yet. By keyboard: arrow keys move the orange point, space inks, backspace clears.";
      return;
    }
    const model = await app.open("digits");
    const image = seen(unpacked(app.state.drawn));
    const { probabilities, bits } = await model.classes(image);
    const best = probabilities.indexOf(Math.max(...probabilities));
    const { total, perDimension } = bits[best];
    paint(frame(pictures, 0, "as the model sees it").canvas, image, model.shape);
    paintMap(frame(pictures, 1, "bits of its tokens, bright ones surprise").canvas, total, model.columns, Math.min(...total), Math.max(...total));
    paint(frame(pictures, 2, "through the model and back").canvas, await model.decode(await model.encode(image)), model.shape);
    meters(classes, "How likely is each class?", Array.from(probabilities, (share, label) => ({ name: model.className(label), share, words: `${(100 * share).toFixed(0)} %` })));
    element("draw-note").textContent = `It is most like a ${model.className(best)}, and then costs ${perDimension.toFixed(2)} bits a pixel. Nine of ten real digits cost 1.6 to 2.5, noise 7 or more.`;
  });
}
