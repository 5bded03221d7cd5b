// Small things that need the finished page.

// A page opened from a file may not read other pages, so search shows titles without extracts.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// An extract of a page shows an equation once, as its TeX.
if (typeof Search !== "undefined") {
  const htmlToText = Search.htmlToText;
  Search.htmlToText = (html, anchor) =>
    htmlToText(html.replace(/<span class="katex-html".*?<annotation/g, "<annotation"), anchor);
}

// An option of a self-check that was opened once keeps its sign, right or wrong.
document.addEventListener("toggle", ({ target }) => {
  if (target.open && target.matches("details.choice")) target.classList.add("seen");
}, true);
