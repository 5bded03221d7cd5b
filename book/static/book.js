// Small things that need the finished page.

// A page opened from a file may not read other pages, so search shows titles without extracts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// The keyboard can scroll what the mouse can: the theme sees to code and tables, this to equations.
function focusWhatScrolls() {
  for (const element of document.querySelectorAll('mjx-container[display="true"]')) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
}

window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(focusWhatScrolls);
  window.addEventListener("resize", focusWhatScrolls);
});
