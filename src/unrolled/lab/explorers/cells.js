// One LSTM unit and one GRU unit read the same twelve inputs, from 0 to 1: what unrolled.LSTMCell and
// unrolled.GRUCell compute with all recurrent kernels 0. Both write tanh(2 x); the LSTM's input and
// output gates have the bias 4 and are open. Both gates that keep have the bias of the slider.
const STEPS = oneTo(12);
const open = sigmoid(4);

class Cells extends Explorer {
  static title = "The memory of an LSTM and the state of a GRU";
  static intro = "Drag the green bars: an LSTM unit and a GRU unit read these inputs, and here is what each of them keeps.";
  static height = 300;
  static pad = pad(30, 192, 310, 108);
  static controls = [
    { name: "step", label: "Step", min: 1, max: 12, step: 1, color: "input" },
    { name: "value", label: "Input at this step", min: 0, max: 1, step: 0.1, color: "input" },
    { name: "bias", label: "Bias of the gates that keep", min: -2, max: 8, step: 0.5, color: "memory" },
    { name: "weight", label: "An input opens the GRU’s gate by", min: 0, max: 12, step: 0.5, color: "update" },
  ];

  point(x, y) {
    const step = clamp(Math.round((x - 45) / 25) + 1, 1, 12);
    this.set({ step, [`x_${step}`]: Math.round(clamp((272 - y) / 60, 0, 1) * 10) / 10 });
  }

  compute(state) {
    const memory = [], shown = [], hidden = [];
    const forget = sigmoid(state.bias);
    let c = 0, h = 0;
    for (const t of STEPS) {
      const x = state[`x_${t}`], candidate = Math.tanh(2 * x);
      c = forget * c + open * candidate;
      memory.push(c);
      shown.push(open * Math.tanh(c));
      const keep = sigmoid(state.bias - state.weight * x);
      h = (1 - keep) * candidate + keep * h;
      hidden.push(h);
    }
    return { memory, shown, hidden, step: state.step, forget };
  }

  rows({ memory, shown, hidden, step }) {
    const at = (letter) => `<i>${letter}</i><sub>${step}</sub>`;
    return [
      [`LSTM: memory ${at("c")}`, memory[step - 1]], [`LSTM: shows ${at("h")}`, shown[step - 1]],
      [`GRU: state ${at("h")}`, hidden[step - 1]],
    ];
  }

  sentence({ memory, hidden, forget, step }, { value }) {
    return `At step ${step} the input is ${show(value)}. The LSTM’s memory is ${show(memory[step - 1])}, the GRU’s ` +
      `state ${show(hidden[step - 1])}. Without input both keep ${show(100 * forget, 1)} % from one step to the next. ` +
      `After step 12 the memory is ${show(memory[11])} and the state ${show(hidden[11])}.`;
  }

  picture({ memory, shown, hidden }, state) {
    const top = Math.max(2, Math.ceil(Math.max(...memory)));
    const X = (t) => 45 + 25 * (t - 1), Y = (v) => 180 - (150 * v) / top;
    const path = (values, style) => polyline([[20, Y(0)], ...values.map((v, i) => [X(i + 1), Y(v)])], style);
    const every = Math.ceil(top / 4);
    const ticks = oneTo(top + 1).map((k) => k - 1).filter((v) => v % every === 0);
    const [c, s, h] = ["stroke:var(--memory);stroke-width:3", "stroke:var(--hidden);stroke-dasharray:4 3", "stroke:var(--hidden);stroke-width:3"];
    return key(20, "LSTM, <tspan font-style='italic'>c</tspan>", c) + key(130, "LSTM, <tspan font-style='italic'>h</tspan>", s) +
      key(240, "GRU, <tspan font-style='italic'>h</tspan>", h) +
      ticks.map((v) => line(20, Y(v), 336, Y(v), "opacity:.3") + text(14, Y(v) + 4, v, "end")).join("") +
      `<rect x="${X(state.step) - 12}" y="24" width="24" height="274" rx="5" fill="none" stroke="currentColor" stroke-width="2"/>` +
      path(shown, s) + path(hidden, h) + path(memory, c) +
      rect(X(state.step) - 3, Y(memory[state.step - 1]) - 3, 6, 6, "memory", 'rx="3"') +
      line(20, 272, 336, 272, "opacity:.5") +
      STEPS.map((t) => rect(X(t) - 9, 212, 18, 60, "input", 'opacity=".15"') +
        rect(X(t) - 9, 272 - 60 * state[`x_${t}`], 18, 60 * state[`x_${t}`], "input") + text(X(t), 290, t)).join("") +
      text(20, 204, "inputs", "start");
  }
}
