// What the page shows follows from one state. Whoever changes it says so, and the page is drawn once for each frame.

import { useLayoutEffect, useState } from "preact/hooks";

const listeners = new Set<() => void>();
let isDue = false;

/** Frames do not come while the page is hidden. */
const LONGEST_WAIT = 100;

export function changed(): void {
  if (isDue) return;
  isDue = true;
  const frame = requestAnimationFrame(draw);
  const timer = setTimeout(draw, LONGEST_WAIT);
  function draw() {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    isDue = false;
    for (const listener of listeners) listener();
  }
}

/** Has a component drawn again after each change. */
export function useChanges(): void {
  const [, setCount] = useState(0);
  useLayoutEffect(() => {
    const listener = () => setCount((count) => count + 1);
    listeners.add(listener);
    // What changed between the drawing and now was not heard.
    listener();
    return () => void listeners.delete(listener);
  }, []);
}
