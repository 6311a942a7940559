// Pictures on the page: images and maps on canvases, bars and curves as SVG.

export interface Frame {
  figure: HTMLElement;
  canvas: HTMLCanvasElement;
  mark: HTMLElement;
  caption: HTMLElement;
}

/** A picture with a caption, as the next child of a place; the same element again when it is drawn anew. */
export function frame(place: HTMLElement, index: number, name = ""): Frame {
  while (place.children.length <= index) {
    const figure = document.createElement("figure");
    figure.innerHTML = '<div class="frame"><canvas role="img"></canvas><i class="mark" hidden></i></div><figcaption></figcaption>';
    place.append(figure);
  }
  const figure = place.children[index] as HTMLElement;
  const canvas = figure.querySelector("canvas")!;
  const caption = figure.querySelector("figcaption")!;
  if (name) {
    caption.textContent = name;
    canvas.setAttribute("aria-label", name);
  }
  return { figure, canvas, mark: figure.querySelector(".mark")!, caption };
}

/** Remove the pictures behind the first few. */
export function keep(place: HTMLElement, count: number): void {
  while (place.children.length > count) place.lastElementChild!.remove();
}

function resize(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  return canvas.getContext("2d")!;
}

function toImageData(image: ArrayLike<number>, [channels, height, width]: readonly number[]): ImageData {
  const data = new ImageData(width, height);
  const plane = height * width;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = Math.round((image[(c % channels) * plane + i] + 1) * 127.5);
    data.data[4 * i + 3] = 255;
  }
  return data;
}

/** An image (C, H, W) in [-1, 1]. */
export function paint(canvas: HTMLCanvasElement, image: ArrayLike<number>, shape: readonly number[]): void {
  resize(canvas, shape[2], shape[1]).putImageData(toImageData(image, shape), 0, 0);
}

/** An image cut into its tokens, with gaps between them; those that are not lit are dim. */
export function paintTokens(canvas: HTMLCanvasElement, image: ArrayLike<number>, shape: readonly number[], patch: number, lit: (token: number) => boolean = () => true): void {
  const [, height, width] = shape;
  const [rows, columns, zoom] = [height / patch, width / patch, 8];
  const gap = Math.max(4, (zoom * patch) / 6);
  const step = zoom * patch + gap;
  const context = resize(canvas, columns * step - gap, rows * step - gap);
  const whole = new OffscreenCanvas(width, height);
  whole.getContext("2d")!.putImageData(toImageData(image, shape), 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  for (let token = 0; token < rows * columns; token++) {
    const [row, column] = [Math.floor(token / columns), token % columns];
    context.globalAlpha = lit(token) ? 1 : 0.18;
    context.drawImage(whole, column * patch, row * patch, patch, patch, column * step, row * step, zoom * patch, zoom * patch);
  }
  context.globalAlpha = 1;
}

// Cividis at five places: from dark blue to yellow, in even steps for every kind of colour vision.
const CIVIDIS = [[0, 32, 77], [66, 78, 108], [124, 123, 120], [187, 173, 108], [255, 233, 69]];

export function mapColour(share: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, Number.isFinite(share) ? share : 0)) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return CIVIDIS[low].map((value, i) => Math.round(value + (at - low) * (CIVIDIS[low + 1][i] - value))) as [number, number, number];
}

/** Numbers as colours, dark where low and bright where high. */
export function paintMap(canvas: HTMLCanvasElement, values: ArrayLike<number>, columns: number, low: number, high: number): void {
  const rows = values.length / columns;
  const data = new ImageData(columns, rows);
  for (let i = 0; i < values.length; i++) data.data.set([...mapColour((values[i] - low) / (high - low || 1)), 255], 4 * i);
  resize(canvas, columns, rows).putImageData(data, 0, 0);
}

/** Mark a token on a picture. */
export function markToken(mark: HTMLElement, token: number, columns: number, tokens: number): void {
  const rows = tokens / columns;
  Object.assign(mark.style, {
    left: `${(100 * (token % columns)) / columns}%`, top: `${(100 * Math.floor(token / columns)) / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%`,
  });
  mark.hidden = false;
}

/** Bars from zero, informative ones first, the selected one framed. */
export function bars(place: HTMLElement, values: ArrayLike<number>, informative: number, selected: number, pick: (channel: number) => void): void {
  const most = Math.max(1, ...Array.from(values, Math.abs));
  const width = 320 / values.length;
  const rects = Array.from(values, (value, i) => {
    const height = Math.max(1, (46 * Math.abs(value)) / most);
    const kind = i < informative ? "informative" : "redundant";
    const chosen = i === selected ? ' class="chosen"' : "";
    return `<rect x="${i * width}" y="0" width="${width}" height="100" fill="transparent" data-channel="${i}"${chosen}/>` +
      `<rect x="${i * width + 0.1 * width}" y="${value > 0 ? 50 - height : 50}" width="${0.8 * width}" height="${height}" class="${kind}" data-channel="${i}"/>`;
  });
  place.innerHTML = `<svg viewBox="0 0 320 100" preserveAspectRatio="none" role="img" aria-label="${values.length} channels of the token as bars; channel ${selected} has the value ${values[selected].toFixed(2)}">${rects.join("")}<line x1="0" x2="320" y1="50" y2="50" class="axis"/><line x1="${informative * width}" x2="${informative * width}" y1="0" y2="100" class="axis border"/></svg>`;
  place.onclick = (event) => {
    const channel = (event.target as Element).getAttribute("data-channel");
    if (channel !== null) pick(Number(channel));
  };
}

/** Two curves over the same axis, a value on it and where it is pulled to; a touch pulls it to another place. */
export function curves(place: HTMLElement, solid: (x: number) => number, dashed: (x: number) => number, value: number, pulled: number, words: string, pull: (x: number) => void): void {
  const [low, high] = [Math.min(-4, value - 0.5, pulled - 0.2), Math.max(4, value + 0.5, pulled + 0.2)];
  const places = Array.from({ length: 121 }, (_, i) => low + ((high - low) * i) / 120);
  const [first, second] = [places.map(solid), places.map(dashed)];
  const most = Math.max(0.4, ...first, ...second);
  const across = (x: number) => (320 * (x - low)) / (high - low);
  const path = (heights: number[]) => heights.map((height, i) => `${i ? "L" : "M"}${across(places[i]).toFixed(1)} ${(100 - (92 * height) / most).toFixed(1)}`).join("");
  const ticks = [-3, -2, -1, 0, 1, 2, 3].map((x) => `<line x1="${across(x)}" x2="${across(x)}" y1="100" y2="104" class="axis"/><text x="${across(x)}" y="116">${x}</text>`);
  place.innerHTML =
    `<svg viewBox="0 0 320 120" role="img" aria-label="${words}"><path d="${path(first)}L320 100L0 100Z" class="area"/><path d="${path(second)}" class="without"/><path d="${path(first)}" class="with"/>` +
    `<line x1="${across(pulled)}" x2="${across(pulled)}" y1="0" y2="100" class="value pulled"/><line x1="${across(value)}" x2="${across(value)}" y1="0" y2="100" class="value"/><line x1="0" x2="320" y1="100" y2="100" class="axis"/>${ticks.join("")}</svg>`;
  place.onclick = (event) => {
    const { left, width } = place.firstElementChild!.getBoundingClientRect();
    pull(low + ((high - low) * (event.clientX - left)) / width);
  };
}
