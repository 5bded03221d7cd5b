// What every explorer shares: labelled sliders, numbers, a picture, a spoken sentence, dark mode.
// Nothing moves by itself, so there is no motion to reduce. An explorer extends this class with
//   static title, static intro        what it is and how to use it, in one sentence
//   static controls                   [{ name, label, min, max, step, color, more }]; those with
//                                     `more` wait under a summary, `static more`; those with
//                                     `toggle` instead of a range are boxes to tick, in a row;
//                                     those with `options` are a list to choose from
//   compute(state)                    the numbers, kept in `element.values`
//   rows(values)                      [[label, number or text]] to print
//   sentence(values, state)           the same for the ear
//   picture(values, state)            the inside of an SVG of 340 by `static height` units
//   static pad, point(x, y, first)    optional: where the picture can be touched, and what to do
//                                     when it is pressed, or drawn upon, at a place there
// Where the state has a `step`, it holds a sequence x_1, x_2, ..., and the control `value` shows and
// changes the input of that step.
const STYLE = `
:host { display: block; box-sizing: border-box; max-width: 52rem; margin: 0 0 1.15rem; padding: 1rem;
  border: 1px solid var(--pst-color-border, #8888); border-radius: .5rem; line-height: 1.4;
  background: var(--pst-color-background, transparent); color: var(--pst-color-text-base, inherit);
  font-family: var(--pst-font-family-base, system-ui, sans-serif); font-size: 1rem;
  --input: #007958; --hidden: #0072B2; --reset: #C44E00; --update: #B37A00; --candidate: #B0578D;
  --memory: #6B3E26; --gradient: #5B3A99 }
:host([dark]) { color-scheme: dark;
  --input: #4cc9a0; --hidden: #6cb6f0; --reset: #ff9a5c; --update: #e8b44a; --candidate: #e39ac6;
  --memory: #d9a282; --gradient: #b79cf0 }
p { margin: 0 0 .75rem }
.panes { display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)) }
label { display: flex; justify-content: space-between; gap: .5rem }
fieldset { display: flex; flex-wrap: wrap; gap: .25rem .6rem; border: 0; margin: 0 0 .75rem; padding: 0 }
legend { padding: 0 }
fieldset label { gap: .35rem; align-items: center; min-height: 1.75rem; cursor: pointer }
input[type=checkbox] { width: 1.15rem; height: 1.15rem; margin: 0; accent-color: var(--c) }
input[type=range] { display: block; width: 100%; height: 1.75rem; margin: 0 0 .4rem; accent-color: var(--c) }
select { font: inherit; color: inherit; background: var(--pst-color-background, Canvas);
  min-height: 1.75rem; max-width: 60%; margin-bottom: .6rem; border: 1px solid; border-radius: .4rem }
summary, button { cursor: pointer; padding: .3rem 0; min-height: 1.5rem }
button { font: inherit; color: inherit; background: none; border: 1px solid; border-radius: .4rem;
  padding: .3rem .7rem; margin: .5rem .4rem 0 0 }
:focus-visible { outline: 3px solid var(--hidden); outline-offset: 2px }
svg { display: block; width: 100%; height: auto; font-size: 13px; fill: currentColor; user-select: none }
.pad { fill: transparent; cursor: pointer }
dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem 1rem; margin: 0 0 .75rem }
dd { margin: 0; text-align: right }
dd, span, svg { font-variant-numeric: tabular-nums }
[aria-live] { margin: .75rem 0 0 }`;

const show = (value, digits = 2) => {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && +text ? "−" : "") + text;
};

const sigmoid = (a) => 1 / (1 + Math.exp(-a));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const oneTo = (count) => Array.from({ length: count }, (_, i) => i + 1);

// Pieces of a picture. `style` is CSS.
const line = (x1, y1, x2, y2, style = "") =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="currentColor" style="${style}"/>`;
const text = (x, y, words, anchor = "middle", style = "") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" style="${style}">${words}</text>`;
const rect = (x, y, width, height, color, more = "") =>
  `<rect x="${x}" y="${y}" width="${width}" height="${height}" style="fill:var(--${color})" ${more}/>`;
const polyline = (points, style) =>
  `<polyline fill="none" points="${points.join(" ")}" style="stroke-width:2;${style}"/>`;
// A line of the legend.
const key = (x, words, style) =>
  line(x, 8, x + 22, 8, `stroke-width:2.5;${style}`) + text(x + 27, 12, words, "start");
// Where the picture can be pressed. It is drawn upon unless `look` says "tap", where a finger that
// moves scrolls the page. (A pad stays while the picture is drawn anew.)
const pad = (x, y, width, height, look = "draw") =>
  `<rect class="pad ${look}" x="${x}" y="${y}" width="${width}" height="${height}"/>`;

class Explorer extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    const { title, intro, controls, more, height, toggles, pad } = this.constructor;
    for (const name of ["start", "given", "measured"])
      this[name] = JSON.parse(this.dataset[name] ?? "null");
    const slider = ({ name, label, min, max, step, color, options }) => options ?
      `<label for="${name}"><span>${label}</span><select id="${name}">${options.map((words, i) =>
        `<option value="${i}">${words}</option>`).join("")}</select></label>` :
      `<label for="${name}"><span>${label}</span><span id="${name}-value" aria-hidden="true"></span></label>
      <input type="range" id="${name}" min="${min}" max="${max}" step="${step}" style="--c:var(--${color})">`;
    const box = ({ name, label, color }) =>
      `<label><input type="checkbox" id="${name}" style="--c:var(--${color})">${label}</label>`;
    const boxes = controls.filter((c) => c.toggle).map(box).join("");
    const sliders = (hidden) =>
      controls.filter((c) => !c.toggle && !c.more === !hidden).map(slider).join("");
    const root = this.attachShadow({ mode: "open" });
    root.innerHTML = `<style>${STYLE}</style><div role="group" aria-label="${title}"><p>${intro}</p>
      <div class="panes"><div>${boxes && `<fieldset><legend>${toggles}</legend>${boxes}</fieldset>`}${sliders(false)}
      ${more ? `<details><summary>${more}</summary>${sliders(true)}</details>` : ""}
      <button type="button">Reset</button></div>
      <div><dl></dl><svg viewBox="0 0 340 ${height}" role="img" aria-label="${title}: the numbers drawn"><g></g>${pad ?? ""}</svg></div>
      </div><p aria-live="polite"></p></div>`;
    this.find = (selector) => root.querySelector(selector);
    const read = (input) => +(input.type === "checkbox" ? input.checked : input.value);
    root.addEventListener("input", ({ target }) => this.set({ [target.id]: read(target) }));
    this.find("button").addEventListener("click", () => this.set(this.start));
    const svg = this.find("svg");
    const draw = ({ type, target, pointerId, clientX, clientY }) => {
      const first = type === "pointerdown";
      if (first && target.matches(".pad")) svg.setPointerCapture(pointerId);
      if (!svg.hasPointerCapture(pointerId)) return;
      const at = new DOMPoint(clientX, clientY).matrixTransform(svg.getScreenCTM().inverse());
      this.point(at.x, at.y, first);
    };
    svg.addEventListener("pointerdown", draw);
    svg.addEventListener("pointermove", draw);
    svg.addEventListener("touchstart", (event) => {
      if (event.target.matches(".draw")) event.preventDefault(); // no scrolling
    }, { passive: false });
    this.set(this.start);
    this.adapt();
    const adapt = () => this.adapt();
    new MutationObserver(adapt).observe(document.documentElement, { attributes: true });
    new MutationObserver(adapt).observe(document.body, { attributes: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", adapt);
  }

  set(changes) {
    const state = { ...this.state, ...changes };
    if (state.step) {
      const x = `x_${state.step}`;
      if ("value" in changes && !("step" in changes)) state[x] = changes.value;
      state.value = state[x];
    }
    this.state = state;
    for (const { name, step, toggle } of this.constructor.controls) {
      const input = this.find(`#${name}`), number = this.find(`#${name}-value`);
      input[toggle ? "checked" : "value"] = state[name];
      if (number) number.textContent = show(state[name], step % 1 ? 2 : 0);
    }
    this.values = this.compute(this.state);
    this.find("dl").innerHTML = this.rows(this.values)
      .map(([label, value]) => `<dt>${label}</dt><dd>${value.trim ? value : show(value, 4)}</dd>`).join("");
    this.find("g").innerHTML = this.picture(this.values, this.state);
    clearTimeout(this.pending);
    this.pending = setTimeout(() => {
      this.find("[aria-live]").textContent = this.sentence(this.values, this.state);
    }, 300);
  }

  // Light text means a dark page, in the book as in any notebook.
  adapt() {
    const [r, g, b] = getComputedStyle(this).color.match(/[\d.]+/g).map(Number);
    this.toggleAttribute("dark", 0.3 * r + 0.6 * g + 0.1 * b > 128);
  }
}
