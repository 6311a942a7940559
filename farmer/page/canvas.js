// A canvas to draw on, with mouse or keyboard: the widget of farmer.explorer._canvas, by anywidget.
export default { render({ model, el }) {
  const [channels, height, width] = model.get("shape"), zoom = Math.max(1, Math.floor(208 / width));
  const canvas = document.createElement("canvas"), colour = document.createElement("input"), hint = document.createElement("div");
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let x = width >> 1, y = height >> 1, down = false;
  canvas.width = width; canvas.height = height; canvas.tabIndex = 0;
  canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", "canvas: arrow keys move, space paints");
  canvas.style.cssText = `width:${zoom * width}px;height:${zoom * height}px;image-rendering:pixelated;cursor:crosshair;touch-action:none;border:1px solid gray`;
  colour.type = "color"; colour.value = "#ffffff"; colour.setAttribute("aria-label", "colour of the pen");
  hint.textContent = "draw with the mouse, or with arrow keys and space"; hint.style.fontSize = "smaller";
  const paint = () => { pen.fillStyle = colour.value; pen.fillRect(x, y, 1, 1); };
  const place = event => { const box = canvas.getBoundingClientRect();
    x = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * width)));
    y = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * height))); };
  const send = () => { model.set("pixels", Array.from(pen.getImageData(0, 0, width, height).data)); model.save_changes(); };
  const load = () => { const pixels = model.get("pixels");
    pen.fillStyle = model.get("ground"); pen.fillRect(0, 0, width, height);
    if (pixels.length) pen.putImageData(new ImageData(Uint8ClampedArray.from(pixels), width, height), 0, 0); };
  canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); down = true; place(event); paint(); };
  canvas.onpointermove = event => { if (down) { place(event); paint(); } }; canvas.onpointerup = () => { down = false; send(); };
  canvas.onkeydown = event => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) { x = Math.min(width - 1, Math.max(0, x + step[0])); y = Math.min(height - 1, Math.max(0, y + step[1])); }
    else if (event.key === " ") { paint(); send(); } else return;
    event.preventDefault(); event.stopPropagation(); };
  model.on("change:pixels", load); load();
  el.append(canvas, document.createElement("br"), colour, hint);
} };
