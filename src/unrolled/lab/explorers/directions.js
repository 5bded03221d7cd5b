// Two GRU units with the same weights read `length` inputs, one from each end: what Bidirectional
// computes with seq_lengths. The steps after `length` are padding and nobody reads them.
const STEPS = oneTo(8);
const cell = (h, x) => {
  const reset = sigmoid(0.5 * x + 1), keep = sigmoid(1.5 - x);
  return (1 - keep) * Math.tanh(2.5 * x + reset * 0.5 * h) + keep * h;
};

class Directions extends Explorer {
  static title = "A sequence read from both ends";
  static intro = "Choose a step, in the picture or below: which inputs has each direction seen there?";
  static height = 252;
  static pad = pad(67, 0, 273, 252, "tap");
  static controls = [
    { name: "step", label: "Step", min: 1, max: 8, step: 1, color: "input" },
    { name: "value", label: "Input at this step", min: -1, max: 1, step: 0.1, color: "input" },
    { name: "length", label: "Length; the rest is padding", min: 0, max: 8, step: 1, color: "reset" },
  ];

  point(x) {
    this.set({ step: clamp(Math.round((x - 50) / 34), 1, 8) });
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
    const band = (from, to, y, color) => step > length ? "" :
      rect(X(from) - 15, y, 34 * (to - from) + 30, 6, color, 'rx="3"');
    const bars = (y, height, values, color, name) => text(0, y + 4, name, "start") +
      line(67, y, 339, y, "opacity:.4") +
      values.slice(0, length).map((v, i) => {
        const h = Math.abs(v) * height;
        return rect(X(i + 1) - 9, v > 0 ? y - h : y, 18, h, color);
      }).join("");
    const inputs = STEPS.map((t) => state[`x_${t}`]);
    return `<rect x="${X(step) - 17}" y="1" width="34" height="250" rx="6" fill="none" stroke="currentColor" stroke-width="2"/>` +
      bars(42, 32, forward, "hidden", "forward") + text(0, 62, "→", "start") + band(1, step, 83, "hidden") +
      bars(122, 28, inputs, "input", "input") + band(step, length, 155, "update") +
      bars(201, 32, backward, "update", "backward") + text(0, 221, "←", "start") +
      STEPS.map((t) => (t > length ? text(X(t), 113, "pad", "middle", "opacity:.8") : "") +
        text(X(t), 246, t)).join("");
  }
}
