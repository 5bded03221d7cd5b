// Small things that need the finished page.

// A page opened from a file may not read other pages, so search shows titles without extracts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// A line does not break between an equation and the comma or bracket after it.
function keepPunctuation() {
  for (const math of document.querySelectorAll(".bd-article span.math")) {
    const after = math.nextSibling;
    const mark = after?.nodeType === Node.TEXT_NODE && after.data.match(/^[,.;:!?)\]’”]+/)?.[0];
    if (!mark) continue;
    const unit = document.createElement("span");
    unit.className = "no-break";
    math.before(unit);
    unit.append(math, mark);
    after.data = after.data.slice(mark.length);
  }
}

// The keyboard can scroll what the mouse can: the theme sees to code and tables, this to equations.
// All displayed ones get it: which of them are too wide changes with fonts and with the window.
function focusEquations() {
  for (const element of document.querySelectorAll('mjx-container[display="true"]')) {
    element.tabIndex = 0;
  }
}

// An option of a self-check that was opened once keeps its sign, right or wrong.
document.addEventListener("toggle", ({ target }) => {
  if (target.open && target.matches("details.choice")) target.classList.add("seen");
}, true);

document.addEventListener("DOMContentLoaded", keepPunctuation);
window.addEventListener("load", () => {
  (window.MathJax?.startup?.promise ?? Promise.resolve()).then(focusEquations);
});
