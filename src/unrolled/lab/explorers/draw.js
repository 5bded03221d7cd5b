// A trained network reads the curve that is drawn: a bidirectional GRU, whose outputs at all steps
// feed one linear layer, and a softmax over the ten digits. The equations are those of
// unrolled.GRUCell; the weights come with the page as whole numbers, in ten thousandths.
const T = 40;
const DIGITS = oneTo(10).map((k) => k - 1);
const scaled = (numbers) => numbers.map((n) => Array.isArray(n) ? scaled(n) : n / 1e4);

// All states of one direction, the steps in the order of `inputs`. Kernels are (from, to), and
// their columns stand in the order r, z, n.
const statesOf = ({ W, b, U, b_hn }, inputs) => {
  const H = b_hn.length;
  let h = b_hn.map(() => 0);
  return inputs.map((x) => {
    const sum = U[0].map((_, j) => h.reduce((total, value, i) => total + value * U[i][j], 0));
    h = h.map((old, i) => {
      const [r, z] = [0, H].map((j) => sigmoid(W[0][i + j] * x + b[i + j] + sum[i + j]));
      const n = Math.tanh(W[0][i + 2 * H] * x + b[i + 2 * H] + r * (sum[i + 2 * H] + b_hn[i]));
      return (1 - z) * n + z * old;
    });
    return h;
  });
};

class Draw extends Explorer {
  static title = "A trained network reads your curve";
  static intro = "Draw into the picture, with the mouse or a finger: the network reads your curve at every stroke.";
  static height = 352;
  static pad = pad(0, 0, 340, 148);
  static controls = [
    { name: "example", label: "Begin with", options: [...DIGITS.map((k) => `a test curve of a ${k}`), "a flat line"] },
    { name: "step", label: "Step", min: 1, max: T, step: 1, color: "input" },
    { name: "value", label: "Input at this step", min: -5, max: 5, step: 0.1, color: "input" },
  ];

  set(changes) {
    if ("example" in changes) {
      const curve = this.given.curves[changes.example] ?? oneTo(T).map(() => 0);
      changes = { step: this.state?.step ?? 20, ...changes };
      curve.forEach((x, i) => { changes[`x_${i + 1}`] = x; });
    }
    super.set(changes);
  }

  // From one place of the pointer to the next, along a straight line.
  point(x, y, first) {
    const here = [clamp(Math.round((x - 27) / 7.8) + 1, 1, T), clamp((74 - y) / 14, -5, 5)];
    const [t, v] = first ? here : this.last;
    const [far, changes] = [Math.abs(here[0] - t), { step: here[0] }];
    for (let k = 0; k <= far; k++) {
      const part = far ? k / far : 1;
      changes[`x_${Math.round(t + part * (here[0] - t))}`] = +(v + part * (here[1] - v)).toFixed(2);
    }
    this.last = here;
    this.set(changes);
  }

  compute(state) {
    this.weights ??= Object.fromEntries(["forward", "backward", "readout"].map((part) => [part,
      Object.fromEntries(Object.entries(this.measured[part]).map(([name, numbers]) => [name, scaled(numbers)]))]));
    const { forward, backward, readout } = this.weights;
    const inputs = oneTo(T).map((t) => state[`x_${t}`]);
    const there = statesOf(forward, inputs);
    const back = statesOf(backward, [...inputs].reverse()).reverse();
    const outputs = there.flatMap((h, i) => [...h, ...back[i]]);
    const scores = readout.b.map((b, k) => outputs.reduce((total, h, i) => total + h * readout.W[i][k], b));
    const powers = scores.map((s) => Math.exp(s - Math.max(...scores)));
    const all = powers.reduce((a, b) => a + b);
    const probabilities = powers.map((p) => p / all);
    const ranked = [...DIGITS].sort((a, b) => probabilities[b] - probabilities[a]);
    return { forward: there, backward: back, probabilities, ranked };
  }

  rows({ probabilities, ranked }) {
    return ranked.slice(0, 3).map((k, i) => [`${["First", "Second", "Third"][i]} choice: a ${k}`, probabilities[k]]);
  }

  sentence({ probabilities, ranked: [first, second] }, { example, step, value }) {
    const from = example < 10 ? `a test curve of a ${example}` : "a flat line";
    const percent = (k) => `${show(100 * probabilities[k], 1)}\u00a0%`;
    return `You began with ${from}; step ${step} is ${show(value)} now. The network reads a ${first} ` +
      `(${percent(first)}), or else a ${second} (${percent(second)}).`;
  }

  picture({ forward, backward, probabilities, ranked }, state) {
    const X = (t) => 27 + 7.8 * (t - 1), Y = (v) => 74 - 14 * v;
    const curve = oneTo(T).map((t) => [X(t), Y(state[`x_${t}`]).toFixed(1)]);
    const map = (states, y) => states.map((h, i) => h.map((value, unit) =>
      rect((X(i + 1) - 3.9).toFixed(1), y + 6 * unit, 7.8, 6, value < 0 ? "reset" : "hidden", `opacity="${Math.abs(value).toFixed(2)}"`),
    ).join("")).join("");
    const bar = (k) => rect(24 + 32 * k, 330 - 54 * probabilities[k], 24, 54 * probabilities[k], "candidate") +
      text(36 + 32 * k, 347, k, "middle", k === ranked[0] ? "font-weight:bold" : "");
    return [-4, 0, 4].map((v) => line(23, Y(v), 336, Y(v), "opacity:.3") + text(18, Y(v) + 4, show(v, 0), "end")).join("") +
      rect(X(state.step) - 3.9, 2, 7.8, 242, "input", 'opacity=".25"') +
      polyline(curve, "stroke:var(--input);stroke-width:2.5") +
      text(23, 162, "forward states →", "start") + map(forward, 166) +
      text(336, 216, "← backward states", "end") + map(backward, 220) +
      text(23, 272, "probability", "start") + line(23, 330, 336, 330, "opacity:.5") + DIGITS.map(bar).join("");
  }
}
