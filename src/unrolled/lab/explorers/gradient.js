// A simple cell, h_t = tanh(radius U h_(t-1) + strength * noise_t), and the norm of the Jacobian
// of each state with respect to the initial one, as chapter 1 computes it.
const ROOT3 = Math.sqrt(3);

// The same noise on every page: uniform, mean 0, standard deviation 1 (Park and Miller, 1988).
const noise = (seed = 1) => () => {
  seed = (seed * 16807) % 2147483647;
  return ROOT3 * ((2 * seed) / 2147483647 - 1);
};

const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);

// Turns pairs of columns until all are at right angles, which changes no singular value of their
// matrix; then these are the columns' lengths (one-sided Jacobi).
const straighten = (columns) => {
  for (let sweep = 0, turned = true; turned && sweep < 40; sweep++) {
    turned = false;
    for (let p = 0; p < columns.length; p++) {
      for (let q = 0; q < p; q++) {
        const [a, b] = [columns[p], columns[q]];
        const [aa, bb, ab] = [dot(a, a), dot(b, b), dot(a, b)];
        if (ab * ab <= 1e-20 * aa * bb) continue;
        turned = true;
        const zeta = (bb - aa) / (2 * ab);
        const tan = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const cos = 1 / Math.hypot(1, tan);
        columns[p] = a.map((x, i) => cos * (x - tan * b[i]));
        columns[q] = b.map((x, i) => cos * (tan * a[i] + x));
      }
    }
  }
};

const power = (value) => value.toExponential(2).replace("-", "−").replace("+", "");

class Gradient extends Explorer {
  static title = "A gradient on its way through time";
  static intro = "Choose the weights’ spectral radius and how hard the inputs drive the cell: what is left of the gradient after so many steps?";
  static height = 250;
  static controls = [
    { name: "radius", label: "Spectral radius <i>ρ</i>", min: 0, max: 2, step: 0.05, color: "candidate" },
    { name: "strength", label: "Strength of the inputs", min: 0, max: 2, step: 0.1, color: "input" },
    { name: "steps", label: "Number of steps <i>T</i>", min: 5, max: 100, step: 5, color: "gradient" },
  ];

  compute({ radius, strength, steps }) {
    const U = this.given.U.map((row) => row.map((u) => radius * u));
    const next = noise();
    let h = U.map(() => 0);
    let columns = U.map((_, i) => U.map((_, j) => +(i === j))); // the product, turned; almost straight from step to step
    const norms = [], slopes = [];
    for (let t = 0; t < steps; t++) {
      h = U.map((row) => Math.tanh(dot(row, h) + strength * next()));
      const slope = h.map((x) => 1 - x * x);
      columns = columns.map((column) => U.map((row, i) => slope[i] * dot(row, column)));
      straighten(columns);
      norms.push(Math.sqrt(Math.max(...columns.map((c) => dot(c, c)))));
      slopes.push(slope.reduce((a, b) => a + b) / slope.length);
    }
    const below = norms.findIndex((value) => value < 0.01);
    return {
      norms, slope: slopes.reduce((a, b) => a + b) / steps,
      rate: norms.at(-1) ** (1 / steps), reach: below < 0 ? steps : below,
    };
  }

  rows({ norms, slope, rate, reach }) {
    const last = norms.length;
    return [
      [`Norm of ∂<i>h</i><sub>${last}</sub>/∂<i>h</i><sub>0</sub>`, power(norms.at(-1))],
      ["Mean factor per step", rate], ["Mean slope of the tanh", slope],
      ["Less than 1 % is left after", reach < last ? `${reach + 1} steps` : "never here"],
    ];
  }

  sentence({ norms, rate, slope, reach }, { radius }) {
    const end = norms.at(-1), many = norms.length;
    const fate = end < 0.01 ? `has vanished: less than 1 % is left after ${reach + 1} steps` :
      end > 100 ? "explodes" : end < 0.1 ? `is fading: ${show(100 * end)} % is left` :
      "arrives, neither vanished nor exploded";
    return `With radius ${show(radius)} and a mean slope of ${show(slope)}, each step multiplies the gradient ` +
      `by about ${show(rate)}. After ${many} steps its norm is ${power(end)}: it ${fate}.`;
  }

  picture({ norms }, { radius, steps }) {
    const log = (value) => clamp(Math.log10(value), -30, 30);
    const line_of_radius = [0, steps].map((t) => t * (radius ? Math.log10(radius) : -30));
    const values = [...norms.map(log), 0];
    const low = Math.floor(Math.min(...values, -1)), high = Math.ceil(Math.max(...values, 1));
    const X = (t) => 44 + (288 * t) / steps, Y = (v) => 30 + (178 * (high - clamp(v, low, high))) / (high - low);
    const every = Math.ceil((high - low) / 6);
    const ticks = oneTo(high - low + 1).map((k) => low + k - 1).filter((v) => v % every === 0);
    const sup = (v) => v ? `10<tspan dy="-5" font-size="10">${show(v, 0)}</tspan>` : "1";
    const end = radius ? clamp(line_of_radius[1], low, high) / Math.log10(radius) || steps : 0;
    return ticks.map((v) => line(44, Y(v), 336, Y(v), `opacity:${v ? 0.25 : 0.7}`) + text(38, Y(v) + 4, sup(v), "end")).join("") +
      polyline([[X(0), Y(0)], [X(Math.min(end, steps)), Y(line_of_radius[1])]], "stroke:var(--candidate);stroke-width:1.5;stroke-dasharray:5 4") +
      polyline([[X(0), Y(0)], ...norms.map((value, i) => [X(i + 1).toFixed(1), Y(log(value)).toFixed(1)])], "stroke:var(--gradient);stroke-width:2.5") +
      [0, 0.5, 1].map((part) => text(X(part * steps), 226, part * steps, part === 1 ? "end" : "middle")).join("") +
      text(190, 246, "number of steps") + key(44, "norm of the gradient", "stroke:var(--gradient)") +
      key(215, "radius alone", "stroke:var(--candidate);stroke-dasharray:5 4");
  }
}
