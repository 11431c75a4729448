// Markdown as a component.

import { useLayoutEffect, useRef } from "preact/hooks";

import { RenderedText } from "./rendered";

/** While a text grows, drawing it may take this share of the time: a list of thousands of entries is one block. */
const SHARE = 0.2;

export function Markdown({ text, isComplete }: { text: string; isComplete: boolean }) {
  const container = useRef<HTMLDivElement>(null);
  const rendered = useRef<RenderedText | null>(null);
  const due = useRef(0);
  useLayoutEffect(() => {
    if (container.current) rendered.current ??= new RenderedText(container.current);
    const show = () => {
      const started = performance.now();
      rendered.current?.show(text, isComplete);
      due.current = started + (performance.now() - started) / SHARE;
    };
    const wait = isComplete ? 0 : due.current - performance.now();
    if (wait <= 0) {
      show();
      return;
    }
    const timer = setTimeout(show, wait);
    return () => clearTimeout(timer);
  }, [text, isComplete]);
  return <div ref={container} class="said" />;
}
