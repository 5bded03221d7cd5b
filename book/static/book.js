// Small things that need the finished page.

// An option of a self-check that was opened once keeps its sign, right or wrong.
document.addEventListener("toggle", ({ target }) => {
  if (target.open && target.matches("details.choice")) target.classList.add("seen");
}, true);
