// A trained language model writes: two layers of GRU cells over an embedding, and a softmax over the
// 96 characters. The equations are those of unrolled.GRUCell. The weights come with the page, eight
// bits each with one float32 scale for each column; biases are float32.
const CHARACTERS = ["\n", ...oneTo(95).map((code) => String.fromCharCode(31 + code))];
const MOST = 700; // characters of a text
const bytes = (words) => Uint8Array.from(atob(words), (c) => c.charCodeAt(0)).buffer;
const named = (code) => ["end of line", "space"][code] ?? CHARACTERS[code];
const quoted = (words) => words.replace(/[&<]/g, (c) => ({ "&": "&amp;", "<": "&lt;" })[c]);

// sum + x W, for W laid out row by row.
const times = (x, W, sum) => {
  const width = sum.length;
  x.forEach((value, i) => {
    for (let j = 0, at = i * width; j < width; j++, at++) sum[j] += value * W[at];
  });
  return sum;
};

// One step of a GRU; the columns of W and U stand in the order r, z, n.
const gruStep = ({ W, b, U, b_hn }, h, x) => {
  const H = h.length;
  const from = times(x, W, Float64Array.from(b)), back = times(h, U, new Float64Array(3 * H));
  return h.map((old, i) => {
    const r = sigmoid(from[i] + back[i]), z = sigmoid(from[i + H] + back[i + H]);
    const n = Math.tanh(from[i + 2 * H] + r * (back[i + 2 * H] + b_hn[i]));
    return (1 - z) * n + z * old;
  });
};

class Language extends Explorer {
  static title = "A trained network writes";
  static intro = "Press “Write”, press a bar to choose the next character yourself, or change the text: the network goes on from what stands there.";
  static height = 196;
  static pad = pad(0, 20, 340, 176, "tap");
  static controls = [
    { name: "temperature", label: "Temperature", min: 0, max: 1.5, step: 0.05, color: "candidate" },
    { name: "unit", label: "Colour of the unit for", options: ["nothing", "place in the line", "quotes", "parentheses"] },
  ];

  build() {
    this.find(".panes").insertAdjacentHTML("beforebegin", `<style>
      textarea { width: 100%; box-sizing: border-box; font: .8rem/1.4 monospace; color: inherit;
        background: none; border: 1px solid; border-radius: .4rem; margin-bottom: .6rem }
      label[for="text"] { display: block; margin-top: .8rem }
      pre { font-size: .8rem; line-height: 1.4; margin: 0 0 1rem; white-space: pre-wrap;
        overflow-wrap: anywhere; min-height: 11.2em }</style><pre aria-hidden="true"></pre>`);
    this.find("button").insertAdjacentHTML("beforebegin", `<label for="text">The text, to read and change</label>
      <textarea id="text" rows="3" spellcheck="false" autocomplete="off"></textarea>
      <button type="button" id="write">Write</button><button type="button" id="one">One character</button>`);
    this.find("#text").addEventListener("input", (event) => {
      event.stopPropagation();
      this.stop();
      const { value } = event.target;
      const known = [...value].filter((c) => CHARACTERS.includes(c)).join("").slice(0, MOST);
      this.say(known, known === value);
    });
    this.find("#one").addEventListener("click", () => this.write(1));
    this.find("#write").addEventListener("click", () => this.frame ? this.stop() : this.run());
    this.load();
  }

  load() {
    const { inputs, hidden, layers } = this.given;
    const whole = new Int8Array(bytes(this.measured.int8)), real = new Float32Array(bytes(this.measured.float32));
    let [i, k] = [0, 0];
    const floats = (count) => real.subarray(k, k += count);
    const matrix = (rows, columns) => {
      const scales = floats(columns);
      return Float64Array.from(whole.subarray(i, i += rows * columns), (n, at) => n * scales[at % columns]);
    };
    this.embedding = matrix(96, inputs);
    this.layers = oneTo(layers).map((layer) => ({
      W: matrix(layer > 1 ? hidden : inputs, 3 * hidden), U: matrix(hidden, 3 * hidden),
      b: floats(3 * hidden), b_hn: floats(hidden) }));
    this.readout = { W: matrix(hidden, 96), b: floats(96) };
    this.read = ""; // the text up to which there are states
    this.states = [this.layers.map(() => new Float64Array(hidden))];
  }

  set(changes) {
    if (!this.layers) this.build();
    if (changes === this.start) {
      this.stop();
      this.text = this.find("#text").value = this.given.text;
    }
    super.set(changes);
    const { tracked } = this.values, { text } = this;
    this.find("pre").innerHTML = !tracked ? quoted(text) : tracked.map((value, i) =>
      `<span style="background:rgb(${value < 0 ? "196 78 0" : "0 114 178"}/${(0.4 * Math.abs(value)).toFixed(2)})">${quoted(text[i])}</span>`).join("");
  }

  say(text, typed = false) {
    this.text = text;
    if (!typed) {
      const field = this.find("#text");
      field.value = text;
      field.scrollTop = field.scrollHeight;
    }
    this.set({});
  }

  write(count) {
    for (; count && this.text.length < MOST; count--) {
      let left = Math.random();
      const { probabilities } = this.values;
      const code = probabilities.findIndex((p) => (left -= p) < 0);
      this.text += CHARACTERS[code < 0 ? this.values.ranked[0] : code];
      this.values = this.compute(this.state);
    }
    this.say(this.text);
    return this.text.length < MOST;
  }

  run() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.write(300);
    let left = 300;
    const step = () => {
      if (!this.isConnected || !left-- || !this.write(1)) return this.stop();
      this.frame = requestAnimationFrame(step);
    };
    this.find("#write").textContent = "Stop";
    this.frame = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.find("#write").textContent = "Write";
  }

  point(x, y, first) {
    const code = this.values.ranked[Math.floor((x - 10) / 32)];
    if (!first || code === undefined || this.text.length >= MOST) return;
    this.stop();
    this.say(this.text + CHARACTERS[code]);
  }

  // The states after each character; those of a beginning that has not changed are kept.
  compute({ temperature, unit }) {
    const { text, states, layers, embedding, given: { inputs } } = this;
    let same = 0;
    while (same < this.read.length && this.read[same] === text[same]) same++;
    states.length = same + 1;
    for (let t = same; t < text.length; t++) {
      const code = CHARACTERS.indexOf(text[t]);
      let x = embedding.subarray(code * inputs, (code + 1) * inputs);
      states.push(layers.map((layer, i) => (x = gruStep(layer, states[t][i], x))));
    }
    this.read = text;
    const scores = times(states[text.length].at(-1), this.readout.W, Float64Array.from(this.readout.b));
    const highest = Math.max(...scores);
    const powers = [...scores].map((s) => temperature ? Math.exp((s - highest) / temperature) : +(s === highest));
    const all = powers.reduce((a, b) => a + b);
    const probabilities = powers.map((p) => p / all);
    const ranked = probabilities.map((_, code) => code).sort((a, b) => scores[b] - scores[a]).slice(0, 10);
    const [layer, index, sign] = this.measured.units[unit - 1] ?? [];
    const tracked = unit ? states.slice(1).map((state) => sign * state[layer][index]) : null;
    return { text, probabilities, ranked, tracked };
  }

  rows({ probabilities, ranked, text }) {
    return [["Characters so far", `${text.length}`],
      ...ranked.slice(0, 2).map((code, i) => [`${["Likeliest", "Second"][i]} next: ${quoted(named(code))}`, probabilities[code]])];
  }

  sentence({ probabilities, ranked: [first, second], text }, { temperature }) {
    const percent = (code) => `${named(code)} (${show(100 * probabilities[code], 0)}\u00a0%)`;
    return `The text ends: “${text.slice(-60)}”. At temperature ${show(temperature)} the next character is ` +
      `${percent(first)}, or else ${percent(second)}.`;
  }

  picture({ probabilities, ranked }) {
    const bar = (code, i) => {
      const height = 120 * probabilities[code], x = 10 + 32 * i;
      return rect(x + 4, (160 - height).toFixed(1), 24, height.toFixed(1), "candidate") +
        text(x + 16, (154 - height).toFixed(1), show(probabilities[code]), "middle", "font-size:11px") +
        text(x + 16, 180, code > 1 ? quoted(CHARACTERS[code]) : "↵␣"[code], "middle", "font-family:monospace;font-size:16px");
    };
    return text(10, 14, "probability of the next character", "start") +
      line(10, 160, 330, 160, "opacity:.5") + ranked.map(bar).join("");
  }
}
