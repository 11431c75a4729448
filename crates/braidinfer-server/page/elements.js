// Elements of the page. Text reaches them as text only, never as HTML.

export function create(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A button that copies what `text()` says when it is pressed. */
export function copyButton(text) {
  const button = create("button", { type: "button", className: "quiet", textContent: "Copy" });
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedFromField(text);
  }
}

/** Browsers offer `navigator.clipboard` on https and localhost only; a server on the local network is neither. */
function copiedFromField(text) {
  const focused = document.activeElement;
  const field = create("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
