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
function focusWhatScrolls() {
  for (const element of document.querySelectorAll('mjx-container[display="true"]')) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
}

document.addEventListener("DOMContentLoaded", keepPunctuation);
window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(() => document.fonts.ready).then(focusWhatScrolls);
  window.addEventListener("resize", focusWhatScrolls);
});
