// What the search page does better than Sphinx by itself. Loaded after searchtools.js.

// A page opened from a file may not read other pages, so search shows titles without extracts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// An extract is of the text only, and shows an equation once, as its TeX.
const LEFT_OUT = ".katex-html, semantics > :not(annotation), .bd-header-article, " +
  ".bd-sidebar-secondary, .headerlink, script, style";
const { query } = Search;
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const element of page.querySelectorAll(LEFT_OUT)) element.remove();
  const text = page.querySelector("[role=main]");
  return ((anchor && text.querySelector(anchor)) || text).textContent;
};

// A symbol is found under its name in TeX: σ as sigma, h̃ and ĥ as h.
const SYMBOLS = {
  α: "alpha", β: "beta", γ: "gamma", δ: "delta", ε: "epsilon", ϵ: "epsilon", θ: "theta", λ: "lambda",
  μ: "mu", ρ: "rho", σ: "sigma", φ: "varphi", ℓ: "ell", "∂": "partial", "⊙": "odot", "∘": "circ",
  "√": "sqrt", "∑": "sum", Σ: "sum", "∏": "prod", "⊤": "top",
};
Search.query = (text) =>
  query([...text.normalize("NFD")].map((c) => (SYMBOLS[c] ? ` ${SYMBOLS[c]} ` : c)).join("")
    .replace(/\p{M}/gu, ""));

// What a symbol or a term means comes before the places where it is used.
const EXPLAINS = ["book/notation", "book/glossary"];
Scorer.score = ([page, , , , score]) => score + (EXPLAINS.includes(page) ? 12 : 0);
