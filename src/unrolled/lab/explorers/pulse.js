// The home page's figure: one GRU unit over eight steps, with weights that make its story plain.
// Its equations are those of unrolled.gru.gru_step with Wz = 4, Wh = 3 and all other weights 0.
const STEPS = oneTo(8);

class Pulse extends Explorer {
  static title = "A GRU unit reads eight inputs";
  static intro = "Tick a step to show the unit something there, and see what it remembers of it.";
  static toggles = "Input is 1 at step";
  static height = 190;
  static controls = [
    ...STEPS.map((t) => ({ name: `x_${t}`, label: t, toggle: true, color: "input" })),
    { name: "bz", label: "Update gate’s bias", min: -8, max: 2, step: 0.5, color: "update" },
  ];

  connectedCallback() {
    super.connectedCallback();
    // Eight boxes in one row, on a phone too: the last would seem left over in a row of its own.
    const row = this.shadowRoot.querySelector("fieldset");
    row.style.columnGap = ".5rem";
    for (const label of row.querySelectorAll("label")) label.style.gap = ".15rem";
  }

  compute(state) {
    const outputs_h = [];
    let h = 0;
    for (const t of STEPS) {
      const x = state[`x_${t}`];
      const update = sigmoid(4 * x + state.bz);
      h = (1 - update) * h + update * Math.tanh(3 * x);
      outputs_h.push(h);
    }
    return { outputs_h, final_h: h };
  }

  rows({ final_h }) {
    return [["State after step 8", final_h]];
  }

  sentence({ outputs_h, final_h }, state) {
    const on = STEPS.filter((t) => state[`x_${t}`]);
    const seen = on.length ? `Input at step ${on.join(", ")}.` : "No input at all.";
    return `${seen} The state goes ${outputs_h.map((h) => show(h)).join(", ")}.`;
  }

  picture({ outputs_h }, state) {
    const X = (i) => 26 + 41 * i;
    return STEPS.map((t, i) => {
      const x = X(i), h = outputs_h[i], old = i ? outputs_h[i - 1] : 0, on = state[`x_${t}`];
      const wide = (value) => 1 + 6 * value;
      return line(x - 27, 118, x - 14, 118, `stroke:var(--hidden);stroke-width:${wide(old)}`) +
        line(x, 150, x, 132, `stroke:var(--input);stroke-width:${wide(on)}`) +
        `<circle cx="${x}" cy="160" r="10" style="stroke:var(--input);stroke-width:2;fill:${on ? "var(--input)" : "none"}"/>` +
        `<rect x="${x - 13}" y="105" width="26" height="26" rx="5" fill="none" stroke="currentColor"/>` +
        rect(x - 9, 98 - 76 * h, 18, 76 * h, "hidden", 'rx="2"') + text(x, 92 - 76 * h, show(h)) +
        text(x, 187, t);
    }).join("");
  }
}
