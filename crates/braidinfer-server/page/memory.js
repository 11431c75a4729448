// What the browser keeps for the page. Storage may be forbidden or full; the page works without.

const PREFIX = "braidinfer.";

/** `area` is "localStorage" or "sessionStorage". */
export function recall(area, name, otherwise) {
  try {
    return JSON.parse(window[area].getItem(PREFIX + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** `null` forgets. */
export function keep(area, name, value) {
  try {
    if (value === null) window[area].removeItem(PREFIX + name);
    else window[area].setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // See above.
  }
}
