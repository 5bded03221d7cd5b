// Four years of an account, as jax.lax.scan takes them: the step of chapter 3, `year`.
const YEARS = oneTo(4);
const year = (rate, balance, deposit) => [balance + rate * balance + deposit, rate * balance];

const deposit = (t) => ({
  name: `x_${t}`, label: `Deposit <i>x</i><sub>${t}</sub>`, min: -50, max: 50, step: 5, color: "input", more: true,
});

class Scan extends Explorer {
  static title = "A scan, step by step";
  static intro = "Each step is one year of the account: take steps forward and back, and watch what goes in and what comes out.";
  static more = "Deposits, opening balance, rate";
  static toggles = "Which way does time run?";
  static height = 256;
  static controls = [
    { name: "taken", label: "Steps taken", min: 0, max: 4, step: 1, color: "hidden" },
    { name: "reverse", label: "<code>reverse=True</code>", toggle: true, color: "hidden" },
    ...YEARS.map(deposit),
    { name: "opening", label: "Opening balance", min: 0, max: 200, step: 10, color: "hidden", more: true },
    { name: "rate", label: "Rate", min: -0.5, max: 0.5, step: 0.05, color: "reset", more: true },
  ];

  connectedCallback() {
    super.connectedCallback();
    const reset = this.find("button");
    for (const [words, by] of [["Step back", -1], ["Step forward", 1]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words;
      button.onclick = () => this.set({ taken: clamp(this.state.taken + by, 0, 4) });
      reset.before(button);
    }
  }

  // `carries[k]` is the carry after k steps; `ys[t - 1]` belongs to x_t, in whichever order.
  compute(state) {
    const order = state.reverse ? [...YEARS].reverse() : YEARS;
    const carries = [state.opening], ys = [];
    for (const t of order.slice(0, state.taken)) {
      const [balance, interest] = year(state.rate, carries.at(-1), state[`x_${t}`]);
      carries.push(balance);
      ys[t - 1] = interest;
    }
    return { carries, ys, order, at: order[state.taken - 1], x: state[`x_${order[state.taken - 1]}`] };
  }

  rows({ carries, ys, at, x }) {
    const index = (letter) => `<i>${letter}</i><sub>${at}</sub>`;
    if (!at) return [["Initial carry (balance)", show(carries[0])]];
    return [
      ["Carry in (balance)", show(carries.at(-2))], [`${index("x")} (deposit)`, show(x)],
      ["Carry out (balance)", show(carries.at(-1))], [`${index("y")} (interest)`, show(ys[at - 1])],
    ];
  }

  sentence({ carries, ys, at, x }, { taken }) {
    const end = show(carries.at(-1)), below = "₀₁₂₃₄"[at];
    if (!at) return `No step is taken yet. The carry is the opening balance, ${end}.`;
    const done = taken < 4 ? "" :
      ` The scan is done: it returns the carry ${end} and the outputs ${ys.map((y) => show(y)).join(", ")}.`;
    return `Step ${taken} of 4 is given the carry ${show(carries.at(-2))} and x${below} = ${show(x)}. ` +
      `It hands on the carry ${end} and puts out y${below} = ${show(ys[at - 1])}.${done}`;
  }

  picture({ carries, ys, order, at }, state) {
    const X = (t) => 62 + 72 * (t - 1);
    const way = state.reverse ? -1 : 1;
    const look = (on, now) => `stroke-width:${now ? 4 : 1.5};opacity:${on ? 1 : 0.5}`;
    const box = (x, y, words, color, on, now) => text(x, y + 5, words) +
      `<rect x="${x - 28}" y="${y - 16}" width="56" height="32" rx="6" fill="none" ` +
      `style="stroke:${color};${look(on, now)};stroke-dasharray:${on ? "none" : "3 3"}"/>`;
    const up = (x, y, color, on, now) =>
      line(x, y, x, y - 38, `stroke:var(--${color});${look(on, now)}`) +
      `<path d="M${x} ${y - 45}l-5 9h10z" style="fill:var(--${color});opacity:${on ? 1 : 0.5}"/>`;
    const across = (x, on, now) =>
      line(x - 7 * way, 136, x + way, 136, `stroke:var(--hidden);${look(on, now)}`) +
      `<path d="M${x + 8 * way} 136l${-9 * way} -5v10z" style="fill:var(--hidden);opacity:${on ? 1 : 0.5}"/>`;
    const index = (letter, t) => `${letter}<tspan dy="3" font-size="10">${t}</tspan>`;
    const columns = order.map((t, k) => {
      const x = X(t), on = k < state.taken, now = t === at;
      return text(x, 16, index("y", t)) + box(x, 40, on ? show(ys[t - 1]) : "", "var(--hidden)", on, now) +
        up(x, 118, "hidden", on, now) + box(x, 136, "step", "currentColor", on, now) +
        up(x, 200, "input", on, now) + box(x, 218, show(state[`x_${t}`]), "var(--input)", true, now) +
        text(x, 250, index("x", t));
    });
    const gaps = [0, ...order].map((_, k) => {
      const x = X(order[0]) + way * (72 * k - 36), now = at && [0, 1].includes(state.taken - k);
      return across(x, k <= state.taken, now) + text(x, 106, k in carries ? show(carries[k], Math.abs(carries[k]) < 1000 ? 2 : 0) : "");
    });
    return text(0, 45, "ys", "start") + text(0, 88, "carry", "start") + text(0, 223, "xs", "start") +
      columns.join("") + gaps.join("");
  }
}
