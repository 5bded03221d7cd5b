// Two GRU units with the same weights read `length` inputs, one from each end: what Bidirectional
// computes with seq_lengths. The steps after `length` are padding and nobody reads them.
const STEPS = [1, 2, 3, 4, 5, 6, 7, 8];
const sigmoid = (a) => 1 / (1 + Math.exp(-a));
const cell = (h, x) => {
  const reset = sigmoid(0.5 * x + 1), keep = sigmoid(1.5 - x);
  return (1 - keep) * Math.tanh(2.5 * x + reset * 0.5 * h) + keep * h;
};

class Directions extends Explorer {
  static title = "A sequence read from both ends";
  static intro = "Choose a step, in the picture or below: which inputs has each direction seen there?";
  static height = 252;
  static controls = [
    { name: "step", label: "Step", min: 1, max: 8, step: 1, color: "input" },
    { name: "value", label: "Input at this step", min: -1, max: 1, step: 0.1, color: "input" },
    { name: "length", label: "Length; the rest is padding", min: 0, max: 8, step: 1, color: "reset" },
  ];

  connectedCallback() {
    super.connectedCallback();
    this.find("svg").onclick = ({ target }) => {
      if (target.dataset.step) this.set({ step: +target.dataset.step });
    };
  }

  // The slider `value` shows, and changes, the input of the chosen step.
  set(changes) {
    const state = { ...this.state, ...changes };
    if (!("step" in changes) && "value" in changes) state[`x_${state.step}`] = changes.value;
    this.state = state;
    const { step, length } = state;
    super.set({ step, length, value: state[`x_${step}`] });
  }

  compute(state) {
    const valid = STEPS.slice(0, state.length);
    const read = (order) => {
      const states = STEPS.map(() => 0);
      let carry = 0;
      for (const t of order) states[t - 1] = carry = cell(carry, state[`x_${t}`]);
      return [states, carry];
    };
    const [forward, forward_carry] = read(valid);
    const [backward, backward_carry] = read([...valid].reverse());
    return { forward, backward, forward_carry, backward_carry, step: state.step };
  }

  rows({ forward, backward, forward_carry, backward_carry, step }) {
    return [
      [`Forward state at step ${step}`, forward[step - 1]],
      [`Backward state at step ${step}`, backward[step - 1]],
      ["Forward carry at the end", forward_carry], ["Backward carry at the end", backward_carry],
    ];
  }

  sentence({ forward, backward }, { step, length }) {
    const at = `At step ${step} of ${length}`;
    if (step > length) return `Step ${step} is padding: no direction reads it, and both outputs are 0.`;
    const end = step < length ? `inputs ${length} back to ${step}` : `only input ${step}`;
    return `${at} the forward state ${show(forward[step - 1])} has seen ` +
      `${step > 1 ? `inputs 1 to ${step}` : "only input 1"}, the backward state ` +
      `${show(backward[step - 1])} has seen ${end}.`;
  }

  picture({ forward, backward }, state) {
    const { step, length } = state;
    const X = (t) => 34 * t + 50;
    const text = (x, y, words, anchor = "middle", opacity = 1) =>
      `<text x="${x}" y="${y}" text-anchor="${anchor}" opacity="${opacity}">${words}</text>`;
    const band = (from, to, y, color) => step > length ? "" :
      `<rect x="${X(from) - 15}" y="${y}" width="${34 * (to - from) + 30}" height="6" rx="3" style="fill:var(--${color})"/>`;
    const bars = (y, height, values, color, name) => text(0, y + 4, name, "start") +
      `<line x1="67" y1="${y}" x2="339" y2="${y}" stroke="currentColor" opacity=".4"/>` +
      values.slice(0, length).map((v, i) => {
        const h = Math.abs(v) * height;
        return `<rect x="${X(i + 1) - 9}" y="${v > 0 ? y - h : y}" width="18" height="${h}" style="fill:var(--${color})"/>`;
      }).join("");
    const inputs = STEPS.map((t) => state[`x_${t}`]);
    return `<rect x="${X(step) - 17}" y="1" width="34" height="250" rx="6" fill="none" stroke="currentColor" stroke-width="2"/>` +
      bars(42, 32, forward, "hidden", "forward") + text(0, 62, "→", "start") + band(1, step, 83, "hidden") +
      bars(122, 28, inputs, "input", "input") + band(step, length, 155, "update") +
      bars(201, 32, backward, "update", "backward") + text(0, 221, "←", "start") +
      STEPS.map((t) => (t > length ? text(X(t), 113, "pad", "middle", 0.8) : "") + text(X(t), 246, t) +
        `<rect data-step="${t}" x="${X(t) - 17}" y="0" width="34" height="252" style="fill:transparent;cursor:pointer"/>`).join("");
  }
}
