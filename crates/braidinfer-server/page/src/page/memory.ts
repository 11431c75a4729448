// Small things that the browser keeps for the page. Storage may be forbidden or full; the page works without.

const PREFIX = "braidinfer.";

type Area = "localStorage" | "sessionStorage";

export function recall<T>(area: Area, name: string, otherwise: T): T {
  try {
    const text = window[area].getItem(PREFIX + name);
    return text === null ? otherwise : ((JSON.parse(text) as T | null) ?? otherwise);
  } catch {
    return otherwise;
  }
}

/** `null` forgets. */
export function keep(area: Area, name: string, value: unknown): void {
  try {
    if (value === null) window[area].removeItem(PREFIX + name);
    else window[area].setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // See above.
  }
}
