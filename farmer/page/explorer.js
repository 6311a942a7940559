// What ipywidgets leaves out, by anywidget: names of sliders, roles of tabs, the width of figures; and a mark on the page while its panel is not the one whose tab is chosen.
const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
function mend() {
  document.querySelector("#rendered_cells")?.setAttribute("role", "main");
  for (const handle of document.querySelectorAll(".explorer-panel .noUi-handle")) {
    const row = handle.closest(".widget-inline-hbox"), name = row?.querySelector(".widget-label")?.textContent;
    if (!name) continue;  // not all of it is there yet
    set(handle, { "aria-label": name });
    const number = row.querySelector(".widget-readout");
    if (number) set(number, { role: "textbox", "aria-label": `${name}, as a number` });
  }
  for (const figure of document.querySelectorAll(".explorer-panel .js-plotly-plot"))  // drawn before it had a place, and so a width
    if (figure.clientWidth && figure.dataset.width !== `${figure.clientWidth}`) {
      figure.dataset.width = figure.clientWidth;
      setTimeout(() => window.dispatchEvent(new Event("resize")), 100);
    }
  for (const page of document.querySelectorAll(".explorer-page")) {
    let kind = "";
    for (const tab of page.querySelectorAll(".explorer-tabs button")) {
      const active = tab.classList.contains("mod-active");
      if (active) kind = tab.textContent.replaceAll(" ", "").toLowerCase();
      set(tab.parentElement, { role: "tablist", "aria-label": "panels" });
      set(tab, { role: "tab", "aria-selected": active });
    }
    const shown = page.querySelector(`.explorer-place .farmer-${kind}, .explorer-problem [role=alert]`);
    page.classList.toggle("explorer-away", !shown);
    page.querySelector(".explorer-place")?.setAttribute("role", "tabpanel");
  }
}
export default { render() {
  const observer = new MutationObserver(mend);
  observer.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] });
  mend();
  return () => observer.disconnect();
} };
