// One step of a GRU with one unit and one input: the equations of unrolled.gru.gru_step.
const gruStep = (p, h, x) => {
  const update = sigmoid(p.Wz * x + p.Uz * h + p.bz);
  const reset = sigmoid(p.Wr * x + p.Ur * h + p.br);
  const candidate = Math.tanh(p.Wh * x + p.Uh * (reset * h) + p.bh);
  return { update, reset, candidate, h_t: (1 - update) * h + update * candidate };
};

const symbol = (letter, index) => `<i>${letter}<sub>${index}</sub></i>`;
const parameter = (letter, index, color, more) => ({
  name: letter + index, label: symbol(letter, index), min: -10, max: 10, step: 0.5, color, more,
});

class Gates extends Explorer {
  static title = "Gates of one GRU unit";
  static intro = "One GRU unit takes one step: move a slider and see which way the new state goes.";
  static more = "All weights";
  static height = 300;
  static controls = [
    { name: "x_t", label: `Input ${symbol("x", "t")}`, min: -2, max: 2, step: 0.1, color: "input" },
    { name: "h_prev", label: `Old state ${symbol("h", "t−1")}`, min: -1, max: 1, step: 0.05, color: "hidden" },
    { ...parameter("b", "z", "update"), label: `Update gate’s bias ${symbol("b", "z")}` },
    { ...parameter("b", "r", "reset"), label: `Reset gate’s bias ${symbol("b", "r")}` },
    parameter("W", "z", "update", true), parameter("U", "z", "update", true),
    parameter("W", "r", "reset", true), parameter("U", "r", "reset", true),
    parameter("W", "h", "candidate", true), parameter("U", "h", "candidate", true),
    parameter("b", "h", "candidate", true),
  ];

  compute(state) {
    const outputs_h = [];
    for (let h = state.h_prev, t = 0; t < 20; t++) {
      h = gruStep(state, h, t ? 0 : state.x_t).h_t;
      outputs_h.push(h);
    }
    return { ...gruStep(state, state.h_prev, state.x_t), outputs_h };
  }

  rows({ update, reset, candidate, h_t }) {
    return [
      [`Reset gate ${symbol("r", "t")}`, reset], [`Candidate ${symbol("h̃", "t")}`, candidate],
      [`Update gate ${symbol("z", "t")}`, update], [`New state ${symbol("h", "t")}`, h_t],
    ];
  }

  sentence({ update, reset, candidate, h_t, outputs_h }, { h_prev }) {
    return `The candidate ${show(candidate)} saw ${show(100 * reset, 0)} % of the old state. ` +
      `The new state ${show(h_t)} lies ${show(100 * update, 0)} % of the way from the old state ` +
      `${show(h_prev)} to the candidate. After 19 more steps without input it is ${show(outputs_h[19])}.`;
  }

  picture({ update, reset, candidate, h_t, outputs_h }, { h_prev }) {
    const dot = (x, y, r, fill = "var(--hidden)") =>
      `<circle cx="${x}" cy="${y}" r="${r}" style="fill:${fill};stroke:var(--hidden);stroke-width:2"/>`;
    const bar = (y, words, value, color) => text(0, y + 12, words, "start") +
      `<rect x="110" y="${y}" width="230" height="15" rx="3" opacity=".2"/>` +
      rect(110, y, 230 * value, 15, color, 'rx="3"');
    const X = (value) => 170 + 150 * value;
    const label = (value) => clamp(X(value), 35, 305);
    const time = (t) => 30 + 15 * t;
    const level = (value) => 240 - 34 * value;
    const path = [h_prev, ...outputs_h];
    const scale = [-1, 0, 1];
    return bar(4, "reset gate", reset, "reset") + bar(28, "update gate", update, "update") +
      line(X(-1), 104, X(1), 104, "opacity:.5") +
      scale.map((v) => line(X(v), 100, X(v), 108) + text(X(v), 147, show(v, 0))).join("") +
      line(X(h_t), 104, X(candidate), 104, "stroke:var(--candidate);stroke-width:2;stroke-dasharray:3 3") +
      line(X(h_prev), 104, X(h_t), 104, "stroke:var(--hidden);stroke-width:6") +
      line(X(candidate), 74, X(candidate), 104, "stroke:var(--candidate);stroke-width:2") +
      `<path d="M${X(candidate)} 97l7 7l-7 7l-7-7z" style="fill:var(--candidate)"/>` +
      text(label(candidate), 70, "candidate") + text(label(h_prev), 92, "old") +
      dot(X(h_prev), 104, 6, "var(--pst-color-background,Canvas)") + dot(X(h_t), 104, 6) +
      text(label(h_t), 128, "new") +
      text(0, 176, "State over 20 steps: input at step 1, then zeros", "start") +
      scale.map((v) => line(time(0), level(v), time(20), level(v), "opacity:.3") +
        text(22, level(v) + 4, show(v, 0), "end")).join("") +
      polyline(path.map((h, t) => [time(t), level(h)]), "stroke:var(--hidden)") +
      path.map((h, t) => dot(time(t), level(h), 2)).join("") +
      [0, 5, 10, 15, 20].map((t) => text(time(t), 295, t)).join("");
  }
}
